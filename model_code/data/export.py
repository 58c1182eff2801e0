"""A packed data set -> class folders with labels in a zip (ImageFolder, torchvision), or Hugging Face's Parquet."""

import csv
import io
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from model_code.data.cache import PackedDataset
from model_code.data.sources.class_folders import SPLIT_FOLDERS
from model_code.data.sources.image_folder import FILE_COLUMN, LABEL_COLUMNS, TABLE
from model_code.data.sources.parquet import FEATURES_KEY
from model_code.disk import writing_to
from model_code.errors import UsageError

# What a folder's name cannot have everywhere, and what would read as an escape.
_UNSAFE = r'[/\\:*?"<>|\x00-\x1f]|^\.|[. ]$|%(?=[0-9A-F]{2})'
_FOLDERS = {split: folder for folder, split in reversed(SPLIT_FOLDERS.items())}
_GROUP_ROWS = 1000


def export_dataset(dataset: PackedDataset, out: Path, is_parquet: bool = False) -> int:
    """Write every image with a label as PNG with the packed pixels, and return how many there are.

    A zip has them as `<split>/<class>/<number>.png`, where characters that are not safe everywhere are percent-encoded,
    and the labels in `<split>/metadata.csv`; a folder of Parquet has `data/<split>-00000-of-00001.parquet`. From both,
    `data add` takes the same classes in the same order.

    Raises:
        UsageError: There is something at `out` already.
        DiskFullError: The disk is full.
    """
    if out.exists():
        raise UsageError(f"{out} is there already; choose another name or remove it")
    size_bytes = sum(split.images_NHWC.nbytes for split in dataset.splits.values())
    scratch = out.with_name(f".{out.name}.part")
    try:
        with writing_to(out.parent, size_bytes, f"writing {out.name}"):
            out.parent.mkdir(parents=True, exist_ok=True)
            (_write_parquet if is_parquet else _write_zip)(dataset, scratch)
            scratch.replace(out)
    finally:
        scratch.unlink(missing_ok=True) if scratch.is_file() else shutil.rmtree(scratch, ignore_errors=True)
    return sum(int((split.labels_N >= 0).sum()) for split in dataset.splits.values())


def _write_zip(dataset: PackedDataset, file: Path) -> None:
    folders = [re.sub(_UNSAFE, lambda unsafe: f"%{ord(unsafe[0]):02X}", name) for name in dataset.classes]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, split in dataset.splits.items():
            top, rows = _FOLDERS.get(name, name), []
            for row in np.flatnonzero(split.labels_N >= 0):
                label = split.labels_N[row]
                rows.append((f"{folders[label]}/{row:06}.png", dataset.classes[label]))
                archive.writestr(zipfile.ZipInfo(f"{top}/{rows[-1][0]}"), _encode(split.images_NHWC[row]))
            if rows:
                table = io.StringIO()
                csv.writer(table).writerows([(FILE_COLUMN, LABEL_COLUMNS[0]), *rows])
                archive.writestr(zipfile.ZipInfo(f"{top}/{TABLE}"), table.getvalue())


def _write_parquet(dataset: PackedDataset, folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    features = {"image": {"_type": "Image"}, "label": {"names": list(dataset.classes), "_type": "ClassLabel"}}
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema(
        [("image", image), ("label", pyarrow.int64())], {FEATURES_KEY: json.dumps({"info": {"features": features}})}
    )
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    for name, split in dataset.splits.items():
        rows = np.flatnonzero(split.labels_N >= 0)
        if len(rows):
            with parquet.ParquetWriter(folder / f"data/{name}-00000-of-00001.parquet", schema) as writer:
                for group in np.split(rows, range(_GROUP_ROWS, len(rows), _GROUP_ROWS)):
                    images = [{"bytes": _encode(split.images_NHWC[row]), "path": f"{row:06}.png"} for row in group]
                    writer.write_table(pyarrow.table([images, split.labels_N[group]], schema))


def _encode(image_HWC: npt.NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image_HWC).save(content, "PNG")
    return content.getvalue()
