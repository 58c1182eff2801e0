"""Progress that people see on a terminal and that a log file is not filled with."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from model_code.disk import format_size

FIRST_LINE_S, SECONDS_BETWEEN_LINES = 2.0, 10.0
# Without a rate, which tqdm writes as `3.02s/ runs`.
_COUNTING = "{l_bar}{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}]"


@contextmanager
def show_progress(
    title: str, total: int, unit: str, is_shown: bool = True, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal; elsewhere a line after two seconds, then every ten, and one at the end.

    Args:
        title: Work that is done: `packing cifar10`.
        total: Number of units; 0 when unknown.
        unit: Name of one unit: `images`; `B` scales to kB, MB and GB.
        is_shown: False shows nothing at all.
        done: Units done before.

    Yields:
        A function to call with the number of units done since the last call.
    """
    started_s = time.monotonic()
    stream, stopped = sys.stderr, threading.Event()
    count = done

    def write(shown: str) -> None:
        stream.write(f"{title}: {shown} in {time.monotonic() - started_s:.1f} s\n")
        stream.flush()

    def report() -> None:
        wait_s = FIRST_LINE_S
        while not stopped.wait(wait_s):
            write(_format(count, unit, total))
            wait_s = SECONDS_BETWEEN_LINES

    from tqdm import tqdm  # here: `predict` takes only the times of lines, and the extra [serve] has no tqdm

    with tqdm(
        desc=title,
        total=total or None,
        initial=done,
        unit=unit if unit == "B" else f" {unit}",
        unit_scale=unit == "B",
        disable=None if is_shown else True,
        ncols=count_bar_columns(),
        bar_format=None if unit == "B" or not total else _COUNTING,
    ) as bar:

        def advance(units: int) -> None:
            nonlocal count
            count += units
            bar.update(units)

        if not is_shown or stream.isatty():
            yield advance
            return
        reporter = threading.Thread(target=report, name="progress", daemon=True)
        reporter.start()
        try:
            yield advance
        finally:
            stopped.set()
            reporter.join()
    write(_format(count, unit))


def count_bar_columns() -> int | None:
    """Return the width of a bar on standard error, which leaves room for the terminal's ^C; None without a terminal."""
    try:
        return max(20, os.get_terminal_size(sys.stderr.fileno()).columns - 3)
    except (AttributeError, OSError, ValueError):  # closed, a pipe, or replaced
        return None


def _format(count: int, unit: str, total: int = 0) -> str:
    if unit == "B":
        return format_size(count) + (f" of {format_size(total)}" if total else "")
    if total:
        return f"{count} of {total} {unit}"
    return f"{count} {unit.removesuffix('s') if count == 1 else unit}"
