"""Heartbeats of threads that work beside the event loop, from which `/livez` learns that one hangs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Heartbeat:
    """Time of the last progress of a thread that has something to do; written by that thread, read by any."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start idle.

        Args:
            limit_s: Longest time between two heartbeats of a thread that works, seconds.
            clock: Seconds since any moment.
        """
        self._limit_s = limit_s
        self._clock = clock
        self._beat_s: float | None = None

    @property
    def is_hung(self) -> bool:
        """True if the thread works on something and has made no progress for longer than the limit."""
        beat_s = self._beat_s
        return beat_s is not None and self._clock() - beat_s > self._limit_s

    def beat(self) -> None:
        """Note progress."""
        self._beat_s = self._clock()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Expect heartbeats within the block; its beginning is the first."""
        self.beat()
        try:
            yield
        finally:
            self._beat_s = None
