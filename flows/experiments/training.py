"""Training: packed images -> one run of a recipe, whatever its kind -> one run in MLflow or in a journal."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from flows.entry import check_interrupted
from flows.experiments import open_experiment
from flows.experiments.device_lock import lock_device, waiting_for
from flows.experiments.experiment import Experiment
from flows.experiments.followers import Assignment
from flows.experiments.inputs import RunInputs, find_kept, open_inputs
from flows.experiments.pretrained import Pretrained, fetch_start
from flows.printing.lines import print_line
from flows.printing.runs import describe_figures, print_result
from flows.printing.summaries import Outcome
from model_code.data.cache import is_added, open_dataset
from model_code.data.revisions import SHORT_CHECKSUM, find_divided_copies, find_leakage
from model_code.errors import BusyError, DarkroomError, DownloadError, TrackingError, UsageError, first_line
from model_code.recipes.catalog import Recipe, describe_budget, format_command, get_recipe
from model_code.settings import Settings, load_settings
from model_code.tracking.journal import JournalTracking
from model_code.tracking.provenance import hash_code
from model_code.tracking.run_tracker import Tracking
from model_code.training.checkpoints import download_torchvision, is_of_another_version
from model_code.training.config import TORCHVISION
from model_code.training.device import choose_device, describe_device, keep_freed_memory
from model_code.training.epoch_config import EpochConfig
from model_code.training.exchange import fetch_images, fetch_like, share, storing, wait_for_like
from model_code.training.processes import join_processes
from model_code.training.run_config import override
from model_code.training.run_folder import (
    AnyConfig,
    RunFolder,
    RunRecord,
    RunResult,
    create_run_folder,
    find_interrupted,
    making_run,
    open_run_folder,
)
from serving.bundle.store import hash_file

Trainer = Callable[[RunInputs], RunResult]
# MLflow shows it at the top of a run's page.
_DESCRIPTION = "mlflow.note.content"


def train_offline(inputs: RunInputs, resume_run_id: str | None = None) -> RunResult:
    """Run a recipe and record everything in its folder, without MLflow and Prefect."""
    return train(inputs, JournalTracking(load_settings().checkpoints_dir), lock_device, resume_run_id)


def train(
    inputs: RunInputs,
    tracking: Tracking,
    hold_device: Callable[[Path, str], AbstractContextManager[None]],
    resume_run_id: str | None = None,
    *,
    is_shared: bool = True,
) -> RunResult:
    """Run a recipe and record everything; an interrupted run of the same inputs is continued.

    Args:
        inputs: What the run is made from.
        tracking: Where it is recorded.
        hold_device: Holds a device for this process alone; takes the folder of locks and the kind of device.
        resume_run_id: Run to go on with; None chooses.
        is_shared: False for a run that DARKROOM_STORAGE is not told of.
    """
    check_interrupted()
    start_s = time.perf_counter()
    settings, config, pretrained = load_settings(), inputs.config, inputs.pretrained
    device = choose_device(config.device)
    keep_freed_memory()
    source = pretrained.source if pretrained else None
    if source == TORCHVISION:
        download_torchvision()  # before there is a run that could not begin without it
    with hold_device(settings.locks_dir, device.type), join_processes(device) as processes:
        experiment = open_experiment(config, inputs.dataset, processes, source)
        if is_shared:
            share(inputs.record, inputs.dataset, pretrained.run_id if pretrained else None)
            fetch_like(inputs.record, is_offline=inputs.is_offline, is_complete=False)
        folder = _open_folder(inputs.record, settings, tracking, resume_run_id)
        _print_start(folder, experiment, describe_device(device))
        stored = storing(folder, is_offline=tracking.is_offline) if is_shared else nullcontext()
        with folder.lock(), stored, folder.noting_divergence():
            processes.tell(Assignment(folder.path, source))
            result = _run(folder, experiment, tracking, describe_device(device), pretrained, start_s)
            folder.complete(result)
    return result


def wait_for_run(inputs: RunInputs) -> bool:
    """Wait while another process trains a run of the same inputs, such as that of a killed command or of a lost node.

    Returns:
        True if there was one; it may be finished now.
    """
    busy = find_interrupted(load_settings().checkpoints_dir, inputs.record, is_offline=inputs.is_offline, is_busy=True)
    if busy is None:
        return False

    def take() -> AbstractContextManager[None]:
        if busy.is_busy:  # taking its lock would make a folder anew that has been removed
            raise BusyError(f"another process trains run {busy.path.name}; waiting for it")
        return nullcontext()

    with waiting_for(take):
        return True


def train_all(configs: Sequence[AnyConfig], trainer: Trainer, *, is_offline: bool = False) -> list[Outcome]:
    """Return one outcome for each config, in order; one that fails does not stop the others.

    A recipe whose inputs were trained before is not trained again: its kept result is returned. One whose data set was
    never added, or whose pretrained weights cannot be downloaded, is skipped.
    """
    outcomes = []
    for number, config in enumerate(configs, start=1):
        print(f"[{number}/{len(configs)}] {config.recipe}", flush=True)
        try:
            outcomes.append(train_one(config, trainer, is_offline=is_offline))
        except KeyboardInterrupt:
            print_interrupted(f"at run {number} of {len(configs)}", outcomes)
            raise
    return outcomes


def train_one(config: AnyConfig, trainer: Trainer, *, is_offline: bool, data_checksum: str | None = None) -> Outcome:
    """Return the outcome of one run: kept, trained, or why there is none; see `find_outcome`."""
    inputs = find_outcome(config, is_offline=is_offline, data_checksum=data_checksum)
    if isinstance(inputs, Outcome):
        return inputs
    try:
        if wait_for_like(inputs.record, is_offline=is_offline):
            fetch_like(inputs.record, is_offline=is_offline, is_complete=True)
            result = find_kept(inputs) or trainer(inputs)
        else:
            result = trainer(inputs)
    except Exception as error:  # noqa: BLE001 - one that fails does not stop the others
        return fail(config, error)
    print_result(result, is_quiet=True)
    return Outcome(recipe=config.recipe, seed=config.seed, result=result)


def find_outcome(config: AnyConfig, *, is_offline: bool, data_checksum: str | None = None) -> Outcome | RunInputs:
    """Return the outcome of a run that is not trained, kept or without what it needs; else what it is made from.

    What is not in the home comes from DARKROOM_STORAGE, where there is one.

    Args:
        config: All settings.
        is_offline: True if the run is recorded in its folder, and not in MLflow.
        data_checksum: Checksum of the images; None for those that the home has.
    """
    try:
        fetch_images(config.dataset, data_checksum)
        fetch_start(config)
        inputs = open_inputs(config, is_offline=is_offline)
        share(inputs.record, inputs.dataset, inputs.pretrained.run_id if inputs.pretrained else None)
        fetch_like(inputs.record, is_offline=is_offline, is_complete=True)
        kept = find_kept(inputs)
    except DarkroomError as error:
        return fail(config, error)
    if kept is None:
        return inputs
    print_line(f"{config.recipe}  kept from run {kept.run_id}: same settings, images and code")
    return Outcome(recipe=config.recipe, seed=config.seed, result=kept, was_cached=True)


def print_interrupted(place: str, outcomes: Iterable[Outcome]) -> None:
    """Say how much of an interrupted study is done."""
    finished = sum(outcome.result is not None for outcome in outcomes)
    end_of_bar = "\n" if sys.stdout.isatty() else ""
    print(end_of_bar, end="")
    print_line(f"interrupted {place}: {finished} complete")


def name_reason(error: BaseException) -> str:
    """Return why a run failed, in one line."""
    reason = first_line(error)
    return reason if isinstance(error, DarkroomError) else f"{type(error).__name__}: {reason}"


def fail(config: AnyConfig, error: BaseException) -> Outcome:
    """Print why there is no result of a run, and return that as its outcome."""
    reason = name_reason(error)
    is_skipped = isinstance(error, DownloadError) or not is_added(config.dataset, load_settings().cache_dir)
    print_line(f"{config.recipe}  {'skipped' if is_skipped else 'failed'}: {reason}")
    return Outcome(recipe=config.recipe, seed=config.seed, error=reason, is_skipped=is_skipped)


def _run(
    folder: RunFolder,
    experiment: Experiment,
    tracking: Tracking,
    device: str,
    pretrained: Pretrained | None,
    start_s: float,
) -> RunResult:
    """Do the work while the run is recorded."""
    config = folder.record.config
    recipe = get_recipe(config.recipe)
    published = recipe.published_accuracy
    budget = describe_budget(config)
    tags = {
        _DESCRIPTION: _describe(recipe, budget),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": format_command(config),
        "device": device,
        "budget": budget,
        "published_accuracy": "not published" if published is None else f"{published:.3f}",
    }
    if experiment.engine_line is not None:
        tags |= {"engine": experiment.engine_line, "precision": experiment.engine_line.partition(",")[0]}
    if pretrained is not None:
        tags |= {
            "pretrained_run_id": pretrained.run_id or "none",
            "pretrained_sha256": pretrained.sha256 or "torchvision",
        }
    with tracking.track(folder, tags) as tracker:
        tracker.log_config(folder)
        done = experiment.run(folder, tracker)
        training = done.training
        seconds = time.perf_counter() - start_s + (training.seconds_before if training else 0)
        summary = {
            "run_id": folder.record.run_id,
            "kind": config.kind,
            "recipe": config.recipe,
            "profile": config.profile,
            "dataset": config.dataset,
            "metrics": done.metrics,
            "seconds": seconds,
            "code_sha256": hash_code(),
        }
        if training is not None:
            weights_sha256 = hash_file(training.best_weights)
            tracker.log_training(training, weights_sha256)
            tracker.log_checkpoints(folder, training)
            if isinstance(config, EpochConfig) and training.parts > config.engine.parts:
                # BatchNorm has seen other batches than the recipe documents.
                summary["profile"] = "custom"
                divided = override(config, {"engine.parts": training.parts}).model_copy(update={"profile": "custom"})
                budget = describe_budget(divided)
                tracker.set_tags({"profile": "custom", "budget": budget})
            summary |= {
                "metrics": {**done.metrics, "validation/best_accuracy": training.best.score},
                "epochs": len(training.history),
                "best_epoch": training.best_epoch,
                "best_weights": training.best_weights.name,
                "weights_sha256": weights_sha256,
            }
        tracker.log_metrics({"total_seconds": seconds})
        result = RunResult.model_validate(summary)
        figures = describe_figures(result)
        tracker.set_tags({_DESCRIPTION: f"{figures[0].upper()}{figures[1:]}. {_describe(recipe, budget)}"})
    return result


def _describe(recipe: Recipe, budget: str) -> str:
    return f"Recipe {recipe.name}: {recipe.title} Budget of this run: {budget}."


def _open_folder(record: RunRecord, settings: Settings, tracking: Tracking, resume_run_id: str | None) -> RunFolder:
    """Return the folder of the run to resume, of an interrupted run of the same experiment, or of a new run."""
    if resume_run_id is not None:
        folder = open_run_folder(settings.checkpoints_dir, resume_run_id)
        if folder.record.config != record.config or folder.record.data_checksum != record.data_checksum:
            raise UsageError(
                f"run {resume_run_id} has other settings or other images; repeat its own command "
                f"(recipe {folder.record.config.recipe}, seed {folder.record.config.seed}) with --resume"
            )
        if folder.result is not None:
            raise UsageError(f"run {resume_run_id} is complete; there is nothing to resume")
        if folder.is_offline != tracking.is_offline:
            way = "with" if folder.is_offline else "without"
            raise UsageError(f"run {resume_run_id} was begun {way} --offline; repeat its command {way} it")
        if not tracking.has_run(resume_run_id):
            raise TrackingError(f"MLflow holds no run {resume_run_id}; repeat the command without --resume")
        return folder
    interrupted = find_interrupted(settings.checkpoints_dir, record, is_offline=tracking.is_offline)
    if interrupted is not None and tracking.has_run(interrupted.record.run_id):
        if not is_of_another_version(interrupted.path, record.config.sha256()):
            return interrupted
        print(
            f"{record.config.recipe}  run {interrupted.record.run_id} was begun by another version: a new run begins; "
            f"{interrupted.path} can be removed",
            flush=True,
        )
    is_offline = tracking.is_offline
    if (other := find_interrupted(settings.checkpoints_dir, record, is_offline=not is_offline)) is not None:
        print(
            f"{record.config.recipe}  a new run begins: the {other.state} run {other.record.run_id} of the same "
            f"settings is resumed {'without' if is_offline else 'with'} --offline only",
            flush=True,
        )
    with making_run(settings.checkpoints_dir, record) as attempt:
        run_id = tracking.create_run(record.config, attempt)
        return create_run_folder(settings.checkpoints_dir, record.model_copy(update={"run_id": run_id}))


def _print_start(folder: RunFolder, experiment: Experiment, device: str) -> None:
    config = folder.record.config
    recipe = get_recipe(config.recipe)
    published, network = recipe.published_accuracy, recipe.build().network
    lines = [
        f"{config.recipe}  seed {config.seed}  run {folder.record.run_id}",
        f"  {describe_budget(config)}",
        f"  {config.dataset}@{folder.record.data_checksum[:SHORT_CHECKSUM]}: {experiment.images_line}",
        "" if config.network == network else f"  {config.network} in the place of {network}",
        f"  {device}",
        f"  {experiment.engine_line}" if experiment.engine_line else "",
        f"  published accuracy {published:.3f}" if published and config.profile == "full" else "",
    ]
    for line in filter(None, lines):
        print_line(line)
    settings = load_settings()
    dataset = open_dataset(config.dataset, settings.cache_dir)
    warnings = [find_leakage(dataset, settings.cache_dir)]
    if isinstance(config, EpochConfig) and "validation" not in dataset.splits:
        warnings.append(find_divided_copies(dataset, settings.cache_dir))
    for warning in filter(None, warnings):
        print_line(f"  warning: {warning}")
