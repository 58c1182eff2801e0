"""Kaggle's layout: `trainImages/<id>.png` (or `train/`) beside `trainLabels.csv` with columns id,label.

The table may be in UTF-8 or UTF-16, separated by commas, semicolons or tabs, with an index column beside the two.

There is no test split: the images that Kaggle calls test have no labels.
"""

import csv
import io
import re
from pathlib import PurePosixPath

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
from model_code.errors import DataError

LABELS_FILE = "trainLabels.csv"
IMAGE_FOLDERS = ("trainImages", "train")
# What pandas and spreadsheets write for the index and for a missing label, and for a number beside missing ones.
_INDEX_COLUMNS = {"", "index", "unnamed: 0"}
NO_LABELS = {"", "nan", "<na>", "n/a", "#n/a", "null"}
_ID_PATTERN = r"([0-9]{1,18})(?:\.0+)?"


def find_labels_file(archive: Archive) -> str | None:
    """Return the name of the label table in `archive`; None when it has another layout."""
    return next((name for name in archive.files if PurePosixPath(name).name == LABELS_FILE), None)


@layout("Kaggle's trainImages/<id>.png + trainLabels.csv", lambda archive: find_labels_file(archive) is not None)
def read_kaggle(archive: Archive, expected_classes: tuple[str, ...] | None = None) -> ImageSource:
    """List the images of Kaggle's layout, ids in the order of numbers: 2 comes before 10.

    Args:
        archive: Open; it must stay open until the images are read.
        expected_classes: Official order; None sorts by name.

    Raises:
        DataError: The table has other columns, an id that is no number or twice, or labels and images do
            not pair up.
    """
    table = find_labels_file(archive)
    assert table is not None, "what the layout is recognised by"
    where = f"{archive.path}/{table}"
    label_by_id = _read_labels(archive, table)
    images = _find_images(archive, PurePosixPath(table).parent)
    without_image = sorted(label_by_id.keys() - images.keys())
    if without_image:
        raise DataError(
            f"{where}: {len(without_image)} labels have no image "
            f"(ids {name_some(map(str, without_image))}); complete {' or '.join(IMAGE_FOLDERS)}/"
        )
    without_label = sorted(images.keys() - label_by_id.keys())
    if without_label:
        raise DataError(
            f"{where}: {len(without_label)} images have no label "
            f"(ids {name_some(map(str, without_label))}); complete the table or remove them"
        )
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
    )


def _read_labels(archive: Archive, table: str) -> dict[int, str]:
    where = f"{archive.path}/{table}"
    header, rows = read_rows(archive.read(table), where)
    columns = [name for name in header if name not in _INDEX_COLUMNS]
    if sorted(columns) != ["id", "label"] or not rows:
        raise DataError(
            f"{where}: found columns {columns} and {len(rows)} rows; expected exactly id,label and at least one row"
        )
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


def read_rows(data: bytes, where: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header in lower case and the rows with their line numbers, separated by comma, semicolon or tab."""
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
        rows = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{where} is not a table in UTF-8 or UTF-16 with commas, semicolons or tabs ({error})"
        ) from error
    return ([name.strip().casefold() for name in rows[0][1]], rows[1:]) if rows else ([], [])


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


def _parse_id(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise DataError(f"{where}: id {text[:30]!r} is not a number; ids are whole numbers such as 1 or 50000")
    return int(text)
