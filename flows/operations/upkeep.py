"""Hourly check of packed images, released models, the service that answers, the disk."""

import shutil
from collections import defaultdict
from typing import Any

import httpx

from flows.operations.doctor import ENOUGH_DISK_BYTES
from model_code.data.cache import format_remedy, is_added, list_datasets
from model_code.disk import format_size
from model_code.errors import ServiceError
from model_code.settings import Settings
from model_code.training.run_folder import list_interrupted
from serving.bundle.store import list_released, read_champion
from serving.errors import BundleError

TIMEOUT_S = 10.0


def find_problems(settings: Settings) -> list[str]:
    """Return one line for each thing that is wrong; empty when all is well."""
    problems = [
        f"data set {dataset.name}: {dataset.damage}" for dataset in list_datasets(settings.cache_dir) if dataset.damage
    ]
    served = {}
    needed = defaultdict(list)
    for name in list_released(settings.bundles_dir):
        try:
            pointer, _, manifest = read_champion(settings.bundles_dir, name)
            served[name] = pointer.version
            needed[manifest.dataset].append(f"released model {name}")
        except BundleError as error:
            problems.append(f"released model {name}: {error}")
    for folder in list_interrupted(settings.checkpoints_dir):
        needed[folder.record.config.dataset].append(f"{folder.state} run {folder.path.name}")
    problems += [
        f"data set {name} is not in {settings.cache_dir}, but {', '.join(users)} came from it; "
        f"add it with {format_remedy(name)}"
        for name, users in needed.items()
        if not is_added(name, settings.cache_dir)
    ]
    if settings.service_url is not None and served:
        problems += _compare_service(settings, served)
    free_bytes = shutil.disk_usage(settings.home).free
    if free_bytes < ENOUGH_DISK_BYTES:
        problems.append(f"{format_size(free_bytes)} of disk left under {settings.home}")
    return problems


def ask_service(settings: Settings) -> list[dict[str, Any]]:
    """Return what the service says of each model that it answers with.

    Raises:
        ServiceError: It does not answer, or is not Darkroom.
    """
    headers = {"X-API-Key": settings.service_key} if settings.service_key else {}
    try:
        answer = httpx.get(f"{settings.service_url}/v1/models", headers=headers, timeout=TIMEOUT_S)
        models: list[dict[str, Any]] = answer.raise_for_status().json()["models"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise ServiceError(f"the service at {settings.service_url} does not answer: {error}") from error
    return models


def _compare_service(settings: Settings, released: dict[str, str]) -> list[str]:
    try:
        serving = {model["name"]: model["version"] for model in ask_service(settings)}
    except ServiceError as error:
        return [str(error)]
    return [
        f"the service answers with {serving.get(name, 'no version')} of {name}, released is {version}"
        for name, version in released.items()
        if serving.get(name) != version
    ]
