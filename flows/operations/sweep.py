"""Sweep of a recipe's settings: trials one after another or side by side, nested below one run in MLflow."""

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from flows.experiments.device_lock import lock_device
from flows.experiments.training import name_reason
from flows.operations.runner import Runner, RunRequest, TrialRequest
from flows.operations.side_by_side import SideBySide
from flows.operations.trial import describe_begin, describe_end, train_trial
from flows.printing.lines import print_line
from flows.printing.summaries import Outcome
from model_code.disk import hold_lock
from model_code.errors import NodeError, TrainingError
from model_code.evaluation.figures import draw_shares
from model_code.settings import load_settings
from model_code.sweeps.trials import SWEEP_FILE, Sweep
from model_code.tracking.mlflow_log import send_briefly
from model_code.tracking.parents import open_study
from model_code.tracking.store import open_store
from model_code.training.run_folder import AnyConfig

# One after the other, before any is complete: something else than the searched settings is wrong.
MOST_FAILURES = 3
MakeConfig = Callable[[Mapping[str, Any]], AnyConfig]
Claim = Callable[[], AbstractContextManager[FrozenTrial | None]]


def run_sweep(
    sweep: Sweep, make_config: MakeConfig, limit: int | None, hours: float | None, runner: Runner | None = None
) -> None:
    """Train trials until the sweep has as many as wanted, or the time is over; one line says what came of each.

    Args:
        sweep: Trials.
        make_config: Returns the settings of a training with some searched ones.
        limit: Number of trials of the whole sweep, those of other processes and earlier commands included.
        hours: Time after which no trial begins; one that has begun is trained to its end.
        runner: Trains the trials side by side; None trains one after another in this process.
    """
    settings, end_s = load_settings(), time.monotonic() + 3600 * (float("inf") if hours is None else hours)
    record, name = sweep.record, sweep.folder.name
    done = sum(trial.state.is_finished() for trial in sweep.trials)
    print_line(
        f"sweep {name} of {record.config.recipe} over {', '.join(record.space)}: {done} trials done"
        + ("" if limit is None else f" of {limit}")
    )
    key = hashlib.sha256(name.encode() + (sweep.folder / SWEEP_FILE).read_bytes()).hexdigest()

    def claim() -> AbstractContextManager[FrozenTrial | None]:
        return sweep.claim(limit, lambda: time.monotonic() < end_s)

    with open_study(settings, ()) as study:
        with hold_lock(sweep.folder / "parent.lock", "beginning the sweep"):
            parent = study.open("sweep", key, f"sweep {name}", is_continued=True)
        if runner is None:
            _train_in_turn(sweep, claim, make_config, parent)
        else:
            _Trials(sweep, claim, make_config, parent, runner).train()
        if shares := sweep.measure_importance():
            figure = draw_shares("importance", shares)
            send_briefly(lambda: open_store(settings).log_figure(parent, figure, "figures/importance.png"))


def _train_in_turn(sweep: Sweep, claim: Claim, make_config: MakeConfig, parent: str) -> None:
    failures = 0
    while True:
        with claim() as trial:
            if trial is None:
                return
            config = make_config(trial.params)
            print_line(describe_begin(trial))
            train_trial(sweep, trial.number, config, parent, lock_device)
        print_line(describe_end(sweep, trial.number, config))
        failures = _count_failures(sweep, trial.number, failures)


def _count_failures(sweep: Sweep, number: int, before: int) -> int:
    """Return how many trials have failed one after the other, with one that has just ended.

    Raises:
        TrainingError: They are too many.
    """
    failures = before + 1 if sweep.trials[number].state == TrialState.FAIL else 0
    if failures == MOST_FAILURES and sweep.best is None:
        raise TrainingError(
            f"{failures} trials failed one after the other, the lines above say why; mend that, remove "
            f"{sweep.folder}, and begin again"
        )
    return failures


class _Trials(SideBySide):
    """Trials of a sweep that a runner trains; this process holds them, and their own note their ends in the sweep.

    Args:
        sweep: Trials.
        claim: Takes the next one.
        make_config: Returns the settings of a training with some searched ones.
        parent: Run of the sweep.
        runner: Trains them.
    """

    def __init__(self, sweep: Sweep, claim: Claim, make_config: MakeConfig, parent: str, runner: Runner) -> None:
        super().__init__(runner)
        self._sweep, self._claim, self._make_config, self._parent = sweep, claim, make_config, parent
        self._held: dict[int, ExitStack] = {}
        self._configs: dict[int, AnyConfig] = {}
        self._lost: set[int] = set()
        self._failures = 0
        self._may_claim = True
        self._error: Exception | None = None

    def train(self) -> None:
        """Train trials until there is none to claim.

        Raises:
            TrainingError: What would meet every other trial as well, or too many have failed.
            KeyboardInterrupt: A signal came; every trial was stopped after its step.
        """
        count = self._runner.at_once
        print_line(f"up to {count} trial{'' if count == 1 else 's'} at once, {self._runner.describe()}")
        try:
            self._train_all((self._sweep.record.config,), lock_device)
        finally:
            for held in self._held.values():
                held.close()
        if self._error is not None:
            raise self._error

    def _find_next(self) -> int | None:
        if not self._may_claim:
            return None
        with ExitStack() as held:
            trial = held.enter_context(self._claim())
            if trial is None:
                self._may_claim = False  # until one ends
                return None
            self._configs[trial.number] = self._make_config(trial.params)
            print_line(describe_begin(trial))
            self._held[trial.number] = held.pop_all()
        return trial.number

    def _make_request(self, number: int) -> RunRequest:
        trial = TrialRequest(folder=self._sweep.folder, number=number, prune_after=self._sweep.prune_after)
        return RunRequest(config=self._configs[number], parent_run_id=self._parent, trial=trial)

    def _name(self, number: int) -> tuple[str, AnyConfig]:
        return f"trial {number}", self._configs[number]

    def _take_end(self, number: int, end: Outcome | Exception | None) -> None:
        try:
            self._note_end(number, end)
        except Exception as error:  # noqa: BLE001 - raised once the others have stopped
            self._error = self._error or error
            self._stop()
        self._held.pop(number).close()
        self._may_claim = True

    def _note_end(self, number: int, end: Outcome | Exception | None) -> None:
        if not self._sweep.trials[number].state.is_finished():
            if end is None:
                return
            if isinstance(end, Outcome):
                raise TrainingError(end.error)
            if isinstance(end, NodeError):
                raise end
            if number not in self._lost:
                self._lost.add(number)
                print_line(f"trial {number} ended without a result: {name_reason(end)}")
                return
            self._sweep.fail(number, name_reason(end))
        print_line(describe_end(self._sweep, number, self._configs[number]))
        self._failures = _count_failures(self._sweep, number, self._failures)
