"""Entry point of the `darkroom` command and its SIGINT handlers."""

import os
import signal
from threading import Event
from types import FrameType

INTERRUPTED = 130
_interrupted = Event()


def main() -> None:
    """Run the command."""
    # A command in the background of a shell ignores Ctrl-C, which is for the one in the foreground.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    from flows.cli import main as run

    run()


def begin_work() -> None:
    """Let Ctrl-C raise KeyboardInterrupt from here on; until then it ends the process at once."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, _interrupt)


def check_interrupted() -> None:
    """Raise KeyboardInterrupt again, if a library swallowed it in a callback or while it was imported."""
    if _interrupted.is_set():
        raise KeyboardInterrupt


def _end(_signum: int, _frame: FrameType | None) -> None:
    os.write(2, b"\ndarkroom: interrupted\n")
    os._exit(INTERRUPTED)


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    _interrupted.set()
    raise KeyboardInterrupt
