"""Packed images of a shared disk -> a copy on this machine's own disk, made once for all of its trainings."""

import os
import shutil
from pathlib import Path
from tempfile import mkdtemp

from model_code.data.cache import MANIFEST_FILE, PackedDataset, open_dataset, read_manifest
from model_code.data.packing import remove_leftovers
from model_code.data.progress import show_progress
from model_code.disk import check_free_space, flush_folder, hold_lock, write_atomically, writing_to
from model_code.errors import DarkroomError, DataError


def copy_locally(dataset: PackedDataset, local_cache_dir: Path) -> PackedDataset:
    """Return a data set as it is on a disk of this machine, where it replaces what was copied there before.

    Trainings that read the earlier copy go on: they hold its files open. Without room, or where nothing can be written,
    a line says so and the data set is returned as it is.

    Args:
        dataset: The data set.
        local_cache_dir: The folder of all copies; made when missing.
    """
    name, shared_dir = dataset.name, dataset.path.parent.parent
    try:
        with hold_lock(local_cache_dir / f"{name}.lock", f"copying {name}"):
            if not _is_copied(dataset, local_cache_dir):
                _copy(dataset, local_cache_dir)
            return open_dataset(name, local_cache_dir)
    except DarkroomError as error:
        print(f"{name} is read from {shared_dir}: {error}", flush=True)
        return dataset


def _is_copied(dataset: PackedDataset, local_cache_dir: Path) -> bool:
    try:
        return read_manifest(dataset.name, local_cache_dir).folder == dataset.path.name
    except DataError:
        return False


def _copy(dataset: PackedDataset, local_cache_dir: Path) -> None:
    name, version = dataset.name, dataset.path
    manifest = read_manifest(name, version.parent.parent)
    if manifest.folder != version.name:
        raise DataError(f"{name} is packed anew at this moment")
    files = [file for file in version.iterdir() if file.is_file()]
    size_bytes = sum(file.stat().st_size for file in files)
    purpose = f"copying {name} to {local_cache_dir}"
    folder = local_cache_dir / name
    with writing_to(local_cache_dir, size_bytes, purpose):
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(name, local_cache_dir)
        folder.mkdir(exist_ok=True)
        check_free_space(folder, size_bytes, purpose)
        scratch = Path(mkdtemp(prefix="scratch-", dir=folder))
        try:
            with show_progress(purpose, size_bytes, "B") as advance:
                for file in files:
                    shutil.copyfile(file, scratch / file.name)
                    with (scratch / file.name).open("rb") as copy:
                        os.fsync(copy.fileno())
                    advance(file.stat().st_size)
            scratch.rename(folder / version.name)
            flush_folder(folder)
            write_atomically(folder / MANIFEST_FILE, manifest.model_dump_json(indent=1).encode())
            remove_leftovers(name, local_cache_dir)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
