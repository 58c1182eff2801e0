"""Kaggle's layout: `trainImages/<id>.png` (or `train/`) beside `trainLabels.csv` with columns id,label.

The table may be in UTF-8 or UTF-16, separated by commas, semicolons or tabs, with an index column beside the two.

There is no test split: the images that Kaggle calls test have no labels.
"""

import re
from collections import Counter
from pathlib import PurePosixPath

from model_code.data.cache import SkippedImage
from model_code.data.sources.archives import Archive, Problem
from model_code.data.sources.images import (
    EncodedImage,
    EncodedSplit,
    ImageSource,
    find_twins,
    is_image_name,
    list_ignored,
    name_some,
    normalise_class_name,
    order_classes,
    settle_problems,
)
from model_code.data.sources.layout import layout
from model_code.data.tables import NO_LABELS, read_rows
from model_code.errors import DataError

LABELS_FILE = "trainLabels.csv"
IMAGE_FOLDERS = ("trainImages", "train")
# What pandas and spreadsheets write for the index, and for a number beside missing ones.
_INDEX_COLUMNS = {"", "index", "unnamed: 0"}
_ID_PATTERN = r"([0-9]{1,18})(?:\.0+)?"


def find_labels_files(archive: Archive) -> list[str]:
    """Return the names of the label tables in `archive`; none when it has another layout."""
    return [name for name in archive.files if PurePosixPath(name).name == LABELS_FILE]


@layout("Kaggle's trainImages/<id>.png + trainLabels.csv", lambda archive: bool(find_labels_files(archive)))
def read_kaggle(archive: Archive, expected_classes: tuple[str, ...] | None = None) -> ImageSource:
    """List the images of Kaggle's layout, ids in the order of numbers: 2 comes before 10.

    Args:
        archive: Open; it must stay open until the images are read.
        expected_classes: Official order; None sorts by name.

    Raises:
        DataError: The table has other columns, an id that is no number or twice, or labels and images do
            not pair up.
    """
    tables = find_labels_files(archive)
    if len(tables) > 1:
        raise DataError(f"{archive.path}: {name_some(tables)} are {len(tables)} label tables; give the folder of one")
    [table] = tables
    where = f"{archive.path}/{table}"
    label_by_id = _read_labels(archive, table)
    images = _find_images(archive, PurePosixPath(table).parent)
    without_image = sorted(label_by_id.keys() - images.keys())
    without_label = sorted(images.keys() - label_by_id.keys())
    faults = []
    if without_image:
        faults.append(
            f"{len(without_image)} labels have no image (ids {name_some(map(str, without_image))}); complete "
            f"{' or '.join(IMAGE_FOLDERS)}/"
        )
    if without_label:
        faults.append(
            f"{len(without_label)} images have no label (ids {name_some(map(str, without_label))}); complete the table "
            "or remove them"
        )
    if faults:
        raise DataError(f"{where}: {'; '.join(faults)}")
    classes = order_classes(label_by_id.values(), expected_classes, where)
    index_by_class = {name: index for index, name in enumerate(classes)}
    return ImageSource(
        description=f"Kaggle layout in {archive.path.name}",
        classes=classes,
        splits={
            "train": EncodedSplit(
                tuple(
                    EncodedImage(archive, member, index_by_class[label_by_id[image_id]])
                    for image_id, member in sorted(images.items())
                )
            )
        },
        ignored=list_ignored(archive, [table]),
        skipped=_tell_unread(archive, set(images.values())),
    )


def _read_labels(archive: Archive, table: str) -> dict[int, str]:
    where = f"{archive.path}/{table}"
    header, rows = read_rows(archive.read(table), where)
    columns = [name for name in header if name not in _INDEX_COLUMNS]
    if sorted(columns) != ["id", "label"]:
        raise DataError(f"{where}: found columns {columns}; expected exactly id,label: rename or remove the others")
    if not rows:
        raise DataError(f"{where}: no rows; complete the table")
    id_column, label_column = header.index("id"), header.index("label")
    label_by_id: dict[int, str] = {}
    problems = []
    for line, row in rows:
        reason = None
        if len(row) != len(header):
            reason = f"{len(row)} cells instead of {len(header)}"
        elif not (number := re.fullmatch(_ID_PATTERN, row[id_column].strip())):
            reason = f"id {row[id_column][:30]!r} is not a whole number"
        elif (image_id := int(number[1])) in label_by_id:
            reason = f"id {image_id} is there twice"
        elif (label := normalise_class_name(row[label_column])).casefold() in NO_LABELS:
            reason = f"label {row[label_column]!r} of id {image_id} is none"
        else:
            label_by_id[image_id] = label
        if reason is not None:
            problems.append(Problem("line without one id and one label", f"line {line} ({reason})", can_skip=False))
    settle_problems(where, problems + find_twins(label_by_id.values()), skip=False)
    return label_by_id


def _find_images(archive: Archive, parent: PurePosixPath) -> dict[int, str]:
    folder = next((str(parent / name) for name in IMAGE_FOLDERS if str(parent / name) in archive.folders), None)
    if folder is None:
        raise DataError(f"{archive.path}: no {' or '.join(IMAGE_FOLDERS)} folder beside {LABELS_FILE}; add it")
    images: dict[int, str] = {}
    for member in archive.files:
        path = PurePosixPath(member)
        if str(path.parent) == folder and is_image_name(member):
            image_id = _parse_id(path.stem, f"{archive.path}/{member}")
            if image_id in images:
                raise DataError(f"{archive.path}: {member} and {images[image_id]} have one id; keep one of them")
            images[image_id] = member
    if not images:
        raise DataError(f"{archive.path}/{folder}: no images; expected <id>.png")
    return images


def _tell_unread(archive: Archive, read: set[str]) -> tuple[SkippedImage, ...]:
    """Return the folders of images that are not those of the table, such as the ones that Kaggle calls test."""
    counts = Counter(
        str(PurePosixPath(name).parent) for name in archive.files if is_image_name(name) and name not in read
    )
    return tuple(
        SkippedImage(
            name=str(PurePosixPath(archive.path.name, folder)), reason=f"{count} images that the table does not label"
        )
        for folder, count in sorted(counts.items())
    )


def _parse_id(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise DataError(f"{where}: id {text[:30]!r} is not a number; ids are whole numbers such as 1 or 50000")
    return int(text)
