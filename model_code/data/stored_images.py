"""Packed data sets in DARKROOM_STORAGE: what one machine packed, another one downloads.

images/<name>/manifest.json    the checksum of the images, and where the files of the cache's folder are
images/<name>/<name>           a file
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from model_code.data.cache import PackedDataset, check_dataset_name, find_lock, is_added, open_dataset, read_manifest
from model_code.data.packing import remove_leftovers
from model_code.data.progress import show_progress
from model_code.data.revisions import SHORT_CHECKSUM, name_revision
from model_code.disk import flush_folder, hold_lock, writing_to
from model_code.errors import DataError, StorageError
from model_code.storage import MANIFEST_FILE, PlainPath, Storage, StoredFile

_FOLDER = "images"
_TRIES = 5


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    checksum: str
    files: Mapping[PlainPath, StoredFile]


def store_images(storage: Storage, dataset: PackedDataset, cache_dir: Path) -> None:
    """Store a data set, in the place of another one of its name, unless the storage has it.

    Raises:
        StorageError: The storage does not answer.
        DataError: The data set was packed anew since it was opened, or is damaged.
    """
    place = f"{_FOLDER}/{dataset.name}"
    if _has(_read_manifest(storage, place), dataset.checksum):
        return
    folder = cache_dir / dataset.name
    with hold_lock(find_lock(dataset.name, cache_dir), f"storing {dataset.name}"):
        if read_manifest(dataset.name, cache_dir).folder != dataset.path.name:
            raise DataError(f"{dataset.name} was packed anew meanwhile; repeat the command")
        before = _read_manifest(storage, place)
        if _has(before, dataset.checksum):
            return
        files = [*sorted(dataset.path.iterdir()), *sorted(folder.glob(f"*-{dataset.checksum[:SHORT_CHECKSUM]}.*"))]
        files.append(folder / MANIFEST_FILE)
        size_bytes = sum(file.stat().st_size for file in files)
        with show_progress(f"storing {dataset.name} in {storage.address}", size_bytes, "B") as advance:
            stored = {file.relative_to(folder).as_posix(): storage.store(file, place, advance) for file in files}
    manifest = _Manifest(checksum=dataset.checksum, files=stored)
    storage.write(f"{place}/{MANIFEST_FILE}", manifest.model_dump_json(indent=1).encode())
    for unused in _list_names(before) - _list_names(manifest):
        storage.remove(f"{place}/{unused}")


def fetch_images(storage: Storage, name: str, cache_dir: Path, checksum: str | None = None) -> None:
    """Download a data set into the cache, if it is not there and the storage has it.

    Args:
        storage: Where it is.
        name: Name of the data set.
        cache_dir: The folder of all packed data sets.
        checksum: Checksum of the wanted images, which take the place of others of that name; None for any.

    Raises:
        StorageError: The storage does not answer, has no images with this checksum, or a file there is damaged.
        DiskFullError: This machine has no room for it.
        UsageError: The name is not allowed.
    """
    check_dataset_name(name)
    if _is_here(name, cache_dir, checksum):
        return
    place, purpose = f"{_FOLDER}/{name}", f"fetching {name} from {storage.address}"
    with hold_lock(find_lock(name, cache_dir), purpose):
        for _ in range(_TRIES):
            if _is_here(name, cache_dir, checksum):
                return
            manifest = _read_manifest(storage, place)
            if checksum is not None and not _has(manifest, checksum):
                raise StorageError(f"{storage.address} lacks {name_revision(name, checksum)}; repeat the command")
            if manifest is None:
                return
            try:
                _fetch(storage, place, manifest, cache_dir, purpose)
            except StorageError:
                if _read_manifest(storage, place) == manifest:
                    raise
                continue  # other images took their place meanwhile
            return
        raise StorageError(f"{storage.address}: {name} changes while it is read; try again later")


def _fetch(storage: Storage, place: str, manifest: _Manifest, cache_dir: Path, purpose: str) -> None:
    name = place.rpartition("/")[2]
    scratch = cache_dir / f".fetching-{name}"
    size_bytes = sum(file.size_bytes for file in manifest.files.values())
    with writing_to(cache_dir, size_bytes, purpose):
        shutil.rmtree(scratch, ignore_errors=True)
        with show_progress(purpose, size_bytes, "B") as advance:
            storage.fetch(place, manifest.files, scratch / name, advance)
        fetched = open_dataset(name, scratch, f"remove {place} in {storage.address}")
        if fetched.checksum != manifest.checksum:
            raise StorageError(f"{storage.address}/{place} has other images than it says; remove it there")
        fetched.verify()
        if is_added(name, cache_dir):
            print(f"{name} takes the place of other images of that name in {cache_dir}", flush=True)
        _publish(scratch / name, cache_dir / name, fetched.path.name)
        shutil.rmtree(scratch)
    remove_leftovers(name, cache_dir)


def _publish(fetched: Path, folder: Path, version: str) -> None:
    """Move what was fetched into the cache; it counts with its manifest, the last."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / version).exists():
        shutil.rmtree(folder / version)
    (fetched / version).rename(folder / version)
    for file in fetched.iterdir():
        if file.name != MANIFEST_FILE:
            file.replace(folder / file.name)
    flush_folder(folder)
    (fetched / MANIFEST_FILE).replace(folder / MANIFEST_FILE)
    flush_folder(folder)


def _is_here(name: str, cache_dir: Path, checksum: str | None) -> bool:
    return is_added(name, cache_dir) and checksum in (None, read_manifest(name, cache_dir).checksum)


def _has(manifest: _Manifest | None, checksum: str) -> bool:
    return manifest is not None and manifest.checksum == checksum


def _list_names(manifest: _Manifest | None) -> set[str]:
    return set() if manifest is None else {file.stored_as for file in manifest.files.values()}


def _read_manifest(storage: Storage, place: str) -> _Manifest | None:
    try:
        return storage.read_json(f"{place}/{MANIFEST_FILE}", _Manifest)
    except ValidationError as error:
        raise StorageError(f"{storage.address}/{place}/{MANIFEST_FILE} is damaged; remove {place} there") from error
