"""Ctrl-C and SIGTERM end a run between two steps, where nothing is half done and its state can be kept."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from model_code.errors import PrunedError
from model_code.training.results import Callback

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_entered: "set[InterruptionWatcher]" = set()


def stop_after_step() -> None:
    """End the trainings of this process after their step, as the first Ctrl-C does; any thread may call it."""
    for watcher in tuple(_entered):
        watcher.request()


class InterruptionWatcher(Callback):
    """While it is entered, the first signal waits for the end of the step; a second one acts at once.

    An exception that a signal raises anywhere can come out of a library as another one, or leave a database half
    written. Outside the main thread, where Python delivers no signals, nothing changes.

    Args:
        is_patient: True if every later signal waits as well: Ctrl-C reaches each process that torchrun started twice,
            from the terminal and from torchrun, which kills those that do not end.
        is_quiet: True if another process says that the run stops.
    """

    def __init__(self, is_patient: bool = False, is_quiet: bool = False) -> None:
        self._is_patient, self._is_quiet = is_patient, is_quiet
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "InterruptionWatcher":
        _entered.add(self)
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._request) for signum in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _entered.discard(self)
        self._restore()
        if self.wants_stop and (error is None or isinstance(error, PrunedError)):
            raise KeyboardInterrupt

    def request(self) -> None:
        """Let the run end after its step."""
        if not (self.wants_stop or self._is_quiet):
            print("stopping after this step", flush=True)
        self.wants_stop = True

    def _request(self, _signum: int, _frame: FrameType | None) -> None:
        self.request()
        if not self._is_patient:
            self._restore()

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}
