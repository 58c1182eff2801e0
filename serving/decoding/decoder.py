"""Encoded images -> one batch of arrays, with limits on how much is decoded at once.

Small JPEG and PNG files whose structure proves them cheap are decoded on threads of this process; every other image in
a worker process, which can be killed (`serving/decoding/pool.py`).

Shape suffixes: N = images in the request, H = height, W = width, C = colour channels.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt

from serving.bundle.image_structure import Structure, check_format
from serving.bundle.manifest import Manifest
from serving.bundle.preprocess import decode_picture
from serving.bundle.processors import count_cpus
from serving.decoding.cost import Cost, estimate_cost, estimate_decode_s, limit_ordinary_pixels
from serving.decoding.encoded import EncodedImage
from serving.decoding.pool import DecoderPool
from serving.decoding.work_queue import WorkQueue
from serving.errors import OverloadedError, ServingError, TooLargeError
from serving.limits import MAX_DECODE_S, MAX_REQUEST_PIXELS, MAX_TURN_S

MOST_THREADS = 4
# A worker answers pings every few seconds; without any for so long, none works.
SILENT_S = 15.0
LARGE_NICENESS = 13

_Part = list[tuple[int, EncodedImage]]
_Outcome = npt.NDArray[np.uint8] | ServingError
_Decode = Callable[[bytes, Callable[[int], None]], npt.NDArray[np.uint8]]


class Decoder:
    """The threads and processes that decode; used from one event loop.

    Attributes:
        threads: Number of threads, and of processes for ordinary images.
    """

    def __init__(self, allows_uncommon: bool = False) -> None:
        """Start the processes.

        Args:
            allows_uncommon: True to decode uncommon formats too.
        """
        self.threads = min(MOST_THREADS, count_cpus())
        self._allows_uncommon = allows_uncommon
        self._cheap_threads = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        # One large image at a time: its pixels take most of the memory.
        self._lanes = {
            Cost.ORDINARY: _Lane(DecoderPool(self.threads, allows_uncommon), is_ordinary=True),
            Cost.LARGE: _Lane(DecoderPool(1, allows_uncommon, LARGE_NICENESS), is_ordinary=False),
        }

    @property
    def is_working(self) -> bool:
        """True if a worker process has answered lately."""
        return self._lanes[Cost.ORDINARY].pool.count_silent_s() < SILENT_S

    def check_formats(self, images: list[EncodedImage]) -> None:
        """Refuse images of formats that are not decoded, before they wait.

        Raises:
            NotAnImageError: The format of one is not accepted; of several the first is named.
        """
        for position, image in enumerate(images):
            # A format without a size was not read to its end; a worker process tells more.
            is_known = image.structure.format is None or image.structure.width > 0
            if is_known and not self._allows_uncommon:
                try:
                    check_format(image.data, image.structure)
                except ServingError as error:
                    raise _name_image(error, position, image, len(images)) from None

    async def decode(self, manifest: Manifest, images: list[EncodedImage]) -> npt.NDArray[np.uint8]:
        """Return a request's images as the model reads them, uint8 [N, H, W, C].

        They are decoded in as many parts as there are threads: a hop to a thread costs as much as a small image.

        Raises:
            NotAnImageError: One does not decode; of several the first is named.
            TooLargeError: One has too many pixels or takes too long, or all together have too many.
            OverloadedError: There is too much to do, or too little memory.
        """
        by_cost: dict[Cost, _Part] = {cost: [] for cost in Cost}
        for position, image in enumerate(images):
            by_cost[estimate_cost(image.structure, manifest.resize_size)].append((position, image))
        budget = _PixelBudget(len(images))
        decode = partial(_decode_here, manifest)
        run = asyncio.get_running_loop().run_in_executor
        running: list[Awaitable[dict[int, _Outcome]]] = [
            run(self._cheap_threads, _decode_part, part, decode, budget)
            for part in _split(by_cost[Cost.CHEAP], self.threads)
        ]
        for cost, lane in self._lanes.items():
            running += [
                self._decode_in_turns(part, cost, manifest, budget) for part in _split(by_cost[cost], lane.pool.size)
            ]
        outcomes: dict[int, _Outcome] = {}
        for part in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(part, BaseException):
                raise part
            outcomes |= part
        return _stack(outcomes)

    def decode_cheap(self, manifest: Manifest, images: list[EncodedImage]) -> npt.NDArray[np.uint8]:
        """Return cheap images as `decode` does, decoded on the thread that calls.

        Raises:
            NotAnImageError: One does not decode.
        """
        decode = partial(_decode_here, manifest)
        return _stack(_decode_part(list(enumerate(images)), decode, _PixelBudget(len(images))))

    def close(self) -> None:
        """End threads and processes at once; what has not started is dropped."""
        for lane in self._lanes.values():
            lane.close()
        self._cheap_threads.shutdown(wait=True, cancel_futures=True)

    async def _decode_in_turns(
        self, part: _Part, cost: Cost, manifest: Manifest, budget: "_PixelBudget"
    ) -> dict[int, _Outcome]:
        """Decode a part in worker processes, a turn for each image, until one fails."""
        outcomes: dict[int, _Outcome] = {}
        loop = asyncio.get_running_loop()
        limit_s = max(MAX_DECODE_S, 2 * sum(estimate_decode_s(image.structure) for _, image in part))
        end_s = loop.time() + limit_s
        for one in part:
            if outcomes and loop.time() > end_s:
                raise OverloadedError(f"the images take more than {limit_s:.1f} s together; send fewer at once", 2)
            outcomes |= await self._lanes[cost].decode(one, manifest, budget)
            if cost is Cost.ORDINARY and isinstance(outcomes[one[0]], _MisjudgedError):
                outcomes |= await self._lanes[Cost.LARGE].decode(one, manifest, budget)
            if isinstance(outcomes[one[0]], ServingError):
                break
        return outcomes


class _Lane:
    """Worker processes for images of one kind, and the queue in front of them.

    Attributes:
        pool: The processes.
    """

    def __init__(self, pool: DecoderPool, is_ordinary: bool) -> None:
        self.pool = pool
        self._is_ordinary = is_ordinary
        # Each waits for a process.
        self._threads = ThreadPoolExecutor(pool.size, thread_name_prefix="decode-worker")
        self._queue = WorkQueue(max_wait_s=MAX_TURN_S, workers=pool.size)

    async def decode(
        self, one: tuple[int, EncodedImage], manifest: Manifest, budget: "_PixelBudget"
    ) -> dict[int, _Outcome]:
        """Return the image of a position, or the error; what cannot begin in time is refused."""
        structure = one[1].structure
        with self._queue.wait(1, estimate_decode_s(structure)):
            decode = partial(self._decode_in_worker, manifest, structure)
            turn = self._threads.submit(_decode_part, [one], decode, budget)
            outcome = asyncio.wrap_future(turn)
            try:
                await asyncio.wait([outcome], timeout=MAX_TURN_S)
                if turn.cancel():
                    raise OverloadedError(f"no process was free to decode it for {MAX_TURN_S:g} s; try again", 2)
                return await outcome
            finally:
                turn.cancel()

    def close(self) -> None:
        """End threads and processes at once."""
        self.pool.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _decode_in_worker(
        self, manifest: Manifest, structure: Structure, data: bytes, take_pixels: Callable[[int], None]
    ) -> npt.NDArray[np.uint8]:
        def take(pixels: int) -> None:
            if self._is_ordinary and pixels > limit_ordinary_pixels(structure):
                raise _MisjudgedError
            take_pixels(pixels)

        return self.pool.decode(data, manifest.image_size, manifest.resize_size, take)


def _decode_here(manifest: Manifest, data: bytes, take_pixels: Callable[[int], None]) -> npt.NDArray[np.uint8]:
    return decode_picture(data, manifest.image_size, manifest.resize_size, take_pixels=take_pixels)


def _decode_part(part: _Part, decode: _Decode, budget: "_PixelBudget") -> dict[int, _Outcome]:
    """Decode some of a request's images until one fails; returns images and the error by position."""
    outcomes: dict[int, _Outcome] = {}
    for position, image in part:
        try:
            outcomes[position] = decode(image.data, budget.take)
            _ = image.sha256  # computed here, on a thread, and kept
        except ServingError as error:
            outcomes[position] = _name_image(error, position, image, budget.images)
            break
    return outcomes


def _stack(outcomes: dict[int, _Outcome]) -> npt.NDArray[np.uint8]:
    """Return the images in their order, or raise the first error."""
    decoded = []
    for _, outcome in sorted(outcomes.items()):
        if isinstance(outcome, ServingError):
            raise outcome
        decoded.append(outcome)
    return decoded[0][None] if len(decoded) == 1 else np.stack(decoded)


def _name_image(error: ServingError, position: int, image: EncodedImage, count: int) -> ServingError:
    """Return the error with the image that it is about; it keeps what else it tells, such as when to try again."""
    if image.filename is not None and not isinstance(error, _OverBudgetError):
        error.args = (f"image {position + 1} of {count}, {image.filename!r}: {error}",)
    return error


def _split(part: _Part, count: int) -> list[_Part]:
    size = -(-len(part) // count) or 1
    return [part[start : start + size] for start in range(0, len(part), size)]


class _PixelBudget:
    """Pixels that one request may still have decoded; a small file can hold many."""

    def __init__(self, images: int) -> None:
        self.images = images
        self._taken = 0
        self._lock = threading.Lock()

    def take(self, pixels: int) -> None:
        with self._lock:
            self._taken += pixels
            if self._taken > MAX_REQUEST_PIXELS:
                raise _OverBudgetError(
                    f"{self.images} images of more than {MAX_REQUEST_PIXELS:,} pixels together; send fewer at once"
                )


class _OverBudgetError(TooLargeError):
    """All images together are too large, not the one at which it showed."""


class _MisjudgedError(ServingError):
    """The image has more pixels than its structure says."""
