"""A packed data set -> a zip of class folders with labels, as Hugging Face's ImageFolder and torchvision read it."""

import csv
import io
import re
import zipfile
from pathlib import Path

from PIL import Image

from model_code.data.cache import PackedDataset
from model_code.data.sources.class_folders import SPLIT_FOLDERS
from model_code.data.sources.image_folder import FILE_COLUMN, LABEL_COLUMNS, TABLE
from model_code.disk import writing_to
from model_code.errors import UsageError

# What a folder's name cannot have everywhere, and what would read as an escape.
_UNSAFE = r'[/\\:*?"<>|\x00-\x1f]|^\.|[. ]$|%(?=[0-9A-F]{2})'
_FOLDERS = {split: folder for folder, split in reversed(SPLIT_FOLDERS.items())}


def export_dataset(dataset: PackedDataset, file: Path) -> int:
    """Write every image as `<split>/<class>/<number>.png` with the packed pixels, and return how many there are.

    `<split>/metadata.csv` has the labels, from which `data add` takes the same classes in the same order. In the names
    of folders, characters that are not safe everywhere are percent-encoded. Images without a label are left out.

    Raises:
        UsageError: The file is there already.
        DiskFullError: The disk is full.
    """
    if file.exists():
        raise UsageError(f"{file} is there already; choose another name or remove it")
    folders = [re.sub(_UNSAFE, lambda unsafe: f"%{ord(unsafe[0]):02X}", name) for name in dataset.classes]
    size_bytes = sum(split.images_NHWC.nbytes for split in dataset.splits.values())
    scratch = file.with_name(f".{file.name}.part")
    count = 0
    try:
        with writing_to(file.parent, size_bytes, f"writing {file.name}"):
            with zipfile.ZipFile(scratch, "w", zipfile.ZIP_STORED) as archive:
                for name, split in dataset.splits.items():
                    top, rows = _FOLDERS.get(name, name), []
                    for row, label in enumerate(split.labels_N):
                        if label >= 0:
                            content = io.BytesIO()
                            Image.fromarray(split.images_NHWC[row]).save(content, "PNG")
                            rows.append((f"{folders[label]}/{row:06}.png", dataset.classes[label]))
                            archive.writestr(zipfile.ZipInfo(f"{top}/{rows[-1][0]}"), content.getvalue())
                    if rows:
                        table = io.StringIO()
                        csv.writer(table).writerows([(FILE_COLUMN, LABEL_COLUMNS[0]), *rows])
                        archive.writestr(zipfile.ZipInfo(f"{top}/{TABLE}"), table.getvalue())
                    count += len(rows)
            scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)
    return count
