"""One trial of a sweep: an ordinary training whose curve its sweep follows and may end."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from flows.experiments.inputs import find_kept, open_inputs
from flows.experiments.training import name_reason, train, wait_for_run
from flows.operations.runner import RunRequest
from flows.printing.summaries import Outcome
from flows.printing.sweeps import shorten
from model_code.disk import hold_lock
from model_code.errors import (
    BusyError,
    DarkroomError,
    DataError,
    DiskFullError,
    DownloadError,
    PrunedError,
    StorageError,
    TrackingError,
)
from model_code.settings import load_settings
from model_code.sweeps.trials import Sweep, get_accuracy
from model_code.tracking.mlflow_log import MlflowTracking
from model_code.tracking.run_tracker import RunTracker
from model_code.training.epoch_config import EpochConfig
from model_code.training.results import Callback, FinishedEpoch
from model_code.training.run_folder import AnyConfig, RunFolder, RunResult

# What would meet every other trial as well.
GENERAL_ERRORS = (BusyError, DataError, DiskFullError, DownloadError, StorageError, TrackingError)
ACCURACY = "validation/best_accuracy"


class Curve(Callback):
    """Validation curve of a trial, which its sweep follows and may end."""

    def __init__(self, sweep: Sweep, number: int, epochs: int) -> None:
        self._sweep, self._number, self._epochs = sweep, number, epochs

    def on_resume(self, history: tuple[FinishedEpoch, ...]) -> None:
        """Report what an interruption may have left unreported."""
        for metrics in history:
            self._report(metrics)
        if history:
            self._judge(history[-1])

    def on_epoch_end(self, metrics: FinishedEpoch) -> None:
        """Report an epoch; PrunedError ends the run."""
        self._report(metrics)
        self._judge(metrics)

    def _report(self, metrics: FinishedEpoch) -> None:
        if metrics.score is not None:
            self._sweep.report(self._number, metrics.epoch, metrics.score)

    def _judge(self, metrics: FinishedEpoch) -> None:
        if metrics.score is not None and metrics.epoch < self._epochs and self._sweep.should_prune(self._number):
            raise PrunedError(f"after epoch {metrics.epoch} of {self._epochs}")


class TrialTracking(MlflowTracking):
    """MLflow as the place where a trial is recorded.

    Args:
        sweep: Trials.
        number: The trial.
        parent_run_id: Run of the sweep.
    """

    def __init__(self, sweep: Sweep, number: int, parent_run_id: str | None) -> None:
        super().__init__(load_settings(), parent_run_id)
        self._sweep, self._number = sweep, number

    @contextmanager
    def track(self, folder: RunFolder, tags: Mapping[str, str]) -> Iterator[RunTracker]:
        """Record a run in MLflow and its curve in the sweep; a pruned run ends as KILLED, with a tag, and its trial."""
        sweep, number, config = self._sweep, self._number, folder.record.config
        assert isinstance(config, EpochConfig), "the command refuses other kinds"
        try:
            with super().track(folder, {**tags, "sweep": sweep.folder.name, "trial": str(number)}) as tracker:
                sweep.set_run(number, folder.record.run_id)
                tracker.followers = (Curve(sweep, number, config.epochs),)
                try:
                    yield tracker
                except PrunedError as pruned:
                    tracker.set_tags({"pruned": str(pruned)})
                    raise
        except PrunedError:
            # The folder is still locked: whoever waits for it finds the trial ended.
            sweep.prune(number)
            with suppress(OSError):  # a network disk may keep the lock's file
                shutil.rmtree(folder.path)
            raise


def train_trial(
    sweep: Sweep,
    number: int,
    config: AnyConfig,
    parent: str | None,
    hold_device: Callable[[Path, str], AbstractContextManager[None]],
) -> None:
    """Train a trial, or take the result of an equal run, and note in the sweep how it ended.

    Args:
        sweep: Trials.
        number: The trial.
        config: Its settings.
        parent: Run of the sweep.
        hold_device: Holds a device for this process alone; takes the folder of locks and the kind of device.

    Raises:
        DarkroomError: What would meet every other trial as well; this one can be resumed.
    """
    try:
        with suppress(PrunedError):  # its end is noted
            result = _train(sweep, number, config, parent, hold_device)
            if result is not None:
                sweep.complete(number, result.metrics[ACCURACY])
    except GENERAL_ERRORS:
        raise
    except Exception as error:  # noqa: BLE001 - one that fails does not stop the others
        sweep.fail(number, name_reason(error))


def train_requested(request: RunRequest, hold_device: Callable[[Path, str], AbstractContextManager[None]]) -> Outcome:
    """Train the trial of a request; what ended no trial is the error of the outcome."""
    config, trial = request.config, request.trial
    assert trial is not None
    try:
        sweep = Sweep.join(trial.folder, trial.prune_after)
        if not sweep.trials[trial.number].state.is_finished():  # nothing but its outcome was lost
            train_trial(sweep, trial.number, config, request.parent_run_id, hold_device)
    except DarkroomError as error:
        return Outcome(recipe=config.recipe, seed=config.seed, error=name_reason(error))
    return Outcome(recipe=config.recipe, seed=config.seed)


def describe_begin(trial: FrozenTrial) -> str:
    """Return the line that is printed when a trial begins."""
    begun = "resumes" if "run_id" in trial.user_attrs else "begins"
    return (
        f"trial {trial.number} {begun}: {'  '.join(f'{name}={shorten(value)}' for name, value in trial.params.items())}"
    )


def describe_end(sweep: Sweep, number: int, config: AnyConfig) -> str:
    """Return the line that is printed when a trial has ended."""
    trial, best = sweep.trials[number], sweep.best
    if trial.state == TrialState.FAIL:
        return f"trial {number} failed: {trial.user_attrs['reason']}"
    accuracy = f"validation accuracy {get_accuracy(trial):.4f}"
    if trial.state == TrialState.PRUNED:
        assert isinstance(config, EpochConfig), "the command refuses other kinds"
        return f"trial {number} pruned after epoch {trial.last_step} of {config.epochs}: {accuracy}"
    assert best is not None, "this one is complete"
    is_best = "the best so far" if best.number == number else f"the best has {best.value:.4f}"
    return f"trial {number} finished: {accuracy}, {is_best}"


class _FinishedMeanwhile(Exception):  # noqa: N818 - no error
    def __init__(self, result: RunResult) -> None:
        super().__init__(result.run_id)
        self.result = result


def _name_lock(sweep: Sweep, config: AnyConfig) -> Path:
    return sweep.folder / f"{config.sha256()[:16]}.lock"


def _train(
    sweep: Sweep,
    number: int,
    config: AnyConfig,
    parent: str | None,
    hold_device: Callable[[Path, str], AbstractContextManager[None]],
) -> RunResult | None:
    """Return the result of a trial, that of an equal run where there is one; None if another process has ended it."""
    inputs = open_inputs(config)
    if wait_for_run(inputs) and sweep.trials[number].state.is_finished():
        return None
    kept = find_kept(inputs)

    @contextmanager
    def hold(locks_dir: Path, device: str) -> Iterator[None]:
        """Hold the device and then the settings: of equal trials at once one is trained, the others take its run.

        In the other order, a command that holds the device for many trials and one that waits for it with the settings
        of such a trial would wait for each other.
        """
        with hold_device(locks_dir, device), hold_lock(_name_lock(sweep, config), f"trial {number}"):
            if (meanwhile := find_kept(inputs, is_silent=True)) is not None:
                raise _FinishedMeanwhile(meanwhile)
            yield

    if kept is None:
        try:
            return train(inputs, TrialTracking(sweep, number, parent), hold, is_shared=False)
        except _FinishedMeanwhile as other:
            kept = other.result
    print(f"trial {number} keeps run {kept.run_id}: same settings, images and code", flush=True)
    sweep.set_run(number, kept.run_id)
    return kept
