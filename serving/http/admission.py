"""Memory of the bodies that are read or classified, with a limit for all together."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.errors import OverloadedError
from serving.limits import LARGE_BODY_BYTES, LARGE_SHARE, MAX_HELD_BYTES

GIVEN_UP = "the body arrived too slowly while many others were being read; try again"


class Admission:
    """Bytes held, counted on the event loop only, so that it needs no lock.

    Attributes:
        held_bytes: Bytes that have arrived of all bodies that are being read or classified.
    """

    def __init__(self, max_bytes: int = MAX_HELD_BYTES, clock: Callable[[], float] = time.perf_counter) -> None:
        self._max_bytes = max_bytes
        self.held_bytes = 0
        self.clock = clock
        self.reading: set[Holding] = set()

    @contextmanager
    def hold(self) -> Iterator["Holding"]:
        """Return an account for one body's bytes, given back at the end of the block."""
        holding = Holding(self)
        try:
            yield holding
        finally:
            self.held_bytes -= holding.size_bytes

    def take(self, size_bytes: int, holding: "Holding") -> None:
        """Count bytes of one body as held; where they do not fit, the body that holds most for longest is given up.

        A quarter of the room is for small bodies, so that large, slow ones cannot fill it.

        Raises:
            OverloadedError: Together with the other requests they are too many.
        """
        is_large = holding.size_bytes + size_bytes > LARGE_BODY_BYTES
        room_bytes = (LARGE_SHARE if is_large else 1) * self._max_bytes
        while self.held_bytes + size_bytes > room_bytes:
            now_s = self.clock()
            slowest = max(self.reading, key=lambda one: one.measure_byte_seconds(now_s), default=holding)
            if slowest is holding or not slowest.size_bytes:
                raise OverloadedError("the requests being read are too large together; try again")
            self.reading.discard(slowest)
            self.held_bytes -= slowest.give_up()
        self.held_bytes += size_bytes


class Holding:
    """The bytes of one body.

    Attributes:
        size_bytes: Held so far.
        is_given_up: True if the body was given up for others.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.size_bytes = 0
        self.is_given_up = False
        self._start_s = 0.0
        self._on_give_up: Callable[[], None] = lambda: None

    def take(self, size_bytes: int) -> None:
        """Hold so many bytes more.

        Raises:
            OverloadedError: Together with the other requests they are too many.
        """
        if self.is_given_up:
            raise OverloadedError(GIVEN_UP)
        self._admission.take(size_bytes, self)
        self.size_bytes += size_bytes

    @contextmanager
    def read(self, give_up: Callable[[], None]) -> Iterator[None]:
        """Let the body be given up for others within the block, by a call of `give_up`."""
        admission = self._admission
        self._start_s, self._on_give_up = admission.clock(), give_up
        admission.reading.add(self)
        try:
            yield
        finally:
            admission.reading.discard(self)

    def measure_byte_seconds(self, now_s: float) -> float:
        """Return the memory that the body has taken, bytes times seconds; its announced size does not count."""
        return self.size_bytes * (now_s - self._start_s)

    def give_up(self) -> int:
        """End the reading; returns the bytes that were held."""
        freed_bytes, self.size_bytes, self.is_given_up = self.size_bytes, 0, True
        self._on_give_up()
        return freed_bytes
