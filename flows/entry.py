"""Entry point of the `darkroom` command: Ctrl-C ends it in one line from here on, also while modules are imported."""

import os
import signal
from types import FrameType

INTERRUPTED = 130


def main() -> None:
    """Run the command."""
    # A command in the background of a shell ignores Ctrl-C, which is for the one in the foreground.
    has_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if has_ctrl_c:
        signal.signal(signal.SIGINT, _end)
    from flows.cli import main as run

    if has_ctrl_c:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _end(_signum: int, _frame: FrameType | None) -> None:
    os.write(2, b"\ndarkroom: interrupted\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
