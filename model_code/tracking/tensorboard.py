"""The scalars and the model graph that the articles look at, as TensorBoard events."""

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from model_code.tracking.run_tracker import TENSORBOARD_FOLDER, Events
from model_code.training.results import FinishedEpoch


class TensorBoardWriter(Events):
    """Writes events into `<run folder>/tensorboard`; a run that goes on writes its finished epochs anew."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / TENSORBOARD_FOLDER
        self._writer = SummaryWriter(str(self._folder))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def on_resume(self, history: tuple[FinishedEpoch, ...]) -> None:
        """Write the finished epochs anew: the killed process may have kept the last ones in its buffer."""
        self._writer.close()
        shutil.rmtree(self._folder)
        self._writer = SummaryWriter(str(self._folder))
        for metrics in history:
            self.on_epoch_end(metrics)

    def on_epoch_end(self, metrics: FinishedEpoch) -> None:
        """Write one point of each curve."""
        self.write(metrics.list_metrics(), metrics.epoch)

    def write(self, metrics: Mapping[str, float], epoch: int, time_s: float | None = None) -> None:
        """Write one point of each curve: of now, or of a time since 1970."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, epoch, time_s)

    def write_graph(self, model: nn.Module, images_BHWC: Tensor) -> None:
        """Write the model's graph, traced with some uint8 images."""
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # tracing is deprecated in torch, and what TensorBoard's graph needs
            self._writer.add_graph(model.eval(), images_BHWC)
