"""What the hourly check looks at: packed pictures, released models, the service that answers, the disk."""

import shutil

import httpx

from flows.doctor import ENOUGH_DISK_BYTES
from model_code.data.cache import list_datasets
from model_code.disk import format_size
from model_code.settings import Settings
from serving.bundle import list_released, read_champion
from serving.errors import BundleError

TIMEOUT_S = 10.0


def find_problems(settings: Settings) -> list[str]:
    """Return one line for each thing that is wrong; empty when all is well."""
    problems = [
        f"data set {dataset.name}: {dataset.damage}" for dataset in list_datasets(settings.cache_dir) if dataset.damage
    ]
    served = {}
    for name in list_released(settings.bundles_dir):
        try:
            pointer, _, _ = read_champion(settings.bundles_dir, name)
            served[name] = pointer.version
        except BundleError as error:
            problems.append(f"released model {name}: {error}")
    if settings.service_url is not None and served:
        problems += _ask_service(settings.service_url, served)
    free_bytes = shutil.disk_usage(settings.home).free
    if free_bytes < ENOUGH_DISK_BYTES:
        problems.append(f"{format_size(free_bytes)} of disk left under {settings.home}")
    return problems


def _ask_service(address: str, released: dict[str, str]) -> list[str]:
    try:
        answer = httpx.get(f"{address}/v1/models", timeout=TIMEOUT_S).raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        return [f"the service at {address} does not answer: {error}"]
    serving = {model["name"]: model["version"] for model in answer["models"]}
    return [
        f"the service answers with {serving.get(name, 'no version')} of {name}, released is {version}"
        for name, version in released.items()
        if serving.get(name) != version
    ]
