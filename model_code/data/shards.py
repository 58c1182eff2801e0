"""Packed images in files of about 64 MB, read with pread: their pages never count as memory of the process.

A shard is a .npy file of consecutive images. A block is a run of images of about 256 kB, the unit of reading whose
CRC-32 is kept; that of a file's first block covers the header too.

Shape suffixes: N = images, K = images of one block, H = height, W = width, C = the three colour channels, S = shards.
"""

import errno
import io
import os
import resource
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model_code.errors import DataError, UsageError

SHARD_BYTES = 64 * 2**20
BLOCK_BYTES = 256 * 2**10
# Least share of a block's images for which the whole block is read, once it is checked.
_DENSE_SHARE = 1 / 8


@dataclass(frozen=True)
class ShardFile:
    """A shard to read.

    Attributes:
        path: The file.
        count: Images.
        size_bytes: Size of the file.
        crc32: CRC-32 of each block, 8 hexadecimal digits each; empty in caches of earlier versions.
    """

    path: Path
    count: int
    size_bytes: int
    crc32: str


def count_block_rows(image_size: int) -> int:
    """Return how many images of this height and width are in a block."""
    return max(1, BLOCK_BYTES // (3 * image_size**2))


def count_shard_rows(image_size: int) -> int:
    """Return how many images of this height and width are in a shard, a whole number of blocks."""
    block_rows = count_block_rows(image_size)
    return max(1, SHARD_BYTES // (block_rows * 3 * image_size**2)) * block_rows


def make_header(count: int, image_size: int) -> bytes:
    """Return the header of a .npy file of images; its length does not depend on `count`."""
    header = io.BytesIO()
    shape = (count, image_size, image_size, 3)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


class ShardedImages:
    """The images of one split, uint8 [N, H, W, C], read from its files whenever they are asked for.

    Indexing takes an integer, a slice or integers, and returns a new array. Each block is compared with its CRC-32 the
    first time that an image of it is read. The files stay open, so that a set that is replaced can still be read.

    Args:
        files: Shards in order.
        image_size: Height and width, pixels.
        block_rows: Images of a block.
        damaged: Makes the error of a shard that is damaged, from the reason.

    Raises:
        DataError: A file is missing or has another size.
        UsageError: More files are open than the system allows.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, files: Sequence[ShardFile], image_size: int, block_rows: int, damaged: Callable[[str], DataError]
    ) -> None:
        self._files, self._block_rows, self._damaged = files, block_rows, damaged
        counts_S = np.array([file.count for file in files])
        self._first_rows_S = np.cumsum(counts_S) - counts_S
        blocks_S = -(-counts_S // block_rows)
        self._first_blocks_S = np.cumsum(blocks_S) - blocks_S
        self.block_count = int(blocks_S.sum())
        self.shape = (int(counts_S.sum()), image_size, image_size, 3)
        self._row_bytes = 3 * image_size**2
        self._is_checked = np.zeros(self.block_count, dtype=bool)
        self._descriptors: list[int] = []
        weakref.finalize(self, _close_all, self._descriptors)
        _allow_open_files()
        for file, blocks in zip(files, blocks_S, strict=True):
            self._open(file, int(blocks))

    @property
    def nbytes(self) -> int:
        """Size of all images, bytes."""
        return len(self) * self._row_bytes

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        for start in range(0, len(self), self._block_rows):
            yield from self[start : start + self._block_rows]

    def __getitem__(self, index: Any) -> npt.NDArray[np.uint8]:  # noqa: ANN401 - what indexes a NumPy array
        rows_N = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.atleast_1d(index)
        if isinstance(index, tuple) or not np.issubdtype(rows_N.dtype, np.integer):
            raise TypeError(f"images are indexed by an integer, a slice or integers, not by {index!r}")
        rows_N = np.where(rows_N < 0, rows_N + len(self), rows_N)
        if len(rows_N) and not 0 <= rows_N.min() <= rows_N.max() < len(self):
            raise IndexError(f"{len(self)} images have no image {index}")
        images_NHWC = np.empty((len(rows_N), *self.shape[1:]), dtype=np.uint8)
        self.fill(images_NHWC, np.arange(len(rows_N)), rows_N)
        return images_NHWC if isinstance(index, slice) or np.ndim(index) else images_NHWC[0]

    def fill(
        self, out_NHWC: npt.NDArray[np.uint8], places_N: npt.NDArray[np.int64], rows_N: npt.NDArray[np.int64]
    ) -> None:
        """Read images into places of an array, each block once; several threads may fill one array.

        Args:
            out_NHWC: uint8, contiguous.
            places_N: Indices into `out_NHWC`.
            rows_N: Image for each place.

        Raises:
            DataError: A file cannot be read, or has other bytes than were packed.
        """
        blocks_N = self.find_blocks(rows_N)
        order_N = blocks_N.argsort(kind="stable")
        for chosen in np.split(order_N, np.flatnonzero(np.diff(blocks_N[order_N])) + 1) if len(order_N) else ():
            block = int(blocks_N[chosen[0]])
            shard, first, last = self._locate(block)
            local_N = rows_N[chosen] - self._first_rows_S[shard]
            if not self._is_checked[block] or len(chosen) >= _DENSE_SHARE * (last - first):
                out_NHWC[places_N[chosen]] = self._read_block(block)[local_N - first]
                continue
            for place, row in zip(places_N[chosen], local_N, strict=True):
                self._read(shard, self._find_start(shard) + int(row) * self._row_bytes, out_NHWC[place])

    def find_blocks(self, rows_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the block of each image."""
        shards_N = np.searchsorted(self._first_rows_S, rows_N, side="right") - 1
        blocks_N: npt.NDArray[np.int64] = (
            self._first_blocks_S[shards_N] + (rows_N - self._first_rows_S[shards_N]) // self._block_rows
        )
        return blocks_N

    def verify(self) -> None:
        """Compare every block with its CRC-32.

        Raises:
            DataError: A file has other bytes than were packed, or cannot be read.
        """
        self._is_checked[:] = False
        for block in range(self.block_count):
            if self._files[self._locate(block)[0]].crc32:
                self._read_block(block)

    def _open(self, file: ShardFile, blocks: int) -> None:
        try:
            self._descriptors.append(os.open(file.path, os.O_RDONLY))
            found_bytes = os.fstat(self._descriptors[-1]).st_size
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise UsageError(f"{file.path}: {error.strerror}; raise the limit: ulimit -n") from error
            raise self._damaged(f"{file.path}: {error.strerror}") from error
        if found_bytes != file.size_bytes:
            raise self._damaged(f"{file.path} has {found_bytes} bytes, {file.size_bytes} were written")
        if file.crc32 and len(file.crc32) != 8 * blocks:
            raise self._damaged(f"{len(file.crc32) // 8} checksums for {blocks} blocks of {file.path}")

    def _locate(self, block: int) -> tuple[int, int, int]:
        """Return the shard of a block, and the first row of the block and of the next one in it."""
        shard = int(np.searchsorted(self._first_blocks_S, block, side="right")) - 1
        first = (block - int(self._first_blocks_S[shard])) * self._block_rows
        return shard, first, min(first + self._block_rows, self._files[shard].count)

    def _find_start(self, shard: int) -> int:
        """Return where the pixels of a shard begin."""
        file = self._files[shard]
        return file.size_bytes - file.count * self._row_bytes

    def _read_block(self, block: int) -> npt.NDArray[np.uint8]:
        """Return the images of a block [K, H, W, C], compared with their CRC-32 the first time."""
        shard, first, last = self._locate(block)
        header_bytes = self._find_start(shard)
        start = header_bytes + first * self._row_bytes if first else 0
        content = np.empty(header_bytes + last * self._row_bytes - start, dtype=np.uint8)
        self._read(shard, start, content)
        file = self._files[shard]
        if file.crc32 and not self._is_checked[block]:
            number = first // self._block_rows
            if f"{zlib.crc32(content.data):08x}" != file.crc32[8 * number : 8 * number + 8]:
                raise self._damaged(f"{file.path}: images {first} to {last - 1} have other bytes than were packed")
        self._is_checked[block] = True
        images_KHWC = content[len(content) - (last - first) * self._row_bytes :]
        return images_KHWC.reshape(last - first, *self.shape[1:])

    def _read(self, shard: int, start: int, out: npt.NDArray[np.uint8]) -> None:
        path = self._files[shard].path
        content = out.data.cast("B")
        while content:
            try:
                count = os.preadv(self._descriptors[shard], [content], start)
            except OSError as error:
                raise self._damaged(f"{path}: {error.strerror}") from error
            if not count:
                raise self._damaged(f"{path} ends early")
            content, start = content[count:], start + count


ImageArray = npt.NDArray[np.uint8] | ShardedImages


def _allow_open_files() -> None:
    """Raise the limit of open files, usually 1024, to what the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
