"""What a training exchanges with other machines where there is a DARKROOM_STORAGE: images, first weights, runs."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING

from flows.experiments.pretrained import name_start
from model_code.recipes.catalog import get_recipe
from model_code.settings import Settings, load_settings

if TYPE_CHECKING:  # most homes have no storage
    from model_code.data.cache import PackedDataset
    from model_code.storage import Storage
    from model_code.training.run_folder import AnyConfig, RunFolder, RunRecord
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


def fetch_start(config: "AnyConfig") -> None:
    """Bring the runs of the recipe whose weights a run starts from into the home."""
    start = name_start(config)
    if start is not None and (runs := _open_runs()):
        runs.fetch(get_recipe(start).name)


def fetch_run(recipe: str, run_id: str) -> None:
    """Bring a run into the home."""
    if runs := _open_runs():
        runs.fetch(recipe, run_id)


def exchange(record: "RunRecord", dataset: "PackedDataset", *, has_complete: bool = True) -> None:
    """Store the images of a run for other machines, and bring runs like it into the home, complete ones on request."""
    settings = load_settings()
    if runs := _open_runs():
        from model_code.data.stored_images import store_images

        store_images(_open(str(settings.storage)), dataset, settings.cache_dir)
        runs.fetch_like(record, has_complete=has_complete)


def claim_attempt(record: "RunRecord", own: str) -> str:
    """Return the name for the making of a new run: one that a process on another machine took and died, else `own`."""
    runs = _open_runs()
    return own if runs is None else runs.claim_attempt(record, own)


def storing(folder: "RunFolder") -> AbstractContextManager[None]:
    """Store a run's folder while the block trains in it."""
    settings = load_settings()
    if settings.storage is None:
        return nullcontext()
    from model_code.training.stored_runs import RunUploader

    return RunUploader(_open(settings.storage), folder)


def remove_run(record: "RunRecord") -> None:
    """Remove a run from the storage."""
    if runs := _open_runs():
        runs.remove(record)


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
