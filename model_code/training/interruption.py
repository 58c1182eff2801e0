"""Ctrl-C and SIGTERM end a run between two steps, where nothing is half done."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from model_code.training.results import Callback, FinishedEpoch

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptionWatcher(Callback):
    """While it is entered, the first signal waits for the end of the step; a second one acts at once.

    An exception that a signal raises anywhere can come out of a library as another one, or leave a database half
    written. Outside the main thread, where Python delivers no signals, nothing changes.
    """

    def __init__(self) -> None:
        self._is_requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "InterruptionWatcher":
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._request) for signum in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if error is None:
            self._stop_if_requested()

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Stop here if a signal came."""
        self._stop_if_requested()

    def on_epoch_end(self, metrics: FinishedEpoch) -> None:
        """Stop here if a signal came."""
        self._stop_if_requested()

    def _request(self, _signum: int, _frame: FrameType | None) -> None:
        self._is_requested = True
        self._restore()
        print("stopping after this step; the same command goes on from the last checkpoint", flush=True)

    def _stop_if_requested(self) -> None:
        if self._is_requested:
            self._is_requested = False
            raise KeyboardInterrupt

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}
