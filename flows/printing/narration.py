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
# For so long lines tell of it where there is no terminal.
FIRST_LINES_S = 60.0
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
def showing_silence(command: str) -> Iterator[None]:
    """Show how long a command has been silent while the block runs.

    On a terminal the next output takes the place of the counter. Elsewhere lines on standard error tell of silences in
    the first minute: what works for longer prints lines of its own.
    """
    if sys.stdout is None or sys.stderr is None:  # closed by who started the command
        yield
        return
    silence = _Silence(command, sys.stderr, is_terminal=sys.stderr.isatty() and sys.stdout.isatty())
    thread = threading.Thread(target=silence.watch, name="silence", daemon=True)
    try:
        with redirect_stdout(_Watched(sys.stdout, silence)), redirect_stderr(_Watched(sys.stderr, silence)):
            thread.start()
            yield
    finally:
        silence.stop()


class _Silence:
    """Time since the last output, which is shown once it is long."""

    def __init__(self, command: str, stream: TextIO, *, is_terminal: bool) -> None:
        self._command, self._stream, self._is_terminal = command, stream, is_terminal
        self._lock = threading.RLock()  # a signal's handler may print while this thread does
        self._stopped = threading.Event()
        self._start_s = self._last_s = time.monotonic()
        self._due_s = SILENCE_S
        self._ends_line, self._is_shown = True, False

    def watch(self) -> None:
        """Show the silence until `stop`; an unfinished line, such as a progress bar, stays as it is."""
        while not self._stopped.wait(_INTERVAL_S):
            with self._lock:
                now_s = time.monotonic()
                silent_s = now_s - self._last_s
                if silent_s < self._due_s or not self._ends_line or self._stopped.is_set():
                    continue
                if self._is_terminal:
                    self._stream.write(f"{_CLEAR_LINE}  {silent_s:.0f} s")
                    self._is_shown = True
                elif now_s - self._start_s < FIRST_LINES_S:
                    self._stream.write(f"{self._command}: {now_s - self._start_s:.0f} s so far\n")
                    self._due_s = silent_s + SECONDS_BETWEEN_LINES
                self._stream.flush()

    def write(self, stream: TextIO, text: str) -> int:
        """Write to a stream, in the place of what is shown."""
        with self._lock:
            self._clear()
            self._last_s = time.monotonic()
            if not self._is_terminal:
                self._due_s = SECONDS_BETWEEN_LINES
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
            self._stream.write(_CLEAR_LINE)
            self._stream.flush()
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
