"""Limits of the work that the service takes on; what exceeds them is refused at once, with a time to try again."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serving.errors import OverloadedError
from serving.limits import LARGE_BODY_BYTES, LARGE_WORK_S, MAX_HELD_BYTES, MAX_WAIT_S, MAX_WAITING_PICTURES

GIVEN_UP = "the body arrived too slowly while many others were being read; try again"
_LARGE_SHARE = 0.75
# After so many seconds, what the pace was learned from counts for a third.
_MEMORY_S = 2.0
# Estimated work that is taken for done at the estimated pace. Little, so that a slow machine is soon known as one.
_PRIOR_S = 0.002
# A client that is told to wait longer than the queue remembers would stay away for nothing.
_MAX_RETRY_S = 30


class Admission:
    """Counts bytes held and images waiting; used from the event loop only, so it needs no lock.

    Attributes:
        held_bytes: Bytes that have arrived of all bodies that are being read or classified.
        waiting_pictures: Images that wait for decoding or classification, or are in it.
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
        self._waiting: list[_Waiting] = []
        self._clock = clock
        self._pace = _Pace(clock())
        self._reading: set[Holding] = set()

    @property
    def waiting_s(self) -> float:
        """Estimated work on the images that wait, seconds."""
        return sum(one.work_s for one in self._waiting)

    @contextmanager
    def hold(self) -> Iterator["Holding"]:
        """Return an account for one body's bytes, given back at the end of the block."""
        holding = Holding(self)
        try:
            yield holding
        finally:
            self.held_bytes -= holding.size_bytes

    @contextmanager
    def wait(self, pictures: int, work_s: float) -> Iterator[None]:
        """Take a request's places in the queue, given back at the end of the block.

        Args:
            pictures: Images of the request.
            work_s: Estimated work on them, seconds: `serving.decode_cost.estimate_decode_s`.

        Raises:
            OverloadedError: There are too many images before these, or they take too long.
        """
        waiting, before = _Waiting(self._clock(), work_s), self.waiting_pictures
        self._pace.advance(waiting.start_s, bool(before))
        # The largest request occupies one thread; the others are served beside it.
        largest_s = max((one.work_s for one in self._waiting), default=0.0)
        # What came first is being worked on: it is done as far as it has had time.
        begun_s = self._waiting[0].measure_done_s(waiting.start_s) if self._waiting else 0.0
        wait_s = (self.waiting_s - largest_s) * self._pace.measure_factor(begun_s)
        max_wait_s = self._max_wait_s * (_LARGE_SHARE if work_s > LARGE_WORK_S else 1)
        if before and (before + pictures > self._max_pictures or wait_s > max_wait_s):
            raise OverloadedError(
                f"{before} pictures are waiting, {wait_s:.1f} s of work; try again",
                min(max(1, math.ceil(wait_s)), _MAX_RETRY_S),
            )
        self.waiting_pictures += pictures
        self._waiting.append(waiting)
        done_s = 0.0
        try:
            yield
            done_s = work_s
        finally:
            end_s = self._clock()
            self._pace.advance(end_s, is_busy=True)
            # What was refused halfway is work too, but no more than the time that it took.
            self._pace.finish(done_s or waiting.measure_done_s(end_s))
            self.waiting_pictures -= pictures
            self._waiting.remove(waiting)

    @contextmanager
    def read(self, holding: "Holding", give_up: Callable[[], None]) -> Iterator[None]:
        """Let a body be given up for others within the block, while it is read.

        Args:
            holding: Its account.
            give_up: Ends the reading.
        """
        holding.begin(self._clock(), give_up)
        self._reading.add(holding)
        try:
            yield
        finally:
            self._reading.discard(holding)

    def take(self, size_bytes: int, holding: "Holding") -> None:
        """Count bytes of one body as held; where they do not fit, the body that holds most for longest is given up.

        A quarter of the room is for small bodies, so that large, slow ones cannot fill it.

        Raises:
            OverloadedError: Together with the other requests they are too many.
        """
        is_large = holding.size_bytes + size_bytes > LARGE_BODY_BYTES
        room_bytes = (_LARGE_SHARE if is_large else 1) * self._max_bytes
        while self.held_bytes + size_bytes > room_bytes:
            now_s = self._clock()
            slowest = max(self._reading, key=lambda one: one.measure_byte_seconds(now_s), default=holding)
            if slowest is holding or not slowest.size_bytes:
                raise OverloadedError("the requests being read are too large together; try again")
            self._reading.discard(slowest)
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
        with self._admission.read(self, give_up):
            yield

    def begin(self, start_s: float, on_give_up: Callable[[], None]) -> None:
        """Note when the reading began, and how it is ended."""
        self._start_s, self._on_give_up = start_s, on_give_up

    def measure_byte_seconds(self, now_s: float) -> float:
        """Return the memory that the body has taken, bytes times seconds; its announced size does not count."""
        return self.size_bytes * (now_s - self._start_s)

    def give_up(self) -> int:
        """End the reading; returns the bytes that were held."""
        freed_bytes, self.size_bytes, self.is_given_up = self.size_bytes, 0, True
        self._on_give_up()
        return freed_bytes


@dataclass(eq=False)
class _Waiting:
    """A request in the queue."""

    start_s: float
    work_s: float

    def measure_done_s(self, now_s: float) -> float:
        """Return how much of its estimated work can be done by now, seconds."""
        return min(self.work_s, now_s - self.start_s)


class _Pace:
    """Time that the queue really takes for its estimated work, from the last seconds."""

    def __init__(self, now_s: float) -> None:
        self._at_s = now_s
        self._busy_s = self._done_s = 0.0

    def measure_factor(self, begun_s: float) -> float:
        """Return the seconds that one estimated second takes: 1 where nothing is known.

        Args:
            begun_s: Estimated work of a request that is not finished, as far as it is done.
        """
        return (self._busy_s + _PRIOR_S) / (self._done_s + min(begun_s, self._busy_s) + _PRIOR_S)

    def advance(self, now_s: float, is_busy: bool) -> None:
        """Let time pass in which the queue was busy or not."""
        kept = math.exp((self._at_s - now_s) / _MEMORY_S)
        self._busy_s = self._busy_s * kept + (_MEMORY_S * (1 - kept) if is_busy else 0.0)
        self._done_s *= kept
        self._at_s = now_s

    def finish(self, work_s: float) -> None:
        """Count estimated work as done."""
        self._done_s += work_s
