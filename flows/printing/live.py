"""Runs that train side by side: on a terminal a line for each that changes in place, below what is printed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout

from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

from flows.printing.lines import print_line
from serving.printable import show


class LiveRuns:
    """Last line of each run in training; elsewhere than on a terminal every line is printed.

    Attributes:
        is_live: True on a terminal.
        rows: Lines that change, by the number of the run.
    """

    def __init__(self) -> None:
        self._stream, self.is_live = sys.stdout, sys.stdout.isatty()
        self.rows: dict[int, tqdm[None]] = {}

    def say(self, number: int, name: str, line: str) -> None:
        """Show a line of a run: its epochs in place, all else above."""
        if not (self.is_live and line.startswith("epoch ")):
            print_line(f"{name} | {line}")
            return
        if number not in self.rows:
            self.rows[number] = tqdm(file=self._stream, bar_format="{desc}", leave=False, dynamic_ncols=True)
        # What a narrow terminal cuts off is the rest.
        parts = sorted(line.split("  "), key=lambda part: not part.startswith(("epoch ", "validation ")))
        self.rows[number].set_description_str(show("  ".join([name, *parts])))

    def end(self, number: int) -> None:
        """Take away the line of a run."""
        if number in self.rows:
            self.rows.pop(number).close()


@contextmanager
def showing_runs() -> Iterator[LiveRuns]:
    """Show runs while the block runs; what is printed meanwhile stays above them."""
    runs = LiveRuns()
    above = redirect_stdout(DummyTqdmFile(sys.stdout)) if runs.is_live else nullcontext()
    try:
        with above:
            yield runs
    finally:
        for number in tuple(runs.rows):
            runs.end(number)
