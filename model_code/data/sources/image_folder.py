"""Hugging Face's ImageFolder with a table of columns file_name and label, `metadata.csv` or `metadata.jsonl`.

    train/metadata.csv, train/0001.png, test/metadata.csv, …    or    metadata.csv with file_name train/0001.png

The split is the first folder of the file's path that names one, else train; without train the set is for evaluation
only. Without a table the same folders are class folders.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from model_code.data.cache import SkippedImage
from model_code.data.sources.archives import Archive, Problem
from model_code.data.sources.class_folders import find_split
from model_code.data.sources.images import (
    ImageSource,
    find_twins,
    index_labels,
    is_image_name,
    list_ignored,
    list_learned,
    normalise_class_name,
    order_classes,
    settle_problems,
)
from model_code.data.sources.layout import layout
from model_code.data.tables import NO_LABELS, read_rows
from model_code.errors import DataError

TABLE = "metadata.csv"
TABLES = (TABLE, "metadata.jsonl")
FILE_COLUMN = "file_name"
LABEL_COLUMNS = ("label", "labels", "class", "category")


def find_tables(archive: Archive) -> list[str]:
    """Return the names of the tables that have a column of file names or labels, or images beside them."""
    tables = [name for name in archive.files if PurePosixPath(name).name in TABLES]
    folders = {PurePosixPath(name).parent for name in archive.files if is_image_name(name)} if tables else set()
    return [
        name
        for name in tables
        if PurePosixPath(name).parent in folders or {FILE_COLUMN, *LABEL_COLUMNS} & set(_read_rows(archive, name)[0])
    ]


@layout(
    "Hugging Face's metadata.csv or metadata.jsonl with file_name,label", lambda archive: bool(find_tables(archive))
)
def read_image_folder(archive: Archive, expected_classes: tuple[str, ...] | None = None) -> ImageSource:
    """List the images of an ImageFolder with tables, in the order of the tables.

    Args:
        archive: Open; it must stay open until the images are read.
        expected_classes: Official order; None sorts by name.

    Raises:
        DataError: A table has no column of labels, or a list of all else that is wrong: lines without a file or
            a label, files named twice, images that no line names, classes that look alike or that train, if it is
            there, does not have.
    """
    label_by_file: dict[str, str] = {}
    problems: list[Problem] = []
    tables = find_tables(archive)
    for table in tables:
        _read_table(archive, table, label_by_file, problems)
    problems += [
        Problem(f"image that no {' or '.join(TABLES)} names", name, can_skip=False)
        for name in archive.files
        if is_image_name(name) and name not in label_by_file
    ]
    by_split: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, label in label_by_file.items():
        splits = filter(None, map(find_split, PurePosixPath(name).parts[:-1]))
        by_split[next(splits, "train")].append((name, label))
    learned = list_learned(by_split)
    problems += [
        Problem("label that train does not have", f"{name} ({label})", can_skip=False)
        for name, label in label_by_file.items()
        if label not in learned
    ]
    where = str(archive.path)
    settle_problems(where, problems + find_twins(label_by_file.values()), skip=False)
    classes = order_classes(learned, expected_classes, where)
    return ImageSource(
        description=f"ImageFolder in {archive.path.name}",
        classes=classes,
        splits=index_labels(archive, by_split, classes),
        ignored=list_ignored(archive, tables),
        skipped=_tell_contradictions(label_by_file),
    )


def _tell_contradictions(label_by_file: Mapping[str, str]) -> tuple[SkippedImage, ...]:
    """Return a note where images lie in the folder of another class than the table says."""
    labels = set(label_by_file.values())
    folder_by_file = {name: normalise_class_name(PurePosixPath(name).parent.name) for name in label_by_file}
    differing = [name for name, label in label_by_file.items() if folder_by_file[name] in labels - {label}]
    if not differing:
        return ()
    reason = f"{len(differing)} images lie in the folder of another class, such as {differing[0]}; the table counts"
    return (SkippedImage(name=" and ".join(TABLES), reason=reason, is_note=True),)


def _read_table(archive: Archive, table: str, label_by_file: dict[str, str], problems: list[Problem]) -> None:
    where = f"{archive.path}/{table}"
    header, rows = _read_rows(archive, table)
    found = [name for name in LABEL_COLUMNS if name in header]
    if len(found) != 1 or FILE_COLUMN not in header:
        wrong = [f"{FILE_COLUMN} is missing"] if FILE_COLUMN not in header else []
        if len(found) != 1:
            wrong.append(f"{' and '.join(found)} are labels" if found else "labels are missing")
        raise DataError(
            f"{where}: found columns {header}; expected {FILE_COLUMN} and one of {', '.join(LABEL_COLUMNS)}: "
            f"{' and '.join(wrong)}; complete the table, or remove it to read class folders"
        )
    file_column, label_column = header.index(FILE_COLUMN), header.index(found[0])
    present = set(archive.files)
    for line, row in rows:
        reason = None
        if len(row) != len(header):
            reason = f"{len(row)} cells instead of {len(header)}"
        elif (name := str(PurePosixPath(table).parent / (file := row[file_column] or "").strip())) not in present:
            reason = f"no file {file[:60]!r}"
        elif name in label_by_file:
            reason = f"{file[:60]!r} is named twice"
        elif (given := row[label_column]) is None:
            reason = "label is no text and no number"
        elif (label := normalise_class_name(given)).casefold() in NO_LABELS:
            reason = f"label {given!r} is none"
        else:
            label_by_file[name] = label
        if reason is not None:
            problems.append(
                Problem("line without one file and one label", f"{table}:{line} ({reason})", can_skip=False)
            )


def _read_rows(archive: Archive, table: str) -> tuple[list[str], Sequence[tuple[int, Sequence[str | None]]]]:
    """Return the header in lower case and the rows with their line numbers; None for what is no text and no number."""
    where = f"{archive.path}/{table}"
    if table.endswith(".csv"):
        return read_rows(archive.read(table), where)
    lines: list[tuple[int, dict[str, str | None]]] = []
    try:
        for number, line in enumerate(archive.read(table).split(b"\n"), start=1):
            if line.strip():
                lines.append((number, json.loads(line.decode("utf-8-sig"), object_pairs_hook=_read_cells)))
                if not isinstance(lines[-1][1], dict):
                    raise ValueError("a list or a value")
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{where}: line {number} is no JSON object in UTF-8 ({error}); correct it") from error
    header = list(dict.fromkeys(key for _, cells in lines for key in cells))
    return header, [(number, [cells.get(key, "") for key in header]) for number, cells in lines]


def _read_cells(pairs: list[tuple[str, object]]) -> dict[str, str | None]:
    cells = {key.strip().casefold(): _read_cell(cell) for key, cell in pairs}
    if len(cells) < len(pairs):
        raise ValueError("a key is there twice")
    return cells


def _read_cell(cell: object) -> str | None:
    if cell is None:
        return ""
    return str(cell) if isinstance(cell, str | int | float) else None
