"""The training flow: packed pictures -> a trained network -> its test report -> one MLflow run."""

import time

import torch
from prefect import flow, task
from prefect.cache_policies import INPUTS, TASK_SOURCE
from torch import nn

from flows.device_slot import hold_device
from model_code.data.cache import PackedDataset, open_dataset
from model_code.errors import TrackingError, UsageError
from model_code.evaluation.figures import GRID_SIDE, draw_prediction_grid
from model_code.evaluation.metrics import Report, measure, predict_logits
from model_code.recipes.catalog import get_recipe
from model_code.settings import Settings, load_settings
from model_code.tracking.finished_runs import has_run
from model_code.tracking.provenance import hash_code
from model_code.tracking.run_tracker import RunTracker, create_run, track_run
from model_code.tracking.store import EXPERIMENT, open_store
from model_code.tracking.tensorboard import TensorBoardWriter
from model_code.training.checkpoints import hash_pretrained
from model_code.training.config import TrainingConfig
from model_code.training.device import choose_device, describe_device
from model_code.training.interruption import InterruptionWatcher
from model_code.training.pictures import TrainingPictures, load_pictures
from model_code.training.progress import ProgressPrinter
from model_code.training.results import TrainingResult
from model_code.training.run_folder import (
    RunFolder,
    RunRecord,
    RunResult,
    create_run_folder,
    find_interrupted,
    open_run_folder,
)
from model_code.training.supervised import check_enough_pictures, fit, load_model
from serving.bundle import hash_file


@flow(name="train", flow_run_name="train-{config.recipe}")
def train_flow(config: TrainingConfig, resume_run_id: str | None = None) -> RunResult:
    """Train one recipe; an interrupted run of the same config and data is continued."""
    return train_task.with_options(refresh_cache=True)(config, identify_inputs(config), resume_run_id)


def identify_inputs(config: TrainingConfig) -> dict[str, str | None]:
    """Return what a run depends on beside its config: pictures, pretrained weights, code and libraries.

    Raises:
        DataError: The data set is not there.
        TrainingError: The pretrained weights are not there.
    """
    return {
        "data_checksum": open_dataset(config.dataset, load_settings().cache_dir).checksum,
        "pretrained_sha256": hash_pretrained(config.pretrained_weights),
        "code_sha256": hash_code(),
    }


@task(
    name="train",
    task_run_name="train-{config.recipe}",
    cache_policy=INPUTS + TASK_SOURCE,
    persist_result=True,
)
def train_task(config: TrainingConfig, inputs: dict[str, str | None], resume_run_id: str | None = None) -> RunResult:
    """Train, test once and log everything.

    Prefect keeps the result by config and inputs (`identify_inputs`): who asks for the same again gets it at once.
    """
    start = time.perf_counter()
    settings = load_settings()
    dataset = open_dataset(config.dataset, settings.cache_dir)
    device = choose_device(config.device)
    published = get_recipe(config.recipe).published_accuracy
    with hold_device(settings.locks_dir, device.type):
        pictures = load_pictures(dataset, config, device)
        check_enough_pictures(config, pictures)
        folder = _open_folder(config, dataset, settings, resume_run_id)
        _print_start(folder, pictures, describe_device(device), published)
        with folder.lock():
            with track_run(folder.record, published, describe_device(device)) as tracker:
                training, model = _fit(folder, pictures, device, tracker)
                report = _evaluate(tracker, model, pictures)
                weights_sha256 = hash_file(training.best_weights)
                tracker.log_result(training, weights_sha256)
                tracker.log_files(folder, training)
            result = RunResult(
                run_id=folder.record.run_id,
                recipe=config.recipe,
                profile=config.profile,
                dataset=config.dataset,
                epochs=config.epochs,
                best_epoch=training.best_epoch,
                best_weights=training.best_weights.name,
                weights_sha256=weights_sha256,
                validation_accuracy=training.best.validation_accuracy,
                test_accuracy=None if report is None else report.accuracy_fraction,
                test_macro_f1=None if report is None else report.macro_f1,
                seconds=time.perf_counter() - start,
            )
            folder.complete(result)
    return result


def _open_folder(
    config: TrainingConfig, dataset: PackedDataset, settings: Settings, resume_run_id: str | None
) -> RunFolder:
    """Return the folder of the run to resume, of an interrupted run of the same experiment, or of a new run."""
    client = open_store(settings)
    if resume_run_id is not None:
        folder = open_run_folder(settings.checkpoints_dir, resume_run_id)
        if folder.record.config != config or folder.record.data_checksum != dataset.checksum:
            raise UsageError(
                f"run {resume_run_id} has other settings or other pictures; repeat its own command "
                f"(recipe {folder.record.config.recipe}, seed {folder.record.config.seed}) with --resume"
            )
        if folder.result is not None:
            raise UsageError(f"run {resume_run_id} is complete; there is nothing to resume")
        if not has_run(client, resume_run_id):
            raise TrackingError(f"MLflow holds no run {resume_run_id}; repeat the command without --resume")
        return folder
    record = RunRecord(
        run_id="",
        data_checksum=dataset.checksum,
        config=config,
        pretrained_sha256=hash_pretrained(config.pretrained_weights),
    )
    interrupted = find_interrupted(settings.checkpoints_dir, record)
    if interrupted is not None and has_run(client, interrupted.record.run_id):
        return interrupted
    record = record.model_copy(update={"run_id": create_run(client, EXPERIMENT, config)})
    return create_run_folder(settings.checkpoints_dir, record)


def _print_start(folder: RunFolder, pictures: TrainingPictures, device: str, published: float | None) -> None:
    config = folder.record.config
    tests = 0 if pictures.test is None else len(pictures.test)
    print(
        f"{config.recipe}  run {folder.record.run_id}  {config.profile}  seed {config.seed}  on {device}\n"
        f"{config.recipe}  {config.dataset}: {len(pictures.train)} training, {len(pictures.validation)} validation, "
        f"{tests} test pictures, {len(pictures.classes)} classes"
        + (f"; published accuracy {published:.3f}" if published and config.profile == "full" else ""),
        flush=True,
    )


def _fit(
    folder: RunFolder, pictures: TrainingPictures, device: torch.device, tracker: RunTracker
) -> tuple[TrainingResult, nn.Module]:
    """Train and return the result and the model of the best epoch, on the device."""
    config = folder.record.config
    with TensorBoardWriter(folder.path) as events, InterruptionWatcher() as watcher:
        progress = ProgressPrinter(config.recipe, config.epochs)
        training = fit(config, pictures, folder.path, device, [progress, tracker, events, watcher])
        model = load_model(config, len(pictures.classes), training.best_weights).to(device)
        events.write_graph(model, pictures.validation.images_NHWC[:1])
    return training, model


def _evaluate(tracker: RunTracker, model: nn.Module, pictures: TrainingPictures) -> Report | None:
    """Label the test pictures, once, and log what came out; None if there are none (validation is logged instead)."""
    split, chosen = ("test", pictures.test) if pictures.test is not None else ("validation", pictures.validation)
    logits_NK = predict_logits(model, chosen.images_NHWC)
    report = measure(logits_NK, chosen.labels_N)
    shown = torch.linspace(0, len(chosen) - 1, min(GRID_SIDE**2, len(chosen))).long()
    grid = draw_prediction_grid(
        chosen.images_NHWC.cpu()[shown].numpy(),
        chosen.labels_N.cpu()[shown].numpy(),
        logits_NK.argmax(1)[shown].numpy(),
        pictures.classes,
    )
    tracker.log_report(split, report, pictures.classes, grid)
    return report if split == "test" else None
