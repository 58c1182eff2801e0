"""The release flow: best run of a recipe -> ONNX, proven equal -> bundle -> registered version -> champion."""

import re
import tempfile
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from prefect import flow, task

from flows.summaries import ReleaseSummary
from model_code.data.cache import open_dataset
from model_code.disk import hold_lock
from model_code.errors import DataError, ReleaseError, TrainingError, UsageError
from model_code.export.onnx_export import OPSET, export_onnx
from model_code.export.parity import Parity, measure_parity
from model_code.recipes.catalog import RECIPES
from model_code.registry.versions import check_release_name, register_version, set_champion
from model_code.settings import Settings, load_settings
from model_code.tracking.finished_runs import FinishedRun, find_finished_runs, get_finished_run
from model_code.tracking.provenance import read_versions
from model_code.tracking.store import open_store
from model_code.training.config import TrainingConfig
from model_code.training.pictures import load_final
from model_code.training.run_folder import RunFolder, RunRecord, open_run_folder
from model_code.training.supervised import load_model
from serving.bundle import Manifest, Pointer, hash_file, read_bundle, write_bundle, write_pointer

RUN_ID = re.compile(r"[0-9a-f]{32}")


@flow(name="release", flow_run_name="release-{name}")
def release_flow(source: str, name: str, mode: str = "enabled") -> ReleaseSummary:
    """Release a recipe's best run, or one run, under a name; `dry_run` proves everything and changes nothing.

    Each step can be repeated: a release that was interrupted is completed by the same command.
    """
    settings = load_settings()
    run = choose_task(source, name)
    folder = open_run_folder(settings.checkpoints_dir, run.run_id)
    with (
        hold_lock(settings.locks_dir / f"release-{name}.lock", f"releasing {name}"),
        tempfile.TemporaryDirectory() as scratch,
    ):
        model_file = Path(scratch) / "model.onnx"
        parity = export_task(folder, model_file)
        parity.check()
        manifest = _describe(name, run, folder.record, model_file, parity)
        version, previous, bundle = None, None, Path(scratch)
        if mode == "enabled":
            bundle = write_bundle(settings.bundles_dir, model_file, manifest)
            version, previous = register_task(bundle)
            write_pointer(settings.bundles_dir, name, Pointer(version=version, bundle=bundle.name))
    return ReleaseSummary(
        name=name,
        version=version,
        previous_version=previous,
        run_id=run.run_id,
        recipe=run.recipe,
        profile=run.profile,
        sha256=manifest.sha256,
        test_accuracy=run.test_accuracy,
        max_difference=max(batch.max_difference for batch in parity.batches.values()),
        parity_split=parity.split,
        parity_count=parity.count,
        bundle=str(bundle) if mode == "enabled" else "",
    )


@task(name="choose run")
def choose_task(source: str, name: str) -> FinishedRun:
    """Return the run that `source`, a recipe or a run id, means for a released name."""
    pattern = check_release_name(name)
    settings = load_settings()
    client = open_store(settings)
    if source in RECIPES:
        _check_is_classifier(source, RECIPES[source].build().kind)
        runs = find_finished_runs(client, source, pattern)
        usable = [run for run in runs if _is_usable(settings, run)]
        if usable:
            return usable[0]
        why = (
            f"none of its {len(runs)} finished runs has its checkpoint and its pictures here"
            if runs
            else "it has no finished run"
        )
        raise ReleaseError(f"{source} cannot be released as {name}: {why}; train it first: darkroom train {source}")
    if not RUN_ID.fullmatch(source):
        raise UsageError(f"{source!r} is neither a recipe (`darkroom recipes`) nor a run id (32 hexadecimal digits)")
    run = get_finished_run(client, source)
    _check_is_classifier(f"run {source} of {run.recipe}", run.kind)
    if not fnmatchcase(run.dataset, pattern):
        raise ReleaseError(f"run {source} was trained on {run.dataset}; --as {name} takes runs on {pattern} pictures")
    return run


def _is_usable(settings: Settings, run: FinishedRun) -> bool:
    """Whether a run's checkpoint and the pictures that it was trained on are on this machine."""
    try:
        folder = open_run_folder(settings.checkpoints_dir, run.run_id)
        dataset = open_dataset(run.dataset, settings.cache_dir)
    except (TrainingError, DataError):
        return False
    return folder.result is not None and dataset.checksum == folder.record.data_checksum


@task(name="export and compare")
def export_task(folder: RunFolder, model_file: Path) -> Parity:
    """Write the ONNX file of a run's best weights and measure it against PyTorch."""
    record, result = folder.record, folder.result
    config = record.config
    assert isinstance(config, TrainingConfig), "chosen by its kind"
    if result is None or result.best_weights is None:
        raise ReleaseError(f"run {record.run_id} is not complete; repeat its train command first")
    weights = folder.path / result.best_weights
    if hash_file(weights) != result.weights_sha256:
        raise ReleaseError(f"{weights} is not the file that was trained (its sha256 differs); train again")
    dataset = open_dataset(record.config.dataset, load_settings().cache_dir)
    if dataset.checksum != record.data_checksum:
        raise ReleaseError(f"the {dataset.name} pictures are not those of run {record.run_id}; train again")
    every_picture = config.model_copy(update={"limit_test": None})
    split, compared = load_final(dataset, every_picture, torch.device("cpu"))
    model = load_model(config, len(dataset.classes), dataset.image_size, weights)
    export_onnx(model, dataset.image_size, model_file)
    return measure_parity(model, model_file, split, compared.images_NHWC, compared.labels_N)


@task(name="register", retries=2, retry_delay_seconds=2)
def register_task(bundle: Path) -> tuple[str, str | None]:
    """Enter a bundle into the registry and make it champion; return its version and the champion before."""
    client = open_store(load_settings())
    manifest = read_bundle(bundle)
    version = register_version(client, bundle, manifest)
    return version, set_champion(client, manifest.name, version)


def _check_is_classifier(what: str, kind: str) -> None:
    if kind == "simsiam":
        raise ReleaseError(f"{what} leaves a backbone, not a classifier; release a recipe that fine-tunes it")
    if kind != "supervised":
        raise ReleaseError(f"{what} leaves figures, not a classifier; release a supervised recipe: `darkroom recipes`")


def _describe(name: str, run: FinishedRun, record: RunRecord, model_file: Path, parity: Parity) -> Manifest:
    dataset = open_dataset(record.config.dataset, load_settings().cache_dir)
    return Manifest(
        name=name,
        classes=dataset.classes,
        image_size=dataset.image_size,
        resize_size=dataset.image_size,
        precision="fp32",
        opset=OPSET,
        sha256=hash_file(model_file),
        size_bytes=model_file.stat().st_size,
        recipe=run.recipe,
        run_id=run.run_id,
        accuracy_fraction=run.test_accuracy,
        parity=parity.to_dict(),
        versions=read_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
