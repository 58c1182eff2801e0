"""Output of a command while it works, apart from its results."""

import io
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from serving.listing import Form

# A terminal that is silent for so long shows since when.
SILENCE_S = 2.5
_INTERVAL_S = 0.5
_CLEAR_LINE = "\r\x1b[K"


class Nowhere(io.TextIOBase):
    """A stream that keeps nothing. It is never closed: handlers of logs hold the stream that they were made with."""

    def write(self, text: str) -> int:
        """Return the length of the text, as if it were written."""
        return len(text)


@contextmanager
def narrating(form: Form, *, is_quiet: bool = False) -> Iterator[None]:
    """Keep what is printed while the block runs apart from results: on standard error for JSON and CSV.

    Args:
        form: Form of the results.
        is_quiet: True to print neither lines nor progress; errors are raised, and told by the command.
    """
    if is_quiet:
        nowhere = Nowhere()
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    elif form != "table":
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield


@contextmanager
def showing_silence() -> Iterator[None]:
    """Show on a terminal how long a command has been silent while the block runs; the next output takes its place."""
    terminal = sys.stderr
    if not (terminal.isatty() and sys.stdout.isatty()):
        yield
        return
    silence = _Silence(terminal)
    thread = threading.Thread(target=silence.watch, name="silence", daemon=True)
    try:
        with redirect_stdout(_Watched(sys.stdout, silence)), redirect_stderr(_Watched(terminal, silence)):
            thread.start()
            yield
    finally:
        silence.stop()


class _Silence:
    """Time since the last output, which a line at the end of the terminal shows once it is long."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._lock = threading.RLock()  # a signal's handler may print while this thread does
        self._stopped = threading.Event()
        self._last_s = time.monotonic()
        self._ends_line, self._is_shown = True, False

    def watch(self) -> None:
        """Show the silence until `stop`; an unfinished line, such as a progress bar, stays as it is."""
        while not self._stopped.wait(_INTERVAL_S):
            with self._lock:
                silent_s = time.monotonic() - self._last_s
                if silent_s >= SILENCE_S and self._ends_line and not self._stopped.is_set():
                    self._terminal.write(f"{_CLEAR_LINE}  {silent_s:.0f} s")
                    self._terminal.flush()
                    self._is_shown = True

    def write(self, stream: TextIO, text: str) -> int:
        """Write to a stream of the terminal, in the place of what is shown."""
        with self._lock:
            self._clear()
            self._last_s = time.monotonic()
            if text:
                self._ends_line = text.endswith("\n")
            return stream.write(text)

    def stop(self) -> None:
        """Show nothing any more."""
        with self._lock:
            self._stopped.set()
            self._clear()

    def _clear(self) -> None:
        if self._is_shown:
            self._terminal.write(_CLEAR_LINE)
            self._terminal.flush()
            self._is_shown = False


class _Watched:
    """A stream of the terminal whose output ends a silence."""

    def __init__(self, stream: TextIO, silence: _Silence) -> None:
        self._stream, self._silence = stream, silence

    def write(self, text: str) -> int:
        """Write to the stream."""
        return self._silence.write(self._stream, text)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self._stream, name)
