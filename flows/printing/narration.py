"""Output of a command while it works, apart from its results."""

import io
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from model_code.data.progress import SECONDS_BETWEEN_LINES
from serving.listing import Form

# A command that is silent for so long shows since when.
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
def showing_silence(first_line: str, form: Form = "table") -> Iterator[None]:
    """Print the first line of a command; then show how long it has been silent while the block runs.

    A terminal shows every silence, in the place of the next output. Elsewhere lines on standard error tell of the first
    one only: what works for long prints lines of its own.
    """
    print(first_line, file=sys.stdout if form == "table" else sys.stderr, flush=True)
    silence = _Silence(sys.stderr, first_line)
    watch = silence.watch_terminal if sys.stderr.isatty() and sys.stdout.isatty() else silence.watch_first
    thread = threading.Thread(target=watch, name="silence", daemon=True)
    try:
        with redirect_stdout(_Watched(sys.stdout, silence)), redirect_stderr(_Watched(sys.stderr, silence)):
            thread.start()
            yield
    finally:
        silence.stop()


class _Silence:
    """Time since the last output, which is shown once it is long."""

    def __init__(self, terminal: TextIO, first_line: str) -> None:
        self._terminal, self._first_line = terminal, first_line
        self._lock = threading.RLock()  # a signal's handler may print while this thread does
        self._stopped, self._has_output = threading.Event(), threading.Event()
        self._last_s = time.monotonic()
        self._ends_line, self._is_shown = True, False

    def watch_first(self) -> None:
        """Print a line for the silence before the first output, and again every ten seconds."""
        wait_s = SILENCE_S
        while not self._has_output.wait(wait_s):
            with self._lock:
                if self._has_output.is_set():
                    return
                self._terminal.write(f"{self._first_line}, {time.monotonic() - self._last_s:.0f} s so far\n")
                self._terminal.flush()
            wait_s = SECONDS_BETWEEN_LINES

    def watch_terminal(self) -> None:
        """Show the silence until `stop`; an unfinished line, such as a progress bar, stays as it is."""
        while not self._stopped.wait(_INTERVAL_S):
            with self._lock:
                silent_s = time.monotonic() - self._last_s
                if silent_s >= SILENCE_S and self._ends_line and not self._stopped.is_set():
                    self._terminal.write(f"{_CLEAR_LINE}  {silent_s:.0f} s")
                    self._terminal.flush()
                    self._is_shown = True

    def write(self, stream: TextIO, text: str) -> int:
        """Write to a stream, in the place of what is shown."""
        with self._lock:
            self._has_output.set()
            self._clear()
            self._last_s = time.monotonic()
            if text:
                self._ends_line = text.endswith("\n")
            return stream.write(text)

    def stop(self) -> None:
        """Show nothing any more."""
        with self._lock:
            self._stopped.set()
            self._has_output.set()
            self._clear()

    def _clear(self) -> None:
        if self._is_shown:
            self._terminal.write(_CLEAR_LINE)
            self._terminal.flush()
            self._is_shown = False


class _Watched:
    """A stream whose output ends a silence."""

    def __init__(self, stream: TextIO, silence: _Silence) -> None:
        self._stream, self._silence = stream, silence

    def write(self, text: str) -> int:
        """Write to the stream."""
        return self._silence.write(self._stream, text)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self._stream, name)
