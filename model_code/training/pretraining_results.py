"""What a pretraining run is given, tells while it goes on, and returns when it is done.

Shape suffixes: N = pictures, H = height, W = width, C = the three colour channels.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model_code.training.pictures import Pictures


@dataclass(frozen=True)
class PretrainingPictures:
    """The pictures of one run, on the training device.

    Attributes:
        images_NHWC: uint8; learned from, without labels.
        memory: Labelled pictures that vote on the others.
        validation: Labelled pictures that choose the best epoch; none of them is in `memory`.
        classes: Names in label order.
    """

    images_NHWC: Tensor
    memory: Pictures
    validation: Pictures
    classes: tuple[str, ...]


@dataclass(frozen=True)
class PretrainingEpoch:
    """One finished epoch.

    Attributes:
        epoch: Counted from 1.
        loss: Mean over the steps, in [-1, 1]; -1 is agreement.
        feature_std: Of the projections of the last step; near 1 / sqrt(embedding width) is healthy, 0 is collapse.
        knn_accuracy: Of the validation pictures, in [0, 1]; None in an epoch that was not monitored.
        learning_rate: Of backbone and projector in the last step.
        seconds: Training and monitor.
        pictures_per_s: Training only; a picture counts once for its two views.
    """

    epoch: int
    loss: float
    feature_std: float
    knn_accuracy: float | None
    learning_rate: float
    seconds: float
    pictures_per_s: float


@dataclass(frozen=True)
class PretrainingResult:
    """A complete run.

    Attributes:
        history: Every epoch, in order.
        best_epoch: First epoch with the highest kNN accuracy among those that were monitored.
        best_weights: Its backbone, safetensors, without a last layer.
        last_weights: The backbone after the last epoch, safetensors.
    """

    history: tuple[PretrainingEpoch, ...]
    best_epoch: int
    best_weights: Path
    last_weights: Path

    @property
    def best(self) -> PretrainingEpoch:
        """Metrics of the best epoch."""
        return self.history[self.best_epoch - 1]


class PretrainingCallback:
    """Base of whatever wants to follow a run; every method does nothing until overridden."""

    def on_resume(self, history: tuple[PretrainingEpoch, ...]) -> None:
        """An interrupted run goes on; these epochs were finished before."""

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """A step of an epoch is done; `step` and `epoch` count from 1."""

    def on_epoch_end(self, metrics: PretrainingEpoch) -> None:
        """An epoch is done, monitored if it was due, and kept on disk if that was due."""
