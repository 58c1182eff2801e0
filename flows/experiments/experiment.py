"""What every kind of run offers to the training flow."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from model_code.tracking.run_tracker import RunTracker
from model_code.tracking.tensorboard import TensorBoardWriter
from model_code.training.interruption import InterruptionWatcher
from model_code.training.progress import ProgressPrinter
from model_code.training.results import Callback, TrainingResult
from model_code.training.run_folder import RunFolder


@dataclass(frozen=True)
class ExperimentResult:
    """What came out of a run.

    Attributes:
        metrics: Final figures by their name in MLflow, `<split>/<metric>`; those of `training` are added to them.
        training: The epochs and their weights; None where nothing is trained in epochs.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    training: TrainingResult[Any] | None = None


class Experiment(ABC):
    """A run whose pictures are loaded and whose settings go together."""

    @property
    @abstractmethod
    def pictures_line(self) -> str:
        """Which pictures the run uses, for people."""

    @abstractmethod
    def run(self, folder: RunFolder, tracker: RunTracker) -> ExperimentResult:
        """Do the work and log what only this kind of run logs."""


@contextmanager
def follow_epochs(
    folder: RunFolder, tracker: RunTracker, epochs: int
) -> Iterator[tuple[Sequence[Callback], TensorBoardWriter]]:
    """Yield what follows every run of epochs: console, MLflow, TensorBoard and the watch for Ctrl-C."""
    with TensorBoardWriter(folder.path) as events, InterruptionWatcher() as watcher:
        progress = ProgressPrinter(folder.record.config.recipe, epochs)
        yield [progress, tracker, events, watcher], events
