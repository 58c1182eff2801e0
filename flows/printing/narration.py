"""Output of a command while it works, apart from its results."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from serving.listing import Form


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
