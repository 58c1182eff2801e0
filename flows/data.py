"""The data flow: a source -> a packed data set."""

from collections.abc import Sequence
from pathlib import Path

from prefect import flow, task

from model_code.data.add import AddedDataset, add_dataset
from model_code.data.download import download_cifar10
from model_code.data.packing import MAX_BAD_FRACTION
from model_code.settings import load_settings


@flow(name="data", flow_run_name="data-{name}")
def data_flow(
    name: str,
    sources: Sequence[Path] = (),
    download: bool = False,
    image_size: int | None = None,
    skip: bool = False,
    max_bad_fraction: float = MAX_BAD_FRACTION,
) -> AddedDataset:
    """Download if asked, then pack; a set whose source did not change is reused."""
    if download and name == "cifar10" and not sources:
        download_task()
    return pack_task(name, sources, download, image_size, skip, max_bad_fraction)


@task(name="download", persist_result=False)
def download_task() -> Path:
    """Fetch the published archive; the download itself tries again and continues where it was cut."""
    return download_cifar10(load_settings().data_dir)


@task(name="pack", persist_result=False)
def pack_task(
    name: str, sources: Sequence[Path], download: bool, image_size: int | None, skip: bool, max_bad_fraction: float
) -> AddedDataset:
    """Pack a source into the cache, or reuse what is there."""
    settings = load_settings()
    return add_dataset(
        name,
        sources,
        cache_dir=settings.cache_dir,
        data_dir=settings.data_dir,
        download=download,
        image_size=image_size,
        skip=skip,
        max_bad_fraction=max_bad_fraction,
    )
