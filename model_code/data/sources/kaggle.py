"""Kaggle's layout: `trainImages/<id>.png` (or `train/`) beside `trainLabels.csv` with columns id,label.

There is no test split: the pictures that Kaggle calls test have no labels.
"""

import csv
import io
from pathlib import PurePosixPath

from model_code.data.sources.archives import Archive
from model_code.data.sources.pictures import (
    EncodedPicture,
    EncodedSplit,
    PictureSource,
    is_picture_name,
    name_some,
    order_classes,
)
from model_code.errors import DataError

LABELS_FILE = "trainLabels.csv"
PICTURE_FOLDERS = ("trainImages", "train")


def find_labels_file(archive: Archive) -> str | None:
    """Return the name of the label table in `archive`; None when it has another layout."""
    return next((name for name in archive.files if PurePosixPath(name).name == LABELS_FILE), None)


def read_kaggle(archive: Archive, table: str, expected_classes: tuple[str, ...] | None = None) -> PictureSource:
    """List the pictures of Kaggle's layout, ids in the order of numbers: 2 comes before 10.

    Args:
        archive: Open; it must stay open until the pictures are read.
        table: Name of the label table in it, from `find_labels_file`.
        expected_classes: Official order; None sorts by name.

    Raises:
        DataError: The table has other columns, an id that is no number or twice, or labels and pictures do
            not pair up.
    """
    where = f"{archive.path}/{table}"
    label_by_id = _read_labels(archive, table)
    pictures = _find_pictures(archive, PurePosixPath(table).parent)
    without_picture = sorted(label_by_id.keys() - pictures.keys())
    if without_picture:
        raise DataError(
            f"{where}: {len(without_picture)} labels have no picture "
            f"(ids {name_some(map(str, without_picture))}); complete {' or '.join(PICTURE_FOLDERS)}/"
        )
    without_label = sorted(pictures.keys() - label_by_id.keys())
    if without_label:
        raise DataError(
            f"{where}: {len(without_label)} pictures have no label "
            f"(ids {name_some(map(str, without_label))}); complete the table or remove them"
        )
    classes = order_classes(label_by_id.values(), expected_classes, where)
    index_by_class = {name: index for index, name in enumerate(classes)}
    return PictureSource(
        description=f"Kaggle layout in {archive.path.name}",
        classes=classes,
        splits={
            "train": EncodedSplit(
                tuple(
                    EncodedPicture(archive, member, index_by_class[label_by_id[picture_id]])
                    for picture_id, member in sorted(pictures.items())
                )
            )
        },
    )


def _read_labels(archive: Archive, table: str) -> dict[int, str]:
    where = f"{archive.path}/{table}"
    try:
        reader = csv.DictReader(io.StringIO(archive.read(table).decode("utf-8-sig")), strict=True)
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{where} is not a table of comma-separated UTF-8 text ({error})") from error
    columns = list(reader.fieldnames or [])
    if columns != ["id", "label"] or not rows:
        raise DataError(
            f"{where}: found columns {columns} and {len(rows)} rows; expected exactly id,label and at least one row"
        )
    label_by_id: dict[int, str] = {}
    for row in rows:
        picture_id = _parse_id(row["id"] or "", where)
        if picture_id in label_by_id:
            raise DataError(f"{where}: id {picture_id} is there twice; each picture has one label")
        if not row["label"] or len(row) > 2:
            raise DataError(f"{where}: id {picture_id} has an empty label or a third column; give its one label")
        label_by_id[picture_id] = row["label"]
    return label_by_id


def _find_pictures(archive: Archive, parent: PurePosixPath) -> dict[int, str]:
    folder = next((str(parent / name) for name in PICTURE_FOLDERS if str(parent / name) in archive.folders), None)
    if folder is None:
        raise DataError(f"{archive.path}: no {' or '.join(PICTURE_FOLDERS)} folder beside {LABELS_FILE}; add it")
    pictures: dict[int, str] = {}
    for member in archive.files:
        path = PurePosixPath(member)
        if str(path.parent) == folder and is_picture_name(member):
            picture_id = _parse_id(path.stem, f"{archive.path}/{member}")
            if picture_id in pictures:
                raise DataError(f"{archive.path}: {member} and {pictures[picture_id]} have one id; keep one of them")
            pictures[picture_id] = member
    if not pictures:
        raise DataError(f"{archive.path}/{folder}: no pictures; expected <id>.png")
    return pictures


def _parse_id(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise DataError(f"{where}: id {text[:30]!r} is not a number; ids are whole numbers such as 1 or 50000")
    return int(text)
