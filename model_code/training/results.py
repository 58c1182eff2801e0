"""Results of epoch-based trainings: events during the run, and the final result."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar


@dataclass(frozen=True)
class FinishedEpoch(ABC):
    """One finished epoch, whatever was trained.

    Attributes:
        epoch: Counted from 1.
        learning_rate: Used in this epoch.
        seconds: Training and validation.
        pictures_per_s: Training only.
    """

    epoch: int
    learning_rate: float
    seconds: float
    pictures_per_s: float

    @property
    @abstractmethod
    def score(self) -> float | None:
        """What chooses the best epoch, higher is better; None in an epoch that cannot be chosen."""

    @abstractmethod
    def list_metrics(self) -> dict[str, float]:
        """Return the epoch's point of each curve by its name, `<split>/<metric>`, what people compare first."""

    @abstractmethod
    def describe(self) -> str:
        """Return the epoch in a few words, for people."""


@dataclass(frozen=True)
class EpochMetrics(FinishedEpoch):
    """One finished epoch of supervised training.

    Attributes:
        train_loss: Mean cross-entropy over the steps, nats, measured while the weights moved.
        train_accuracy: The same for the share of right labels, in [0, 1].
        validation_loss: Mean cross-entropy after the epoch, nats.
        validation_accuracy: In [0, 1].
        validation_macro_f1: In [0, 1].
    """

    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    validation_macro_f1: float

    @property
    def score(self) -> float:
        """The validation accuracy."""
        return self.validation_accuracy

    def list_metrics(self) -> dict[str, float]:
        """Return the epoch's point of each curve by its name."""
        return {
            "validation/accuracy": self.validation_accuracy,
            "validation/loss": self.validation_loss,
            "validation/macro_f1": self.validation_macro_f1,
            "train/loss": self.train_loss,
            "train/accuracy": self.train_accuracy,
            "train/pictures_per_s": self.pictures_per_s,
            "train/seconds": self.seconds,
            "train/learning_rate": self.learning_rate,
        }

    def describe(self) -> str:
        """Return the epoch in a few words."""
        return (
            f"loss {self.train_loss:.3f} accuracy {self.train_accuracy:.3f}"
            f"  validation {self.validation_loss:.3f} {self.validation_accuracy:.3f}"
        )


@dataclass(frozen=True)
class PretrainingEpoch(FinishedEpoch):
    """One finished epoch of SimSiam; the learning rate is that of backbone and projector in the last step.

    Attributes:
        loss: Mean over the steps, in [-1, 1]; -1 is agreement.
        feature_std: Of the projections of the last step; near 1 / sqrt(embedding width) is healthy, 0 is collapse.
        knn_accuracy: kNN accuracy on the validation images, in [0, 1]; None in an epoch that was not monitored.
    """

    loss: float
    feature_std: float
    knn_accuracy: float | None

    @property
    def score(self) -> float | None:
        """The kNN accuracy, where it was measured."""
        return self.knn_accuracy

    def list_metrics(self) -> dict[str, float]:
        """Return the epoch's point of each curve by its name."""
        metrics = {
            "train/loss": self.loss,
            "train/feature_std": self.feature_std,
            "train/pictures_per_s": self.pictures_per_s,
            "train/seconds": self.seconds,
            "train/learning_rate": self.learning_rate,
        }
        return metrics if self.knn_accuracy is None else {"validation/knn_accuracy": self.knn_accuracy, **metrics}

    def describe(self) -> str:
        """Return the epoch in a few words."""
        monitored = "" if self.knn_accuracy is None else f"  kNN accuracy {self.knn_accuracy:.3f}"
        return f"loss {self.loss:.3f}  std of features {self.feature_std:.4f}{monitored}"


Epoch = TypeVar("Epoch", bound=FinishedEpoch)


@dataclass(frozen=True)
class TrainingResult(Generic[Epoch]):
    """A complete run.

    Attributes:
        history: Every epoch, in order.
        best_epoch: First epoch with the highest score.
        best_weights: Its weights, safetensors.
        last_weights: Weights of the last epoch, safetensors.
        parts: Micro-batches of a batch at the end, more than was asked for where the device's memory was full.
        engine: How the steps of this process were really computed, for people.
        seconds_before: Time of the epochs and steps that were finished before this process resumed the run.
    """

    history: tuple[Epoch, ...]
    best_epoch: int
    best_weights: Path
    last_weights: Path
    parts: int
    engine: str
    seconds_before: float = field(default=0, kw_only=True)

    @property
    def best(self) -> Epoch:
        """Metrics of the best epoch."""
        return self.history[self.best_epoch - 1]


@dataclass(frozen=True)
class DeviceChange:
    """A run resumed on another kind of device.

    Attributes:
        before: Kind of device until then, `cuda` or `cpu`.
        now: Kind of device from then on.
        epoch: Epochs finished before.
    """

    before: str
    now: str
    epoch: int

    def describe(self) -> str:
        """Return the change in a few words, for people."""
        return f"{self.before} to {self.now} after epoch {self.epoch}"


class Callback:
    """Base of whatever wants to follow a run; every method does nothing until overridden.

    Attributes:
        wants_stop: True if the run is to end after this step, with its state kept.
    """

    wants_stop: bool = False

    def on_device_change(self, change: DeviceChange) -> None:
        """An interrupted run goes on on another kind of device; before `on_resume`."""

    def on_resume(self, history: tuple[FinishedEpoch, ...]) -> None:
        """An interrupted run goes on; these epochs were finished before."""

    def on_resume_epoch(self, epoch: int, step: int, steps: int) -> None:
        """It goes on in the middle of an epoch, of which so many steps are done; follows `on_resume`."""

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """A step of an epoch is done; `step` and `epoch` count from 1."""

    def on_epoch_end(self, metrics: FinishedEpoch) -> None:
        """An epoch is validated, if it was due; its checkpoint is on its way to the disk."""
