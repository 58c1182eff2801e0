"""How much work the service takes on; what is over that is refused at once, with a time to try again."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.errors import OverloadedError
from serving.limits import LARGE_BODY_BYTES, MAX_HELD_BYTES, MAX_WAIT_S, MAX_WAITING_PICTURES

_LARGE_SHARE = 0.75
# What the speed of the queue is learned from: so much time, or so many pictures in less.
_MEASURE_S = 0.5
_MEASURE_PICTURES = 64


class Admission:
    """Counts bytes held and pictures waiting; used from the event loop only, so it needs no lock.

    Attributes:
        held_bytes: Of all bodies that are being read or classified now.
        waiting_pictures: Those that wait for decoding or classification, or are in it.
        pictures_per_s: How fast the queue moved when it last was long enough to tell; None before.
    """

    def __init__(
        self,
        max_bytes: int = MAX_HELD_BYTES,
        max_pictures: int = MAX_WAITING_PICTURES,
        max_wait_s: float = MAX_WAIT_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_pictures = max_pictures
        self._max_wait_s = max_wait_s
        self.held_bytes = 0
        self.waiting_pictures = 0
        self.pictures_per_s: float | None = None
        self._clock = clock
        self._start_s, self._done = 0.0, 0

    @contextmanager
    def hold(self) -> Iterator["Holding"]:
        """Return an account for one body's bytes, given back at the end of the block."""
        holding = Holding(self)
        try:
            yield holding
        finally:
            self.held_bytes -= holding.size_bytes

    @contextmanager
    def wait(self, pictures: int) -> Iterator[None]:
        """Take a request's places in the queue, given back at the end of the block.

        Args:
            pictures: Of the request.

        Raises:
            OverloadedError: There are too many pictures before these, or they take too long.
        """
        before = self.waiting_pictures
        wait_s = before / self.pictures_per_s if self.pictures_per_s else 0.0
        if before and (before + pictures > self._max_pictures or wait_s > self._max_wait_s):
            raise OverloadedError(
                f"{before} pictures are waiting, {wait_s:.1f} s of work; try again", max(1, math.ceil(wait_s))
            )
        if not before:
            self._start_s, self._done = self._clock(), 0
        self.waiting_pictures += pictures
        try:
            yield
        finally:
            self.waiting_pictures -= pictures
            self._measure(pictures)

    def _measure(self, pictures: int) -> None:
        """Learn from pictures that are through how fast the queue moves, decoding and all; it has not been empty."""
        self._done += pictures
        passed_s = self._clock() - self._start_s
        if passed_s < _MEASURE_S and self._done < _MEASURE_PICTURES:
            return
        speed = self._done / max(passed_s, 1e-6)
        before = self.pictures_per_s
        self.pictures_per_s = speed if before is None else (before + speed) / 2
        self._start_s, self._done = self._clock(), 0

    def take(self, size_bytes: int) -> None:
        """Count bytes as held; a quarter of the room is for small bodies, so that large, slow ones cannot fill it.

        Raises:
            OverloadedError: Together with the other requests they are too many.
        """
        share = _LARGE_SHARE if size_bytes > LARGE_BODY_BYTES else 1
        if self.held_bytes + size_bytes > share * self._max_bytes:
            raise OverloadedError("the requests being read are too large together; try again")
        self.held_bytes += size_bytes


class Holding:
    """The bytes of one body.

    Attributes:
        size_bytes: Held so far.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.size_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Hold so many bytes more.

        Raises:
            OverloadedError: Together with the other requests they are too many.
        """
        self._admission.take(size_bytes)
        self.size_bytes += size_bytes
