"""Packed images of a shared disk -> a copy on this machine's own disk, made once for all of its trainings."""

import os
import shutil
import sys
from pathlib import Path

from model_code.data.cache import MANIFEST_FILE, PackedDataset, open_dataset, read_manifest
from model_code.data.progress import show_progress
from model_code.disk import check_free_space, count_free_bytes, flush_folder, hold_lock, write_atomically
from model_code.errors import DarkroomError, DataError

# All that is removed to make room lies below it.
_FOLDER = "darkroom-images"


def copy_locally(dataset: PackedDataset, local_cache_dir: Path) -> PackedDataset:
    """Return a data set as it is on a disk of this machine; what was not used for longest makes room for a new copy.

    Trainings that read a removed copy continue: they hold its files open. Where no copy can be made, a line on standard
    error says why, and the data set is returned as it is.

    Args:
        dataset: The data set.
        local_cache_dir: A folder on this machine's disk; made when missing.
    """
    copies, name = local_cache_dir / _FOLDER, dataset.name
    try:
        with hold_lock(copies / "copying.lock", f"copying {name}"):
            return _take(dataset, copies / f"{name}-{dataset.checksum[:16]}")
    except (DarkroomError, OSError) as error:
        print(f"{name} is read from {dataset.path}, not copied: {error}", file=sys.stderr, flush=True)
        return dataset


def _take(dataset: PackedDataset, copy: Path) -> PackedDataset:
    """Return the copy; one that is missing or damaged is made anew."""
    remedy = f"remove {copy}, it is copied again"
    try:
        opened = open_dataset(dataset.name, copy, remedy)
    except DataError:
        shutil.rmtree(copy, ignore_errors=True)
        _copy(dataset, copy)
        opened = open_dataset(dataset.name, copy, remedy)
        try:
            opened.verify()
        except DataError:
            shutil.rmtree(copy)
            raise
    os.utime(copy)  # tells when it was used
    return opened


def _copy(dataset: PackedDataset, copy: Path) -> None:
    manifest = read_manifest(dataset.name, dataset.path.parent.parent)
    if manifest.folder != dataset.path.name:
        raise DataError(f"{dataset.name} is packed anew at this moment")
    files = [(file, file.stat().st_size) for file in dataset.path.iterdir()]
    size_bytes = sum(size for _, size in files)
    purpose = f"copying {dataset.name} to {copy.parent}"
    for unused in sorted((one for one in copy.parent.iterdir() if one.is_dir()), key=lambda one: one.stat().st_mtime):
        if count_free_bytes(copy.parent) < size_bytes:
            shutil.rmtree(unused)
    check_free_space(copy.parent, size_bytes, purpose)
    folder = copy / dataset.name / manifest.folder
    folder.mkdir(parents=True)
    with show_progress(purpose, size_bytes, "B") as advance:
        for file, size in files:
            shutil.copyfile(file, folder / file.name)
            with (folder / file.name).open("rb") as copied:
                os.fsync(copied.fileno())
            advance(size)
    flush_folder(folder)
    # From here on the copy counts.
    write_atomically(folder.parent / MANIFEST_FILE, manifest.model_dump_json(indent=1).encode())
