"""Micro-batching: what waits is classified together as soon as the device is free; nothing waits for a batch to fill.

Shape suffixes: N = images, H = height, W = width, C = colour channels, K = classes.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from serving.limits import ANSWER_TIMEOUT_S, MAX_IMAGES

# A batch hangs when it takes so many times what its model's last one leads to expect, within these bounds.
_SLOWER = 8
_LEAST_HUNG_S = 10.0


class Model(Protocol):
    """What classifies a batch: `serving.models.classifier.Classifier`."""

    def classify(self, images_NHWC: npt.NDArray[np.uint8], /) -> npt.NDArray[np.float32]:
        """Return float32 [N, K] of uint8 [N, H, W, C]."""
        ...


@dataclass(frozen=True, eq=False)
class _Job:
    model: Model
    images: int
    decode: Callable[[], npt.NDArray[np.uint8]]
    answer: "asyncio.Future[npt.NDArray[np.float32]]"


class Batcher:
    """A queue in front of one device; used from one event loop."""

    def __init__(self, max_images: int = MAX_IMAGES, on_batch: Callable[[int], None] | None = None) -> None:
        """Start with an empty queue.

        Args:
            max_images: Most images of one batch; a request of more is a batch of its own.
            on_batch: Told how many images each batch has, from the event loop.
        """
        self._max_images = max_images
        self._on_batch = on_batch
        self._waiting: deque[_Job] = deque()
        self._is_busy = False
        self._start_s = 0.0
        self._hung_s = ANSWER_TIMEOUT_S
        self._image_s: WeakKeyDictionary[Model, float] = WeakKeyDictionary()
        self._device = ThreadPoolExecutor(1, thread_name_prefix="classify")

    @property
    def waiting(self) -> int:
        """Requests that wait for the device."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """True if nothing is on the device."""
        return not self._is_busy

    @property
    def is_hung(self) -> bool:
        """True if the batch on the device takes much longer than its model's last one leads to expect."""
        return self._is_busy and time.monotonic() - self._start_s > self._hung_s

    async def classify(self, model: Model, images_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the class probabilities of some images, float32 [N, K].

        Requests of one model share batches; those that are cancelled before their turn cost nothing.

        Args:
            model: Classifies.
            images_NHWC: uint8, all of the size that the model reads.

        Raises:
            Exception: The model's error over the batch, for each request in it.
        """
        return await self._classify(model, len(images_NHWC), lambda: images_NHWC)

    async def decode_and_classify(
        self, model: Model, decode: Callable[[], npt.NDArray[np.uint8]]
    ) -> npt.NDArray[np.float32]:
        """Return the class probabilities of one image, float32 [1, K], decoded on the thread of the device.

        A hop to another thread costs as much as a small image, and nothing could be classified meanwhile.

        Args:
            model: Classifies.
            decode: Returns uint8 [1, H, W, C].

        Raises:
            Exception: The error of `decode`, or the model's.
        """
        assert self.is_idle, "in a batch, an image that does not decode would fail the others"
        return await self._classify(model, 1, decode)

    async def _classify(
        self, model: Model, images: int, decode: Callable[[], npt.NDArray[np.uint8]]
    ) -> npt.NDArray[np.float32]:
        job = _Job(model, images, decode, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        if not self._is_busy:
            self._start()
        try:
            return await job.answer
        except asyncio.CancelledError:
            with suppress(ValueError):  # it is on the device
                self._waiting.remove(job)  # and its images with it: the batch on the device may take long
            raise

    def close(self) -> None:
        """End the thread; what waits is cancelled."""
        for job in self._waiting:
            job.answer.cancel()
        self._waiting.clear()
        self._device.shutdown(wait=True, cancel_futures=True)

    def _start(self) -> None:
        jobs = self._take()
        self._start_s = time.monotonic()
        self._is_busy = bool(jobs)
        if jobs:
            image_s = self._image_s.get(jobs[0].model)
            expected_s = ANSWER_TIMEOUT_S if image_s is None else _SLOWER * image_s * _count_images(jobs)
            self._hung_s = min(ANSWER_TIMEOUT_S, max(_LEAST_HUNG_S, expected_s))
            loop = asyncio.get_running_loop()
            running = self._device.submit(_classify, jobs)
            # One step back to the event loop, where its own `run_in_executor` takes two.
            running.add_done_callback(lambda done: _call_soon(loop, partial(self._finish, jobs, done)))

    def _take(self) -> list[_Job]:
        """Take the request that waits longest and those of the same model that fit beside it, in order."""
        taken: list[_Job] = []
        left: deque[_Job] = deque()
        count = 0
        for job in self._waiting:
            if job.answer.done():  # it has waited too long
                continue
            fits = not taken or (job.model is taken[0].model and count + job.images <= self._max_images)
            (taken if fits else left).append(job)
            count += job.images if fits else 0
        self._waiting = left
        return taken

    def _finish(self, jobs: list[_Job], done: "Future[list[npt.NDArray[np.float32]]]") -> None:
        error = None if done.cancelled() else done.exception()
        if error is None and not done.cancelled():
            self._image_s[jobs[0].model] = (time.monotonic() - self._start_s) / _count_images(jobs)
        # The device first: it does not wait until the answers are handed out.
        self._start()
        for index, job in enumerate(jobs):
            if job.answer.done():
                continue
            if done.cancelled():
                job.answer.cancel()
            elif error is not None:
                job.answer.set_exception(error)
            else:
                job.answer.set_result(done.result()[index])
        if self._on_batch is not None and error is None and not done.cancelled():
            self._on_batch(_count_images(jobs))


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(call)


def _count_images(jobs: list[_Job]) -> int:
    return sum(job.images for job in jobs)


def _classify(jobs: list[_Job]) -> list[npt.NDArray[np.float32]]:
    if len(jobs) == 1:
        return [jobs[0].model.classify(jobs[0].decode())]
    probabilities_NK = jobs[0].model.classify(np.concatenate([job.decode() for job in jobs]))
    ends = np.cumsum([job.images for job in jobs])
    return np.split(probabilities_NK, ends[:-1])
