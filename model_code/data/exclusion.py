"""Images that are left out of a source by their file names."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from model_code.data.cache import SkippedImage
from model_code.data.sources.images import EncodedSplit, ImageSource, PixelSplit, escape_bytes, name_image, name_some
from model_code.data.tables import decode_table, read_rows
from model_code.errors import DataError

COLUMN = "file"
# Reason of what is left out, in front of the file's name.
EXCLUDED_BY = "named in "


def read_exclusions(file: Path) -> frozenset[str]:
    """Return the names in the column `file` of a CSV table, or the lines of a file without such a column.

    Raises:
        DataError: The file cannot be read or names no image.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}; give a table with a column {COLUMN}") from error
    # Spreadsheets may write the separator in a line of its own.
    text = re.sub(r"\A(\s*\n|sep=.\r?\n)+", "", decode_table(data, str(file)))
    names = lines = text.splitlines()
    if lines and COLUMN in (cell.strip(' "') for cell in re.split("[,;\t]", lines[0].casefold())):
        header, rows = read_rows(text.encode(), str(file))
        if COLUMN not in header:
            raise DataError(f"{file}: found columns {header}; expected a column {COLUMN}")
        names = [row[header.index(COLUMN)] for _, row in rows if len(row) > header.index(COLUMN)]
    found = frozenset(filter(None, map(str.strip, names)))
    if not found:
        raise DataError(f"{file} names no image; give a table with a column {COLUMN}, or a name in each line")
    return found


def leave_out(source: ImageSource, reasons: Mapping[str, str]) -> ImageSource:
    """Return a source without some of its images, which are reported as skipped; every class keeps some.

    Args:
        source: Classes and images.
        reasons: Name of each image to leave out -> why.

    Raises:
        DataError: Nothing has one of the names, they are all images of a class, or images that feedback is added to.
    """
    splits: dict[str, EncodedSplit | PixelSplit] = {}
    skipped: list[SkippedImage] = []
    for split, content in source.splits.items():
        files = list_files(split, content)
        kept = [index for index, file in enumerate(files) if file not in reasons]
        skipped += [SkippedImage(name=file, reason=reasons[file]) for file in files if file in reasons]
        if isinstance(content, EncodedSplit):
            splits[split] = replace(content, images=tuple(content.images[index] for index in kept))
        else:
            own, more = len(content.labels_N), content.more
            if source.base is not None and (named := [file for file in files[:own] if file in reasons]):
                raise DataError(
                    f"{name_some(named)}: not feedback, but images of the data set that it is added to; leave them out "
                    "there, then add the feedback again"
                )
            chosen = np.array([index for index in kept if index < own], dtype=np.int64)
            if more is not None:
                more = replace(more, images=tuple(more.images[index - own] for index in kept if index >= own))
            images_NHWC = content.images_NHWC if len(chosen) == own else content.images_NHWC[chosen]
            splits[split] = PixelSplit(
                images_NHWC, content.labels_N[chosen], more if more is not None and len(more) else None
            )
    if not skipped:
        raise DataError(f"none of {len(reasons)} excluded names is in the source: {name_some(sorted(reasons), 3)}")
    emptied = _list_labels(source.splits) - _list_labels(splits)
    if emptied:
        classes = name_some(source.classes[label] for label in sorted(emptied))
        raise DataError(f"the excluded names are all images of {classes}; keep some of them: delete their rows")
    unknown = sorted(set(reasons) - {one.name for one in skipped})
    skipped += [SkippedImage(name=name, reason="named for exclusion, but not in the source") for name in unknown]
    return replace(
        source,
        splits={name: one for name, one in splits.items() if len(one)},
        skipped=(*source.skipped, *skipped),
    )


def _list_labels(splits: Mapping[str, EncodedSplit | PixelSplit]) -> set[int]:
    """Return the labels of the training images, of all images in a set for evaluation only."""
    found: set[int] = set()
    for content in [splits["train"]] if "train" in splits else splits.values():
        if isinstance(content, EncodedSplit):
            found |= {image.label for image in content.images}
        else:
            found |= {*content.labels_N.tolist(), *(image.label for image in (content.more or EncodedSplit(())).images)}
    return found


def list_files(split: str, content: EncodedSplit | PixelSplit) -> list[str]:
    """Return the name of each image of a split: that of its file, or `train/0` where it comes as pixels."""
    if isinstance(content, EncodedSplit):
        return [escape_bytes(name_image(image)) for image in content.images]
    more = [] if content.more is None else list_files(split, content.more)
    return [f"{split}/{index}" for index in range(len(content.labels_N))] + more
