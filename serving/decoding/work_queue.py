"""Queue of images with an expected wait; what would wait too long is refused at once, with a time to try again."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serving.errors import OverloadedError
from serving.limits import LARGE_SHARE, LARGE_WORK_S, MAX_WAIT_S, MAX_WAITING_IMAGES

# After so many seconds, what the pace was learned from counts for a third.
_MEMORY_S = 2.0
# Estimated work that is taken for done at the estimated pace. Little, so that a slow machine is soon known as one.
_PRIOR_S = 0.002
# A client that is told to wait longer than the queue remembers would stay away for nothing.
_MAX_RETRY_S = 30


class WorkQueue:
    """Images that wait or are worked on, of which the first come first; used from one event loop.

    Attributes:
        images: Number of images.
    """

    def __init__(
        self,
        max_images: int = MAX_WAITING_IMAGES,
        max_wait_s: float = MAX_WAIT_S,
        workers: int = 2,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start with nothing waiting.

        Args:
            max_images: Most images that wait.
            max_wait_s: Longest expected wait, seconds.
            workers: Number of images that are worked on at once.
            clock: Seconds since any moment.
        """
        self._max_images = max_images
        self._max_wait_s = max_wait_s
        self._has_helpers = workers > 1
        self.images = 0
        self._waiting: list[_Waiting] = []
        self._clock = clock
        self._pace = _Pace(clock())

    @property
    def waiting_s(self) -> float:
        """Estimated work on the images that wait, seconds."""
        return sum(one.work_s for one in self._waiting)

    @contextmanager
    def wait(self, images: int, work_s: float) -> Iterator[None]:
        """Take a request's places in the queue, given back at the end of the block.

        Args:
            images: Images of the request.
            work_s: Estimated work on them, seconds: `serving.decoding.cost.estimate_decode_s`.

        Raises:
            OverloadedError: There are too many images before these, or they take too long.
        """
        waiting, before = _Waiting(self._clock(), work_s), self.images
        self._pace.advance(waiting.start_s, bool(before))
        wait_s = self._measure_wait_s(waiting.start_s)
        max_wait_s = self._max_wait_s * (LARGE_SHARE if work_s > LARGE_WORK_S else 1)
        if before and (before + images > self._max_images or wait_s > max_wait_s):
            raise OverloadedError(
                f"{before} {'image is' if before == 1 else 'images are'} waiting, {wait_s:.1f} s of work; try again",
                min(max(1, math.ceil(wait_s)), _MAX_RETRY_S),
            )
        self.images += images
        self._waiting.append(waiting)
        done_s: float | None = None
        try:
            yield
            done_s = work_s
        except OverloadedError:
            done_s = 0.0
            raise
        finally:
            end_s = self._clock()
            self._pace.advance(end_s, is_busy=True)
            # What fails halfway is work too, but no more than the time that it took.
            self._pace.finish(waiting.measure_done_s(end_s) if done_s is None else done_s)
            self.images -= images
            self._waiting.remove(waiting)

    def _measure_wait_s(self, now_s: float) -> float:
        """Return the time until the work that waits is done, as far as a new request waits for it, seconds."""
        if not self._waiting:
            return 0.0
        # What came first is being worked on: it is done as far as it has had time.
        begun_s = self._waiting[0].measure_done_s(now_s)
        # The largest request occupies one worker; the others are served beside it.
        spared_s = max(one.work_s for one in self._waiting) if self._has_helpers else begun_s
        return (self.waiting_s - spared_s) * self._pace.measure_factor(begun_s)


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
