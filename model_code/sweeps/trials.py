"""Trials of a sweep: proposals, locks and results, in a folder that processes share.

sweep.json      what all trials have in common and the space, written first
journal.log     Optuna's journal: settings, validation curves and ends of the trials
journal.lock    held (flock) while a line of the journal is written
claim.lock      held (flock) while a process takes its next trial
N.lock          held (flock) by the process that trains trial N; the kernel frees it when that process dies
CHECKSUM.lock   held (flock) while a trial with these settings is trained
parent.lock     held (flock) while the sweep's run in MLflow is made
"""

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import BaseModel, ConfigDict, ValidationError

from model_code.disk import cut_torn_line, hold_lock, take_lock, write_atomically, writing_to
from model_code.errors import BusyError, UsageError
from model_code.sweeps.space import Choices, Range, Space, restore_space
from model_code.training.device import derive_seed
from model_code.training.run_folder import AnyConfig

SWEEP_FILE, JOURNAL_FILE = "sweep.json", "journal.log"
# Complete trials from which on the importance of settings is told.
WEIGHED_TRIALS = 5
_STUDY = "sweep"
_LOG_BYTES = 1_000
optuna.logging.set_verbosity(optuna.logging.WARNING)


class MendingLock(BaseJournalFileLock):
    """Lock of Optuna's journal, which the kernel frees when its holder dies; the next one cuts off a torn line."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._held = ExitStack()

    def acquire(self) -> bool:
        """Wait for the lock, then mend the journal."""
        with ExitStack() as taken:
            file = taken.enter_context(self._journal.with_suffix(".lock").open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX)
            cut_torn_line(self._journal)
            self._held = taken.pop_all()
        return True

    def release(self) -> None:
        """Let the next one write."""
        self._held.close()


class _Journal(JournalFileBackend):
    """Optuna's journal, whose errors of the disk are one line each; what was cut short is mended by the lock."""

    def __init__(self, file: Path) -> None:
        super().__init__(str(file), lock_obj=MendingLock(file))
        self._file = file

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write what happened to a trial."""
        with writing_to(self._file.parent, _LOG_BYTES * len(logs), f"writing {self._file.name}"):
            super().append_logs(logs)


class SweepRecord(BaseModel):
    """What the trials of a sweep have in common.

    Attributes:
        config: Settings, but for those that are searched.
        images: Checksum of the packed images.
        space: The settings to search, as JSON has them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: AnyConfig
    images: str
    space: dict[str, Any]


class Sweep:
    """Trials of one sweep; made by the first process and joined by others.

    Args:
        folder: Its folder; created when missing.
        config: Settings, but for those that are searched; its seed is the sweep's.
        images: Checksum of the packed images.
        space: Settings to search.
        prune_after: Trials that must be complete before others are ended early; 0 ends none.

    Raises:
        UsageError: The folder's sweep has other settings, images or another space.
    """

    def __init__(self, folder: Path, config: AnyConfig, images: str, space: Space, prune_after: int) -> None:
        self.folder, self.prune_after, self._seed = folder, prune_after, config.seed
        self._distributions = {name: _convert(searched) for name, searched in space.items()}
        # A finished run that was taken instead of a new one has no curve to compare with.
        fewest = {"n_startup_trials": prune_after, "n_min_trials": prune_after}
        self._pruner = MedianPruner(**fewest) if prune_after else None
        shown = {name: one.model_dump() if isinstance(one, Range) else list(one) for name, one in space.items()}
        self.record = SweepRecord(config=config, images=images, space=shown)
        with self._claiming():
            _check_record(folder, self.record)
            journal = folder / JOURNAL_FILE
            try:
                self._storage = JournalStorage(_Journal(journal))
                self._study = optuna.create_study(
                    storage=self._storage, study_name=_STUDY, direction="maximize", load_if_exists=True
                )
            except (ValueError, KeyError) as error:
                raise UsageError(f"{journal} is damaged ({error}); {_describe_remedy(folder)}") from error
        self._study_id = self._storage.get_study_id_from_name(_STUDY)

    @classmethod
    def join(cls, folder: Path, prune_after: int) -> "Sweep":
        """Open a sweep that another process has made; see the class.

        Raises:
            UsageError: Its record is damaged or of another version.
        """
        record = _read_record(folder)
        return cls(folder, record.config, record.images, restore_space(record.space), prune_after)

    @property
    def trials(self) -> list[FrozenTrial]:
        """Every trial, in order of its number."""
        return self._study.get_trials(deepcopy=False)

    @property
    def has_unfinished(self) -> bool:
        """Whether another process still trains a trial, or has left one."""
        return any(not trial.state.is_finished() for trial in self.trials)

    @contextmanager
    def claim(self, limit: int | None, is_open: Callable[[], bool] = lambda: True) -> Iterator[FrozenTrial | None]:
        """Yield a trial for this process alone while the block runs: one that a dead process left, or a new one.

        Args:
            limit: Number of trials of the whole sweep; None for no limit.
            is_open: Returns whether a new trial may begin.
        """
        with ExitStack() as held:
            with self._claiming():
                trial = self._take_left(held)
                count = len(self.trials)
                if trial is None and is_open() and (limit is None or count < limit):
                    held.enter_context(self._hold(count))
                    trial = self._propose(count)
            yield trial

    def set_run(self, number: int, run_id: str) -> None:
        """Note the run of a trial."""
        self._storage.set_trial_user_attr(self._find_id(number), "run_id", run_id)

    def report(self, number: int, epoch: int, score: float) -> None:
        """Note a point of a trial's validation curve."""
        self._storage.set_trial_intermediate_value(self._find_id(number), epoch, score)

    def should_prune(self, number: int) -> bool:
        """Whether a trial is to be ended early: its best epoch is below the median of the complete ones at this one."""
        return self._pruner is not None and self._pruner.prune(self._study, self.trials[number])

    def complete(self, number: int, accuracy: float) -> None:
        """End a trial with its validation accuracy."""
        self._end(number, TrialState.COMPLETE, accuracy)

    def prune(self, number: int) -> None:
        """End a trial early."""
        self._end(number, TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """End a trial without a figure."""
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(self._find_id(number), "reason", reason)
        self._end(number, TrialState.FAIL)

    def _end(self, number: int, state: TrialState, accuracy: float | None = None) -> None:
        # A process that was thought dead may have ended it, even at this moment: the first end counts.
        with suppress(UpdateFinishedTrialError):
            self._study.tell(number, accuracy, state, skip_if_finished=True)

    @property
    def best(self) -> FrozenTrial | None:
        """The complete trial with the highest validation accuracy, the first of several; None before there is one."""
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return max(complete, key=lambda trial: trial.value or 0.0, default=None)

    def measure_importance(self) -> Mapping[str, float]:
        """Return the importance of each setting, the sum of all is 1; empty where that cannot be told."""
        accuracies = [trial.value for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
        if len(self._distributions) < 2 or len(accuracies) < WEIGHED_TRIALS or len(set(accuracies)) < 2:
            return {}
        return optuna.importance.get_param_importances(self._study)

    def _claiming(self) -> Any:  # noqa: ANN401 - a context manager
        return hold_lock(self.folder / "claim.lock", "taking a trial")

    def _hold(self, number: int) -> Any:  # noqa: ANN401 - a context manager
        return take_lock(self.folder / f"{number}.lock", f"trial {number} is trained by another process")

    def _take_left(self, held: ExitStack) -> FrozenTrial | None:
        for trial in self.trials:
            if trial.state != TrialState.RUNNING:
                continue
            with ExitStack() as tried:
                try:
                    tried.enter_context(self._hold(trial.number))
                except BusyError:
                    continue
                if self.trials[trial.number].state == TrialState.RUNNING:  # not ended since the list was read
                    held.enter_context(tried.pop_all())
                    return trial
        return None

    def _propose(self, number: int) -> FrozenTrial:
        """Enter a new trial, in one line of the journal: what it tries depends on seed, number and earlier trials."""
        draft = optuna.create_study(
            sampler=TPESampler(seed=derive_seed(self._seed, number, 0) % 2**32), direction="maximize"
        )
        draft.add_trials(self.trials)
        params = draft.ask(self._distributions).params
        self._study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=self._distributions))
        return self.trials[number]

    def _find_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


def _check_record(folder: Path, wanted: SweepRecord) -> None:
    """Write what a new sweep is; refuse another one in the same folder."""
    file = folder / SWEEP_FILE
    if not file.exists():
        write_atomically(file, wanted.model_dump_json(indent=2).encode())
        return
    found = _read_record(folder)
    words = {"config": "settings", "images": "images", "space": "space"}
    if other := [word for name, word in words.items() if getattr(found, name) != getattr(wanted, name)]:
        raise UsageError(f"sweep {folder.name} has other {' and '.join(other)}; {_describe_remedy(folder)}")


def _read_record(folder: Path) -> SweepRecord:
    file = folder / SWEEP_FILE
    try:
        return SweepRecord.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise UsageError(f"{file} is damaged or was written by another version; {_describe_remedy(folder)}") from error


def _describe_remedy(folder: Path) -> str:
    return f"repeat its command, give --name for a new sweep, or remove {folder}"


def get_accuracy(trial: FrozenTrial) -> float | None:
    """Return the best validation accuracy of a trial, so far if it was not trained to its end."""
    return trial.value if trial.state == TrialState.COMPLETE else max(trial.intermediate_values.values(), default=None)


def _convert(searched: Range | Choices) -> BaseDistribution:
    if not isinstance(searched, Range):
        return CategoricalDistribution(searched)
    if searched.is_whole:
        return IntDistribution(int(searched.low), int(searched.last), log=searched.log, step=int(searched.step or 1))
    return FloatDistribution(searched.low, searched.last, log=searched.log, step=searched.step)
