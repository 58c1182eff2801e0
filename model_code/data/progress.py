"""Progress that people see on a terminal and that a log file is not filled with."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def show_progress(
    title: str, total: int, unit: str, is_shown: bool = True, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal; elsewhere stay quiet but for one line at the end.

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
    is_terminal = sys.stderr.isatty()
    count = done
    with tqdm(
        desc=title,
        total=total or None,
        initial=done,
        unit=unit if unit == "B" else f" {unit}",
        unit_scale=unit == "B",
        disable=None if is_shown else True,
    ) as bar:

        def advance(units: int) -> None:
            nonlocal count
            count += units
            bar.update(units)

        yield advance
    if is_shown and not is_terminal:
        sys.stderr.write(f"{title}: {count} {unit} in {time.monotonic() - started_s:.1f} s\n")
