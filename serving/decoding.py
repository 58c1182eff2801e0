"""Encoded pictures -> one batch of arrays, on a few threads, with limits on how much is decoded at once.

Shape suffixes: N = pictures in the request, H = height, W = width, C = colour channels.
"""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt

from serving.classifier import Classifier
from serving.errors import ServingError, TooLargeError
from serving.limits import MAX_DECODED_PIXELS, MAX_REQUEST_PIXELS
from serving.request_body import EncodedPicture
from serving.session import count_cpus

MOST_THREADS = 4


class Decoder:
    """The threads that decode; used from one event loop.

    Attributes:
        threads: How many.
    """

    def __init__(self) -> None:
        self.threads = min(MOST_THREADS, count_cpus())
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        self._room = PixelRoom(MAX_DECODED_PIXELS)

    async def decode(self, classifier: Classifier, pictures: list[EncodedPicture]) -> npt.NDArray[np.uint8]:
        """Return a request's pictures as the model reads them, uint8 [N, H, W, C].

        They are decoded in as many parts as there are threads: a hop to a thread costs as much as a small picture.

        Raises:
            NotAPictureError: One does not decode; of several the first is named.
            TooLargeError: One has too many pixels, or all together.
        """
        run = asyncio.get_running_loop().run_in_executor
        budget = _PixelBudget(len(pictures))
        size = -(-len(pictures) // self.threads)
        parts = await asyncio.gather(
            *(
                run(self._pool, self._decode_part, classifier, pictures[start : start + size], start, budget)
                for start in range(0, len(pictures), size)
            ),
            return_exceptions=True,
        )
        images = []
        for part in parts:
            if isinstance(part, BaseException):
                raise part
            images += part
        return images[0][None] if len(images) == 1 else np.stack(images)

    def close(self) -> None:
        """End the threads; what has not started is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _decode_part(
        self, classifier: Classifier, pictures: list[EncodedPicture], start: int, budget: "_PixelBudget"
    ) -> list[npt.NDArray[np.uint8]]:
        """Decode some of a request's pictures, those from position `start`."""
        images = []
        for position, picture in enumerate(pictures, start=start + 1):
            try:
                with self._room.enter() as place:
                    images.append(classifier.decode(picture.data, partial(_take, budget, place)))
                _ = picture.sha256  # computed here, on a thread, and kept
            except ServingError as error:
                if picture.filename is None or isinstance(error, _OverBudgetError):
                    raise
                raise type(error)(f"picture {position} of {budget.pictures}, {picture.filename!r}: {error}") from error
        return images


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
        """Wait until there is room; what is larger than the room waits until nothing else is in it."""
        with self._changed:
            while self._taken and self._taken + pixels > self._max_pixels:
                self._changed.wait()
            self._taken += pixels


class Place:
    """What one thread has of the room.

    Attributes:
        pixels: So many.
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


def _take(budget: _PixelBudget, place: Place, pixels: int) -> None:
    budget.take(pixels)
    place.take(pixels)
