"""Sweep of a recipe's settings: each trial is an ordinary training, nested below one run in MLflow."""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from optuna.trial import FrozenTrial

from flows.experiments.device_lock import lock_device
from flows.experiments.inputs import find_kept, open_inputs
from flows.experiments.training import name_reason, train
from flows.printing.sweeps import shorten
from model_code.disk import hold_lock
from model_code.errors import (
    BusyError,
    DataError,
    DiskFullError,
    DownloadError,
    PrunedError,
    TrackingError,
    TrainingError,
)
from model_code.evaluation.figures import draw_shares
from model_code.settings import load_settings
from model_code.sweeps.trials import SWEEP_FILE, Sweep, get_accuracy
from model_code.tracking.mlflow_log import MlflowTracking, send_briefly
from model_code.tracking.parents import open_study
from model_code.tracking.run_tracker import RunTracker
from model_code.tracking.store import open_store
from model_code.training.epoch_config import EpochConfig
from model_code.training.results import Callback, FinishedEpoch
from model_code.training.run_folder import AnyConfig, RunFolder, RunResult

# What would meet every other trial as well.
GENERAL_ERRORS = (BusyError, DataError, DiskFullError, DownloadError, TrackingError)
# One after the other, before any is complete: something else than the searched settings is wrong.
MOST_FAILURES = 3
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

    def __init__(self, sweep: Sweep, number: int, parent_run_id: str) -> None:
        super().__init__(load_settings(), parent_run_id)
        self._sweep, self._number = sweep, number

    @contextmanager
    def track(self, folder: RunFolder, tags: Mapping[str, str]) -> Iterator[RunTracker]:
        """Record a run in MLflow and its curve in the sweep; a pruned run ends as KILLED, with a tag."""
        sweep, number, config = self._sweep, self._number, folder.record.config
        assert isinstance(config, EpochConfig), "the command refuses other kinds"
        with super().track(folder, {**tags, "sweep": sweep.folder.name, "trial": str(number)}) as tracker:
            sweep.set_run(number, folder.record.run_id)
            tracker.followers = (Curve(sweep, number, config.epochs),)
            try:
                yield tracker
            except PrunedError as pruned:
                tracker.set_tags({"pruned": str(pruned)})
                shutil.rmtree(folder.path)
                raise


def run_sweep(
    sweep: Sweep, make_config: Callable[[Mapping[str, Any]], AnyConfig], limit: int | None, hours: float | None
) -> None:
    """Train trials until the sweep has as many as wanted, or the time is over; one line says what came of each.

    Args:
        sweep: Trials.
        make_config: Returns the settings of a training with some searched ones.
        limit: Number of trials of the whole sweep, those of other processes and earlier commands included.
        hours: Time after which no trial begins; one that has begun is trained to its end.
    """
    settings, end_s = load_settings(), time.monotonic() + 3600 * (float("inf") if hours is None else hours)
    record, name = sweep.record, sweep.folder.name
    done = sum(trial.state.is_finished() for trial in sweep.trials)
    print(
        f"sweep {name} of {record.config.recipe} over {', '.join(record.space)}: {done} trials done"
        + ("" if limit is None else f" of {limit}"),
        flush=True,
    )
    key = hashlib.sha256(name.encode() + (sweep.folder / SWEEP_FILE).read_bytes()).hexdigest()
    failures = 0
    with open_study(settings, ()) as study:
        with hold_lock(sweep.folder / "parent.lock", "beginning the sweep"):
            parent = study.open("sweep", key, f"sweep {name}", is_continued=True)
        while True:
            with sweep.claim(limit, lambda: time.monotonic() < end_s) as trial:
                if trial is None:
                    break
                failures = 0 if _train_trial(sweep, trial, make_config, parent) else failures + 1
            if failures == MOST_FAILURES and sweep.best is None:
                raise TrainingError(
                    f"{failures} trials failed one after the other, the lines above say why; mend that, remove "
                    f"{sweep.folder}, and begin again"
                )
        if shares := sweep.measure_importance():
            figure = draw_shares("importance", shares)
            send_briefly(lambda: open_store(settings).log_figure(parent, figure, "figures/importance.png"))


def _train_trial(
    sweep: Sweep,
    trial: FrozenTrial,
    make_config: Callable[[Mapping[str, Any]], AnyConfig],
    parent: str,
) -> bool:
    """Return False if the trial failed."""
    number = trial.number
    begun = "resumes" if "run_id" in trial.user_attrs else "begins"
    print(
        f"trial {number} {begun}: {'  '.join(f'{name}={shorten(value)}' for name, value in trial.params.items())}",
        flush=True,
    )
    try:
        result = _train(sweep, number, make_config(trial.params), parent)
    except PrunedError as pruned:
        sweep.prune(number)
        print(
            f"trial {number} pruned {pruned}: validation accuracy {get_accuracy(sweep.trials[number]):.4f}", flush=True
        )
    except GENERAL_ERRORS:
        raise
    except Exception as error:  # noqa: BLE001 - one that fails does not stop the others
        sweep.fail(number, name_reason(error))
        print(f"trial {number} failed: {name_reason(error)}", flush=True)
        return False
    else:
        sweep.complete(number, result.metrics[ACCURACY])
        best = sweep.best
        assert best is not None, "this one is complete"
        is_best = "the best so far" if best.number == number else f"the best has {best.value:.4f}"
        print(f"trial {number} finished: validation accuracy {result.metrics[ACCURACY]:.4f}, {is_best}", flush=True)
    return True


def _train(sweep: Sweep, number: int, config: AnyConfig, parent: str) -> RunResult:
    """Return the result of a trial, that of an equal run where there is one."""
    inputs = open_inputs(config)
    kept = find_kept(inputs)
    if kept is None:
        return train(inputs, TrialTracking(sweep, number, parent), lock_device)
    print(f"trial {number} keeps run {kept.run_id}: same settings, images and code", flush=True)
    sweep.set_run(number, kept.run_id)
    return kept
