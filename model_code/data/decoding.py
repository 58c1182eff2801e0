"""Encoded images -> pixels, on all cores.

Worker processes are started afresh, not forked: the caller may hold threads and locks of frameworks. They
load this module only, and so neither torch nor MLflow, nor the script that is run.

Shape suffixes: K = images in one chunk, H = height, W = width, C = the three colour channels, red first.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType

import numpy as np
import numpy.typing as npt

from model_code.data.sources.images import EncodedImage
from model_code.errors import DataError
from serving.bundle.preprocess import decode_picture
from serving.errors import NotAnImageError, TooLargeError

_MAX_WORKERS = 16
_MIN_IMAGES_FOR_WORKERS = 2000
_CHUNK_IMAGES = 256
_CHUNK_BYTES = 16 * 2**20
_SCRIPT_LOCK = threading.Lock()


class _Worker(SpawnProcess):
    """A spawned process that does not execute the caller's script once more, which may begin this very work again."""

    def start(self) -> None:
        """Start the process while the script is not to be seen: what a worker runs is in this module."""
        with _SCRIPT_LOCK:
            script = sys.modules["__main__"]
            sys.modules["__main__"] = ModuleType("__main__")
            try:
                super().start()
            finally:
                sys.modules["__main__"] = script


class _WorkerContext(SpawnContext):
    Process = _Worker


@dataclass(frozen=True)
class DecodedChunk:
    """Some images of a split.

    Attributes:
        positions: Place of each image in the split, one per image given.
        images_KHWC: uint8; zeros where an image did not decode.
        failures: (index in this chunk, why) of those that did not.
    """

    positions: list[int]
    images_KHWC: npt.NDArray[np.uint8]
    failures: list[tuple[int, str]]


def count_workers(image_count: int) -> int:
    """Return how many processes decode: 0 = this one, for a count that is done before others have started."""
    core_count = len(os.sched_getaffinity(0))
    return min(core_count, _MAX_WORKERS) if core_count > 1 and image_count >= _MIN_IMAGES_FOR_WORKERS else 0


def decode_images(images: Sequence[EncodedImage], image_size: int, worker_count: int) -> Iterator[DecodedChunk]:
    """Decode images in the order in which their archives are read fastest.

    Args:
        images: All images of a split.
        image_size: Height and width of the result, pixels.
        worker_count: Processes; 0 decodes in this one.

    Yields:
        Chunks that together hold every position once, any order.

    Raises:
        DataError: A worker process died.
    """
    if worker_count == 0:
        for positions, contents in _read_chunks(images, image_size):
            yield DecodedChunk(positions, *decode_chunk(contents, image_size))
        return
    pending: deque[tuple[list[int], Future[tuple[npt.NDArray[np.uint8], list[tuple[int, str]]]]]] = deque()
    with ProcessPoolExecutor(worker_count, mp_context=_WorkerContext(), initializer=_start_worker) as executor:
        try:
            for positions, contents in _read_chunks(images, image_size):
                pending.append((positions, executor.submit(decode_chunk, contents, image_size)))
                if len(pending) > 2 * worker_count:
                    done_positions, future = pending.popleft()
                    yield DecodedChunk(done_positions, *future.result())
            while pending:
                done_positions, future = pending.popleft()
                yield DecodedChunk(done_positions, *future.result())
        except BrokenProcessPool as error:
            raise DataError(
                "a process that decodes images was killed, usually for lack of memory; free some and try again"
            ) from error
        finally:
            for _, future in pending:
                future.cancel()


def decode_chunk(
    contents: Sequence[bytes | str], image_size: int
) -> tuple[npt.NDArray[np.uint8], list[tuple[int, str]]]:
    """Return uint8 [K, image_size, image_size, 3] and (index, why) of each image that does not decode.

    A text in place of a file says why it could not be read.
    """
    images_KHWC = np.zeros((len(contents), image_size, image_size, 3), dtype=np.uint8)
    failures = []
    for index, content in enumerate(contents):
        if isinstance(content, str):
            failures.append((index, content))
            continue
        try:
            images_KHWC[index] = decode_picture(content, image_size)
        except (NotAnImageError, TooLargeError) as error:
            failures.append((index, str(error)))
    return images_KHWC, failures


def _read_chunks(images: Sequence[EncodedImage], image_size: int) -> Iterator[tuple[list[int], list[bytes | str]]]:
    chunk_images = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // (3 * image_size * image_size)))
    positions: list[int] = []
    contents: list[bytes | str] = []
    size_bytes = 0
    for position in _order_for_reading(images):
        image = images[position]
        try:
            contents.append(image.archive.read(image.member))
        except DataError as error:
            contents.append(str(error))
        positions.append(position)
        size_bytes += len(contents[-1])
        if len(contents) == chunk_images or size_bytes >= _CHUNK_BYTES:
            yield positions, contents
            positions, contents, size_bytes = [], [], 0
    if contents:
        yield positions, contents


def _order_for_reading(images: Sequence[EncodedImage]) -> list[int]:
    archives = {id(image.archive): image.archive for image in images}
    place = {
        (archive_id, member): (archive_index, member_index)
        for archive_index, (archive_id, archive) in enumerate(archives.items())
        for member_index, member in enumerate(archive.files)
    }
    return sorted(range(len(images)), key=lambda index: place[id(images[index].archive), images[index].member])


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it does: kill -9 leaves it no time to end its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def exit_with_parent() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
