"""Hugging Face's Parquet, each row an encoded image and a label.

    data/train-00000-of-00002.parquet, data/test-…    or    train/0000.parquet, …

The split is the first folder, or else the file, with one word that names one, else train; without train the set is for
evaluation only. Class folders beside the files win.
"""

import json
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

from model_code.data.sources.archives import Archive, FolderArchive, Problem, naming_damage
from model_code.data.sources.class_folders import find_split_word, has_class_folders
from model_code.data.sources.image_folder import LABEL_COLUMNS
from model_code.data.sources.images import (
    ImageSource,
    find_twins,
    index_labels,
    list_learned,
    normalise_class_name,
    order_classes,
    settle_problems,
)
from model_code.data.sources.layout import layout
from model_code.data.tables import NO_LABELS
from model_code.errors import DataError

SUFFIX = ".parquet"
FEATURES_KEY = b"huggingface"
BATCH_ROWS = 16
# Without a buffer pyarrow reads the column of a whole row group at once.
_BUFFER_BYTES = 2**20
_LABEL_TYPES = r"u?int\d+|(large_)?string|dictionary<.*string.*>"


@dataclass(frozen=True)
class _Table:
    """One file.

    Attributes:
        image_column: Where the encoded bytes are: `image.bytes`, or `image` where it has no path beside them.
        group_starts: Number of the first row of each row group, and of all rows.
        labels: Class name of each row; None without one.
        label_kind: "names" or "numbers", what the labels are.
    """

    image_column: str
    group_starts: tuple[int, ...]
    labels: tuple[str | None, ...]
    label_kind: str


class _ParquetArchive(Archive):
    """The images of Parquet files, called FILE/ROW; read in order, each row is read once, a few at a time."""

    def __init__(self, path: Path, tables: Mapping[str, _Table]) -> None:
        super().__init__(path)
        self._tables = tables
        self._group: tuple[str, int] = ("", 0)
        self._first_row = 0
        self._images: Sequence[Any] = ()
        self._batches: Iterator[Any] = iter(())
        self._damage = ""
        self._set_members(
            {f"{name}/{row}": None for name, table in tables.items() for row in range(len(table.labels))}, set()
        )

    def read(self, name: str) -> bytes:
        """Return the bytes of one image."""
        file, _, row = name.rpartition("/")
        self._seek(file, int(row))
        content = self._images[int(row) - self._first_row].as_py()
        if content is None:
            raise DataError(f"{self.path}: {name} has no bytes, only a path; store the images in the file")
        self._check_size(name, len(content))
        return bytes(content)

    def _seek(self, file: str, row: int) -> None:
        """Read on to the batch that holds a row, from the start of its row group if that is not behind."""
        group = bisect_right(self._tables[file].group_starts, row) - 1
        if self._group != (file, group) or row < self._first_row:
            self._group, self._images, self._damage = (file, group), (), ""
            self._first_row = self._tables[file].group_starts[group]
            self._batches = _read_batches(self.path / file, self._tables[file].image_column, group)
        if self._damage:
            raise DataError(self._damage)
        try:
            while row >= self._first_row + len(self._images):
                self._first_row += len(self._images)
                self._images = ()  # freed before the next are read
                self._images = next(self._batches)
        except DataError as error:
            self._damage = str(error)
            raise


@layout("Hugging Face's Parquet", lambda archive: any(map(_is_table, archive.files)) and not has_class_folders(archive))
def read_parquet(archive: Archive, expected_classes: tuple[str, ...] | None = None) -> ImageSource:
    """List the images of Parquet files, in the order of the files' names and of their rows.

    Args:
        archive: A folder.
        expected_classes: Official order; None sorts by name.

    Raises:
        DataError: The archive is no folder, pyarrow is missing, a file has not one column of images and one of labels,
            or a list of all else that is wrong: rows without a label, classes that look alike or that train, if it is
            there, does not have.
    """
    if not isinstance(archive, FolderArchive):
        raise DataError(f"{archive.path}: Parquet is read from folders only; extract it and give the folder")
    tables = {name: _open_table(archive.path / name) for name in sorted(filter(_is_table, archive.files))}
    by_kind = {table.label_kind: name for name, table in tables.items() if any(table.labels)}
    if len(by_kind) > 1:
        raise DataError(
            f"{archive.path}: the labels are names in {by_kind['names']} and numbers without names in "
            f"{by_kind['numbers']}; store them alike in all files"
        )
    rows = _ParquetArchive(archive.path, tables)
    by_split: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
    for name, table in tables.items():
        by_split[_name_split(name)] += [(f"{name}/{row}", label) for row, label in enumerate(table.labels)]
    is_unlabelled = {split: not any(label for _, label in found) for split, found in by_split.items()}
    learned = list_learned(by_split)
    problems = [
        Problem("label that train does not have" if label else "row without a label", name, can_skip=False)
        for split, found in by_split.items()
        for name, label in found
        if label not in learned and not (split in ("test", "unlabelled") and is_unlabelled[split])
    ]
    where = str(archive.path)
    settle_problems(where, problems + find_twins(learned), skip=False)
    classes = order_classes(learned, expected_classes, where)
    return ImageSource(
        description=f"Parquet in {archive.path.name}",
        classes=classes,
        splits=index_labels(rows, by_split, classes),
        ignored=tuple(f"{archive.path.name}/{name}" for name in archive.files if not _is_table(name)),
    )


def _is_table(name: str) -> bool:
    return name.lower().endswith(SUFFIX)


def _name_split(name: str) -> str:
    path = PurePosixPath(name)
    return next(filter(None, map(find_split_word, [*path.parts[:-1], path.stem])), "train")


def _open_table(file: Path) -> _Table:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{file}: reading Parquet needs pyarrow; install it: pip install pyarrow") from error
    with naming_damage(file), parquet.ParquetFile(file) as table:
        schema, metadata = table.schema_arrow, table.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    types = {column.name: str(column.type) for column in schema}
    features = _read_features(schema.metadata)
    images = [
        name for name, kind in types.items() if re.match(r"(large_)?binary$|struct<.*bytes: (large_)?binary", kind)
    ]
    labels = [name for name in types if features.get(name, {}).get("_type") == "ClassLabel"]
    labels = labels or [name for name in types if name.lower() in LABEL_COLUMNS]
    if len(images) != 1 or len(labels) != 1 or not re.match(_LABEL_TYPES, types[labels[0]]):
        raise DataError(
            f"{file}: found columns {', '.join(f'{name} ({kind})' for name, kind in types.items())}; expected one of "
            f"encoded images and one ClassLabel, or {', '.join(LABEL_COLUMNS)} of whole numbers or texts; remove the "
            "others"
        )
    names = features.get(labels[0], {}).get("names")
    is_number = re.match(r"u?int", types[labels[0]]) and not isinstance(names, list)
    return _Table(
        image_column=f"{images[0]}.bytes" if types[images[0]].startswith("struct") else images[0],
        group_starts=tuple(accumulate(sizes, initial=0)),
        labels=tuple(_name_class(value, names) for value in _read_labels(file, labels[0])),
        label_kind="numbers" if is_number else "names",
    )


def _read_features(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    try:
        features = json.loads((metadata or {})[FEATURES_KEY])["info"]["features"]
        return {name: dict(one) for name, one in features.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}


def _read_labels(file: Path, column: str) -> list[Any]:
    from pyarrow import parquet

    with naming_damage(file), parquet.ParquetFile(file) as table:
        return list(table.read([column]).column(0).to_pylist())


def _read_batches(file: Path, column: str, group: int) -> Iterator[Any]:
    """Yield the column of a row group, of a structure its bytes, `BATCH_ROWS` at a time."""
    from pyarrow import parquet
    from pyarrow.types import is_struct

    with naming_damage(file), parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False) as table:
        for batch in table.iter_batches(BATCH_ROWS, [group], [column], use_threads=False):
            values = batch.column(0)
            yield values.field("bytes") if is_struct(values.type) else values
        raise EOFError(f"row group {group} ends early")


def _name_class(value: object, names: object) -> str | None:
    if isinstance(value, int) and isinstance(names, list):
        value = names[value] if 0 <= value < len(names) else None
    elif isinstance(value, int) and value < 0:  # what Hugging Face writes for no label
        value = None
    name = normalise_class_name("" if value is None else str(value))
    return None if name.casefold() in NO_LABELS else name
