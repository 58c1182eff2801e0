"""What a training run tells while it goes on and returns when it is done."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EpochMetrics:
    """One finished epoch.

    Attributes:
        epoch: Counted from 1.
        train_loss: Mean cross-entropy over the steps, nats, measured while the weights moved.
        train_accuracy: The same for the share of right labels, in [0, 1].
        validation_loss: Mean cross-entropy after the epoch, nats.
        validation_accuracy: In [0, 1].
        validation_macro_f1: In [0, 1].
        learning_rate: Used in this epoch.
        seconds: Training and validation.
        pictures_per_s: Training only.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    validation_macro_f1: float
    learning_rate: float
    seconds: float
    pictures_per_s: float


@dataclass(frozen=True)
class TrainingResult:
    """A complete run.

    Attributes:
        history: Every epoch, in order.
        best_epoch: First epoch with the highest validation accuracy.
        best_weights: Its weights, safetensors.
        last_weights: Weights of the last epoch, safetensors.
    """

    history: tuple[EpochMetrics, ...]
    best_epoch: int
    best_weights: Path
    last_weights: Path

    @property
    def best(self) -> EpochMetrics:
        """Metrics of the best epoch."""
        return self.history[self.best_epoch - 1]


class Callback:
    """Base of whatever wants to follow a run; every method does nothing until overridden."""

    def on_resume(self, history: tuple[EpochMetrics, ...]) -> None:
        """An interrupted run goes on; these epochs were finished before."""

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """A step of an epoch is done; `step` and `epoch` count from 1."""

    def on_epoch_end(self, metrics: EpochMetrics) -> None:
        """An epoch is validated and its checkpoint is on disk."""
