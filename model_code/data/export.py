"""A packed data set -> a zip of class folders, which `data add`, torchvision and Hugging Face's ImageFolder read."""

import io
import zipfile
from pathlib import Path

from PIL import Image

from model_code.data.cache import PackedDataset
from model_code.data.sources.class_folders import SPLIT_FOLDERS
from model_code.disk import writing_to
from model_code.errors import UsageError

_FOLDERS = {split: folder for folder, split in reversed(SPLIT_FOLDERS.items())}


def export_dataset(dataset: PackedDataset, file: Path) -> int:
    """Write every image as `<split>/<class>/<number>.png` with the packed pixels, and return how many there are.

    Images without a label are left out. A class name keeps its characters but for `/`, which becomes `_`.

    Raises:
        UsageError: The file is there already.
        DiskFullError: The disk is full.
    """
    if file.exists():
        raise UsageError(f"{file} is there already; choose another name or remove it")
    folders = [name.replace("/", "_") for name in dataset.classes]
    size_bytes = sum(split.images_NHWC.nbytes for split in dataset.splits.values())
    scratch = file.with_name(f".{file.name}.part")
    count = 0
    try:
        with writing_to(file.parent, size_bytes, f"writing {file.name}"):
            with zipfile.ZipFile(scratch, "w", zipfile.ZIP_STORED) as archive:
                for name, split in dataset.splits.items():
                    for row, label in enumerate(split.labels_N):
                        if label >= 0:
                            content = io.BytesIO()
                            Image.fromarray(split.images_NHWC[row]).save(content, "PNG")
                            member = f"{_FOLDERS.get(name, name)}/{folders[label]}/{row:06}.png"
                            archive.writestr(zipfile.ZipInfo(member), content.getvalue())
                            count += 1
            scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)
    return count
