"""Capabilities of this machine, and missing parts."""

import json
import os
import platform
import shlex
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal

from model_code.disk import format_size
from model_code.errors import TrackingError, UsageError
from model_code.settings import load_settings, read_image_sha
from model_code.tracking.revision import check_revision
from serving.bundle.processors import count_memory_bytes

if TYPE_CHECKING:
    from model_code.training.run_folder import RunFolder

ENOUGH_DISK_BYTES, LEAST_DISK_BYTES = 5_000_000_000, 50_000_000
LIBRARIES = ("torch", "torchvision", "mlflow", "prefect", "bentoml", "onnx", "onnxruntime-gpu", "numpy", "pillow")


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        level: `ok`, `note` (works, with a limit) or `missing` (something does not work).
        what: Subject.
        found: Finding and, where it is not ok, the remedy.
    """

    level: Literal["ok", "note", "missing"]
    what: str
    found: str


def examine_machine() -> list[Finding]:
    """Look at Python, libraries, devices, disk, data sets and released models; nothing is changed."""
    findings = [
        Finding("ok", "Python", f"{platform.python_version()} on {sys.platform} {platform.machine()}"),
        Finding("ok", "processor", f"{len(os.sched_getaffinity(0))} cores, {format_size(count_memory_bytes())} memory"),
    ]
    libraries = [_examine_library(name) for name in LIBRARIES]
    findings += libraries
    if not any(finding.level == "missing" for finding in libraries):
        findings += [_examine_torch(), _examine_onnxruntime()]
    place = _examine_disk()
    state = [place, *_examine_state()]
    return [*findings, *state] if place.level == "missing" else [*findings, *state, _suggest_next()]


def _examine_library(name: str) -> Finding:
    try:
        return Finding("ok", name, version(name))
    except PackageNotFoundError:
        if name == "bentoml" and read_image_sha() is not None:
            return Finding("note", name, "not in this image: the service has one of its own")
        return Finding("missing", name, "not installed; run `make setup`")


def _examine_torch() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("ok", "training device", f"cuda: {torch.cuda.get_device_name()}")
    return Finding("note", "training device", "cpu: torch sees no CUDA device; `--profile smoke` is made for this")


def _examine_onnxruntime() -> Finding:
    from serving.bundle.session import has_cuda

    if has_cuda():
        return Finding("ok", "serving device", "CUDAExecutionProvider")
    return Finding("note", "serving device", "CPUExecutionProvider: no CUDA device for onnxruntime")


def _examine_disk() -> Finding:
    home = load_settings().home
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free_bytes = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        return Finding("missing", "state", f"{existing} is not writable; set DARKROOM_HOME to another folder")
    if free_bytes < LEAST_DISK_BYTES:
        return Finding("missing", "state", f"{home}: only {format_size(free_bytes)} free; free some space")
    if free_bytes < ENOUGH_DISK_BYTES:
        return Finding("note", "state", f"{home}: only {format_size(free_bytes)} free")
    return Finding("ok", "state", f"{home}: {format_size(free_bytes)} free")


def _suggest_next() -> Finding:
    """Return the command that goes on with the work in this home."""
    from flows.operations.removal import is_in_use
    from model_code.data.cache import list_datasets
    from model_code.training.run_folder import list_finished, list_interrupted
    from serving.bundle.store import list_released

    settings = load_settings()
    left = list_interrupted(settings.checkpoints_dir)
    interrupted = [one for one in left if not (is_in_use(one) or one.has_diverged)]
    if not list_datasets(settings.cache_dir):
        command = "darkroom data add shapes (drawn here) or darkroom data add cifar10 --download"
    elif interrupted:
        others = f"; {len(interrupted) - 1} more: darkroom runs list" if len(interrupted) > 1 else ""
        command = _format_resume(interrupted[0]) + others
    elif not any(list_finished(settings.checkpoints_dir)):
        command = "darkroom train RECIPE --profile smoke; darkroom recipes lists them"
    elif not list_released(settings.bundles_dir):
        command = "darkroom runs list, then darkroom release RUN_ID --as NAME"
    else:
        command = "darkroom serve, then darkroom predict IMAGE"
    return Finding("ok", "next", command)


def _format_resume(folder: "RunFolder") -> str:
    from model_code.recipes.catalog import list_changes

    config = folder.record.config
    profile = " --profile smoke" if config.profile == "smoke" else ""
    try:
        changes = list_changes(config)
    except UsageError as error:
        run_id = folder.path.name[:8]
        return f"run {run_id} is interrupted, and its recipe: {error}; or remove it: darkroom runs remove {run_id}"
    settings = "".join(
        f" --set {shlex.quote(f'{key}={value if isinstance(value, str) else json.dumps(value)}')}"
        for key, value in changes.items()
    )
    offline = " --offline" if folder.is_offline else ""
    return (
        f"darkroom train {config.recipe}{profile} --seed {config.seed}{settings}{offline} "
        f"--resume {folder.path.name[:8]}"
    )


def _examine_state() -> list[Finding]:
    from model_code.data.cache import list_datasets
    from serving.bundle.store import list_released, read_pointer
    from serving.errors import BundleError

    settings = load_settings()
    findings = []
    for dataset in list_datasets(settings.cache_dir):
        counts = ", ".join(f"{count} {split}" for split, count in dataset.counts.items())
        if dataset.damage:
            findings.append(Finding("missing", f"data {dataset.name}", dataset.damage))
        else:
            findings.append(Finding("ok", f"data {dataset.name}", f"{counts} images"))
    if not findings:
        findings.append(Finding("note", "data", "no images yet; start with: darkroom data add shapes"))
    try:
        check_revision(settings)
    except TrackingError as error:
        findings.append(Finding("missing", "runs", str(error)))
    for name in list_released(settings.bundles_dir):
        try:
            pointer = read_pointer(settings.bundles_dir, name)
            findings.append(Finding("ok", f"model {name}", f"version {pointer.version} is champion"))
        except BundleError as error:
            findings.append(Finding("missing", f"model {name}", str(error)))
    return findings
