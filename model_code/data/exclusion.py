"""Images that are left out of a source by their file names."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from model_code.data.cache import SkippedImage
from model_code.data.sources.images import EncodedSplit, ImageSource, PixelSplit, escape_bytes, name_image, name_some
from model_code.disk import write_atomically, writing_to
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
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}; give a table in UTF-8 with a column {COLUMN}") from error
    rows = csv.DictReader(io.StringIO(text, newline=""))
    names = [row[COLUMN] for row in rows] if COLUMN in (rows.fieldnames or ()) else text.splitlines()
    found = frozenset(name.strip() for name in names if name and name.strip())
    if not found:
        raise DataError(f"{file} names no image; give a table with a column {COLUMN}, or a name in each line")
    return found


def write_table(
    file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], *, keeps_edited: bool = False
) -> bool:
    """Write a CSV table; its column `file`, if it has one, is what `read_exclusions` reads.

    Args:
        file: The table.
        columns: Its header.
        rows: Values of each row.
        keeps_edited: True to leave a file with another content as it is.

    Returns:
        False if there was such a file.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    content = text.getvalue().encode(errors="backslashreplace")
    if keeps_edited and file.exists() and file.read_bytes() != content:
        return False
    with writing_to(file.parent, len(content), f"writing {file.name}"):
        write_atomically(file, content)
    return True


def leave_out(source: ImageSource, reasons: Mapping[str, str]) -> ImageSource:
    """Return a source without some of its images, which are reported as skipped.

    Args:
        source: Classes and images.
        reasons: Name of each image to leave out -> why.

    Raises:
        DataError: Nothing has one of the names, or they are images that feedback is added to.
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
            splits[split] = PixelSplit(
                content.images_NHWC[chosen], content.labels_N[chosen], more if more is not None and len(more) else None
            )
    if not skipped:
        raise DataError(f"none of {len(reasons)} excluded names is in the source: {name_some(sorted(reasons), 3)}")
    unknown = sorted(set(reasons) - {one.name for one in skipped})
    skipped += [SkippedImage(name=name, reason="named for exclusion, but not in the source") for name in unknown]
    return replace(
        source,
        splits={name: one for name, one in splits.items() if len(one)},
        skipped=(*source.skipped, *skipped),
    )


def list_files(split: str, content: EncodedSplit | PixelSplit) -> list[str]:
    """Return the name of each image of a split: that of its file, or `train/0` where it comes as pixels."""
    if isinstance(content, EncodedSplit):
        return [escape_bytes(name_image(image)) for image in content.images]
    more = [] if content.more is None else list_files(split, content.more)
    return [f"{split}/{index}" for index in range(len(content.labels_N))] + more
