"""Exchange of images, first weights and runs with other machines, where there is a DARKROOM_STORAGE."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING

from model_code.settings import Settings, load_settings

if TYPE_CHECKING:  # most homes have no storage
    from model_code.data.cache import PackedDataset
    from model_code.storage import Storage
    from model_code.training.run_folder import RunFolder, RunRecord
    from model_code.training.stored_runs import StoredRuns


def fetch_images(name: str, checksum: str | None = None) -> None:
    """Download a data set that is not in the home, or not with this checksum, if the storage has it.

    Raises:
        StorageError: The storage does not answer, or has no images with this checksum.
    """
    settings = load_settings()
    if settings.storage is not None:
        from model_code.data.stored_images import fetch_images as fetch

        fetch(_open(settings.storage), name, settings.cache_dir, checksum)


def fetch_complete(recipe: str) -> None:
    """Copy the complete runs of a recipe into the home."""
    if runs := _open_runs():
        runs.fetch_complete(recipe)


def fetch_run(recipe: str, run_id: str) -> None:
    """Copy a run into the home, complete or interrupted; the first digits of its id are enough."""
    if runs := _open_runs():
        runs.fetch(recipe, run_id)


def fetch_like(record: "RunRecord", *, is_offline: bool, is_complete: bool) -> None:
    """Copy the runs that are like a record, complete or interrupted ones, into the home."""
    if runs := _open_runs():
        runs.fetch_like(record, is_offline=is_offline, is_complete=is_complete)


def wait_for_like(record: "RunRecord", *, is_offline: bool) -> bool:
    """Wait while another machine trains a run like a record; return whether one did."""
    runs = _open_runs()
    return runs is not None and runs.wait_for_like(record, is_offline=is_offline)


def share(record: "RunRecord", dataset: "PackedDataset", start_run_id: str | None) -> None:
    """Store what other machines may need and the storage lacks: images, the run to start from, complete runs alike."""
    settings = load_settings()
    if runs := _open_runs():
        from model_code.data.stored_images import store_images
        from model_code.training.run_folder import is_like

        store_images(_open(str(settings.storage)), dataset, settings.cache_dir)
        runs.store_complete(lambda found: found.run_id == start_run_id or is_like(found, record))


def storing(folder: "RunFolder", *, is_offline: bool) -> AbstractContextManager[None]:
    """Store a run's folder while the block trains in it."""
    settings = load_settings()
    if settings.storage is None:
        return nullcontext()
    from model_code.training.stored_runs import RunUploader

    return RunUploader(_open(settings.storage), folder, is_offline=is_offline)


def remove_run(record: "RunRecord", *, is_offline: bool) -> None:
    """Remove a run from the storage."""
    if runs := _open_runs():
        runs.remove(record, is_offline=is_offline)


def check_storage(settings: Settings) -> None:
    """Write to the storage and read from it, if there is one."""
    if settings.storage is not None:
        _open(settings.storage).check()


def _open_runs() -> "StoredRuns | None":
    settings = load_settings()
    if settings.storage is None:
        return None
    from model_code.training.stored_runs import StoredRuns

    return StoredRuns(_open(settings.storage), settings.checkpoints_dir)


@cache
def _open(address: str) -> "Storage":
    from model_code.storage import Storage

    return Storage(address)
