"""Interface of each kind of run to the training flow."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from model_code.data.disk_images import DiskImages
from model_code.disk import format_size
from model_code.tracking.run_tracker import Events, RunTracker
from model_code.training.batches import is_streamed
from model_code.training.engine import choose_engine
from model_code.training.epoch_config import EpochConfig
from model_code.training.interruption import InterruptionWatcher
from model_code.training.processes import Processes
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
    """A run whose images are loaded and whose settings go together."""

    @property
    @abstractmethod
    def images_line(self) -> str:
        """Which images the run uses, for people."""

    @property
    def engine_line(self) -> str | None:
        """How a step is computed, for people; None where no steps are taken."""
        return None

    @abstractmethod
    def run(self, folder: RunFolder, tracker: RunTracker) -> ExperimentResult:
        """Do the work and log what only this kind of run logs."""


class EpochExperiment(Experiment):
    """A run of epochs, which several processes can share.

    Args:
        config: All settings.
        processes: Processes that train together, and the device of this one.
        images_NHWC: The images to learn from.

    Raises:
        UsageError: The hardware lacks what the config wants, or the batch cannot be divided.
    """

    def __init__(self, config: EpochConfig, processes: Processes, images_NHWC: Tensor | DiskImages) -> None:
        self._processes = processes
        place = "resident"
        if isinstance(images_NHWC, DiskImages):
            place = "read from disk, shuffled in windows"
        elif is_streamed(images_NHWC, config.engine.pictures, processes.device):
            place = "streamed from the host"
        shared = f", {processes.count} processes" if processes.count > 1 else ""
        self._engine = choose_engine(config, processes)
        self._engine_line = f"{self._engine.describe()}, {format_size(images_NHWC.nbytes)} of images {place}{shared}"

    @property
    def engine_line(self) -> str:
        """Precision, memory layout, compilation and place of the images."""
        return self._engine_line

    @abstractmethod
    def train(self, run_dir: Path, callbacks: Sequence[Callback]) -> TrainingResult[Any]:
        """Do this process's share of the training."""

    def follow(self, run_dir: Path) -> None:
        """Train beside the first process, which alone writes and reports."""
        with InterruptionWatcher(is_patient=True, is_quiet=True) as watcher:
            self.train(run_dir, [watcher])


@contextmanager
def follow_epochs(
    folder: RunFolder, tracker: RunTracker, epochs: int, processes: Processes
) -> Iterator[tuple[Sequence[Callback], Events]]:
    """Yield what follows every run of epochs: console, tracking, TensorBoard and the watch for Ctrl-C."""
    with tracker.open_events(folder.path) as events, InterruptionWatcher(is_patient=processes.count > 1) as watcher:
        progress = ProgressPrinter(epochs)
        yield [progress, tracker, events, watcher, *tracker.followers], events
