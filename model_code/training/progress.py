"""Progress for people: a bar on a terminal, a plain line now and then in a log file."""

import sys
import time
from typing import Any

from tqdm import tqdm

from model_code.data.progress import count_bar_columns
from model_code.training.results import Callback, FinishedEpoch

SECONDS_BETWEEN_LOG_LINES = 20.0


class ProgressPrinter(Callback):
    """Print each epoch as one line, and the steps between as a bar that only a terminal sees.

    Args:
        epochs: Number of epochs.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._bar: tqdm[Any] | None = None
        self._last_line_s = time.monotonic()
        self._is_terminal = sys.stdout.isatty()

    def on_resume(self, history: tuple[FinishedEpoch, ...]) -> None:
        """Say where the run goes on."""
        if history:
            tqdm.write(f"  goes on after epoch {len(history)} of {self._epochs}")

    def on_resume_epoch(self, epoch: int, step: int, steps: int) -> None:
        """Say where in the epoch."""
        tqdm.write(f"  goes on in epoch {epoch} of {self._epochs} after step {step} of {steps}")

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Move the bar, or print a line if the last one is old."""
        if self._is_terminal:
            if self._bar is None:
                title = f"epoch {epoch}/{self._epochs}"
                self._bar = tqdm(total=steps, desc=title, leave=False, unit="step", ncols=count_bar_columns())
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        elif time.monotonic() - self._last_line_s >= SECONDS_BETWEEN_LOG_LINES:
            self._print(f"epoch {epoch}/{self._epochs}  step {step}/{steps}  loss {loss:.3f}")

    def on_epoch_end(self, metrics: FinishedEpoch) -> None:
        """Close the bar and print the epoch."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        # A run that goes on after an epoch's last step has none to measure.
        rate = f"  {metrics.pictures_per_s:.0f} img/s" if metrics.pictures_per_s else ""
        self._print(f"epoch {metrics.epoch}/{self._epochs}  {metrics.describe()}{rate}  {metrics.seconds:.0f} s")

    def _print(self, line: str) -> None:
        self._last_line_s = time.monotonic()
        print(f"  {line}", flush=True)
