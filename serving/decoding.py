"""Encoded images -> one batch of arrays, with limits on how much is decoded at once.

Small JPEG and PNG files whose structure proves them cheap are decoded on threads of this process; every other image in
a worker process, which can be killed (`serving/decoder_pool.py`).

Shape suffixes: N = images in the request, H = height, W = width, C = colour channels.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt

from serving.classifier import Classifier
from serving.decoder_pool import DecoderPool
from serving.errors import OverloadedError, ServingError, TooLargeError
from serving.image_structure import is_cheap
from serving.limits import MAX_DECODED_PIXELS, MAX_REQUEST_PIXELS, MAX_WAIT_S
from serving.manifest import Manifest
from serving.request_body import EncodedPicture
from serving.session import count_cpus

MOST_THREADS = 4
# A worker answers pings every few seconds; without any for so long, none works.
SILENT_S = 15.0

_Part = list[tuple[int, EncodedPicture]]
_Outcome = npt.NDArray[np.uint8] | ServingError
_Decode = Callable[[bytes, Callable[[int], None]], npt.NDArray[np.uint8]]


class Decoder:
    """The threads and processes that decode; used from one event loop.

    Attributes:
        threads: Number of threads, and of processes.
    """

    def __init__(self, allows_uncommon: bool = False) -> None:
        """Start the processes.

        Args:
            allows_uncommon: True to decode uncommon formats too.
        """
        self.threads = min(MOST_THREADS, count_cpus())
        self._room = PixelRoom(MAX_DECODED_PIXELS)
        self._workers = DecoderPool(self.threads, allows_uncommon)
        self._cheap_threads = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        # Each waits for a process.
        self._worker_threads = ThreadPoolExecutor(self.threads, thread_name_prefix="decode-worker")

    @property
    def is_working(self) -> bool:
        """True if a worker process has answered lately."""
        return self._workers.count_silent_s() < SILENT_S

    async def decode(self, classifier: Classifier, pictures: list[EncodedPicture]) -> npt.NDArray[np.uint8]:
        """Return a request's images as the model reads them, uint8 [N, H, W, C].

        They are decoded in as many parts as there are threads: a hop to a thread costs as much as a small image.

        Raises:
            NotAPictureError: One does not decode; of several the first is named.
            TooLargeError: One has too many pixels or takes too long, or all together have too many.
            OverloadedError: There is too much to do, or too little memory.
        """
        cheap: _Part = []
        others: _Part = []
        for position, picture in enumerate(pictures):
            is_small = is_cheap(picture.structure, classifier.manifest.resize_size)
            (cheap if is_small else others).append((position, picture))
        budget = _PixelBudget(len(pictures))
        run = asyncio.get_running_loop().run_in_executor
        running: list[Awaitable[dict[int, _Outcome]]] = [
            run(self._cheap_threads, self._decode_part, part, classifier.decode, budget, False)
            for part in _split(cheap, self.threads)
        ]
        decode = partial(self._decode_in_worker, classifier.manifest)
        running += [self._wait_for_turn(part, decode, budget) for part in _split(others, self.threads)]
        outcomes: dict[int, _Outcome] = {}
        for part in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(part, BaseException):
                raise part
            outcomes |= part
        images = []
        for _, outcome in sorted(outcomes.items()):
            if isinstance(outcome, ServingError):
                raise outcome
            images.append(outcome)
        return images[0][None] if len(images) == 1 else np.stack(images)

    def close(self) -> None:
        """End threads and processes at once; what has not started is dropped."""
        self._workers.close()
        for threads in (self._cheap_threads, self._worker_threads):
            threads.shutdown(wait=True, cancel_futures=True)

    async def _wait_for_turn(self, part: _Part, decode: _Decode, budget: "_PixelBudget") -> dict[int, _Outcome]:
        """Decode a part in a worker; what cannot begin in time is refused."""
        turn = self._worker_threads.submit(self._decode_part, part, decode, budget, True)
        outcome = asyncio.wrap_future(turn)
        try:
            await asyncio.wait([outcome], timeout=MAX_WAIT_S)
            if turn.cancel():
                raise OverloadedError(f"no process was free to decode it for {MAX_WAIT_S:g} s; try again", 2)
            return await outcome
        finally:
            turn.cancel()

    def _decode_in_worker(
        self, manifest: Manifest, data: bytes, take_pixels: Callable[[int], None]
    ) -> npt.NDArray[np.uint8]:
        return self._workers.decode(data, manifest.image_size, manifest.resize_size, take_pixels)

    def _decode_part(
        self, part: _Part, decode: _Decode, budget: "_PixelBudget", takes_room: bool
    ) -> dict[int, _Outcome]:
        """Decode some of a request's images until one fails; returns images and the error by position."""
        outcomes: dict[int, _Outcome] = {}
        for position, picture in part:
            try:
                with self._room.enter() as place:
                    outcomes[position] = decode(picture.data, partial(_take, budget, place if takes_room else None))
                _ = picture.sha256  # computed here, on a thread, and kept
            except ServingError as error:
                if picture.filename is not None and not isinstance(error, _OverBudgetError):
                    where = f"picture {position + 1} of {budget.pictures}, {picture.filename!r}"
                    error.args = (f"{where}: {error}",)  # keeps what else it tells, such as when to try again
                outcomes[position] = error
                break
        return outcomes


def _split(part: _Part, count: int) -> list[_Part]:
    size = -(-len(part) // count) or 1
    return [part[start : start + size] for start in range(0, len(part), size)]


class PixelRoom:
    """Pixels that are decoded at one moment, by all threads: memory that no limit of bytes counts."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def enter(self) -> Iterator["Place"]:
        """Return a place without pixels; what it takes is given back at the end of the block."""
        place = Place(self)
        try:
            yield place
        finally:
            if place.pixels:
                with self._changed:
                    self._taken -= place.pixels
                    self._changed.notify_all()

    def take(self, pixels: int) -> None:
        """Wait until there is room; what is larger than the room waits until nothing else is in it.

        Raises:
            OverloadedError: There was none for `MAX_WAIT_S`.
        """
        with self._changed:
            if not self._changed.wait_for(
                lambda: not self._taken or self._taken + pixels <= self._max_pixels, MAX_WAIT_S
            ):
                raise OverloadedError("other large images are being decoded; try again", 2)
            self._taken += pixels


class Place:
    """What one thread has of the room.

    Attributes:
        pixels: Pixels taken.
    """

    def __init__(self, room: PixelRoom) -> None:
        self._room = room
        self.pixels = 0

    def take(self, pixels: int) -> None:
        """Take room for one picture; it may take a while."""
        self._room.take(pixels)
        self.pixels += pixels


class _PixelBudget:
    """Pixels that one request may still have decoded; a small file can hold many."""

    def __init__(self, pictures: int) -> None:
        self.pictures = pictures
        self._taken = 0
        self._lock = threading.Lock()

    def take(self, pixels: int) -> None:
        with self._lock:
            self._taken += pixels
            if self._taken > MAX_REQUEST_PIXELS:
                raise _OverBudgetError(
                    f"{self.pictures} pictures of more than {MAX_REQUEST_PIXELS:,} pixels together; send fewer at once"
                )


class _OverBudgetError(TooLargeError):
    """All pictures together are too large, not the one at which it showed."""


def _take(budget: _PixelBudget, place: Place | None, pixels: int) -> None:
    """Count an image's pixels; cheap ones take no room: there are few threads for them."""
    budget.take(pixels)
    if place is not None:
        place.take(pixels)
