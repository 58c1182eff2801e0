"""Images that stay on disk, in place of a tensor, and the order in which an epoch reads them.

Images of a class usually lie side by side. An epoch therefore takes blocks of about 256 kB from all over the files, in
random order, and shuffles the images of about 64 MB of them at a time: a window. With 500,000 images of ten classes a
batch of 256 then has all ten; windows of four whole shards, four times as large, gave it five.

Shape suffixes: N = images, B = images of a batch, H = height, W = width, C = the three colour channels.
"""

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model_code.data.shards import ShardedImages

WINDOW_BYTES = 64 * 2**20


class DiskImages:
    """Some images of a packed split; slices and indices are such images again, and `to` reads them.

    Args:
        shards: All images of the split.
        rows_N: Which of them, int64.

    Attributes:
        device: The CPU.
    """

    device = torch.device("cpu")

    def __init__(self, shards: ShardedImages, rows_N: npt.NDArray[np.int64]) -> None:
        self._shards, self._rows_N = shards, rows_N

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all images, [N, H, W, C]."""
        return (len(self), *self._shards.shape[1:])

    @property
    def nbytes(self) -> int:
        """Size of all images, bytes."""
        return len(self) * self._row_bytes

    def __len__(self) -> int:
        return len(self._rows_N)

    def __getitem__(self, chosen: slice | Tensor) -> "DiskImages":
        return DiskImages(self._shards, self._rows_N[chosen.numpy() if isinstance(chosen, Tensor) else chosen])

    def to(self, device: torch.device | str) -> Tensor:
        """Return the images on a device, uint8."""
        return torch.from_numpy(self._shards[self._rows_N]).to(device)

    def shuffle_in_windows(self, order_N: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
        """Return an order of images changed so that each window reads whole blocks.

        Args:
            order_N: int64 indices in random order, on the generator's device.
            batch_size: Images of a batch; a window is a whole number of them.
            generator: Source of the order of blocks.
        """
        blocks_N = torch.from_numpy(self._shards.find_blocks(self._rows_N[order_N.cpu().numpy()]))
        ranks = torch.randperm(self._shards.block_count, generator=generator, device=generator.device).cpu()
        places_N = ranks[blocks_N].argsort(stable=True)
        windows = places_N.split(self._count_window_rows(batch_size))
        # Within a window the images come as in the order that was given.
        return order_N[torch.cat([window_N.sort().values for window_N in windows]).to(order_N.device)]

    def iterate_batches(self, order_N: Tensor, batch_size: int, first: int, readers: int) -> Generator[Tensor]:
        """Yield batches of an order, on the host; one window is read ahead, so that two are in memory.

        Args:
            order_N: int64 indices of all images of an epoch, on the CPU.
            batch_size: Images of a batch; what does not fill the last one is left out.
            first: Batches to leave out at the start.
            readers: Threads that read a window.
        """
        window_rows, end = self._count_window_rows(batch_size), len(order_N) // batch_size * batch_size
        starts = range(first * batch_size // window_rows * window_rows, end, window_rows)
        windows = [order_N[max(start, first * batch_size) : min(start + window_rows, end)] for start in starts]
        with ThreadPoolExecutor(readers, thread_name_prefix="read-images") as pool:
            coming = self._read_window(windows[0], pool, readers) if windows else None
            for index in range(len(windows)):
                assert coming is not None, "every window was asked for one window ahead"
                window_NHWC, parts = coming
                for part in parts:
                    part.result()
                coming = self._read_window(windows[index + 1], pool, readers) if index + 1 < len(windows) else None
                for images_BHWC in window_NHWC.split(batch_size):
                    yield images_BHWC.clone()  # a view would keep the whole window
                del window_NHWC, images_BHWC

    @property
    def _row_bytes(self) -> int:
        return self._shards.nbytes // len(self._shards)

    def _count_window_rows(self, batch_size: int) -> int:
        return max(1, WINDOW_BYTES // (batch_size * self._row_bytes)) * batch_size

    def _read_window(
        self, order_N: Tensor, pool: ThreadPoolExecutor, readers: int
    ) -> tuple[Tensor, list[Future[None]]]:
        """Begin to read the images of a window in their order."""
        rows_N = self._rows_N[order_N.numpy()]
        window_NHWC = np.empty((len(rows_N), *self._shards.shape[1:]), dtype=np.uint8)
        places_N = np.argsort(rows_N)
        parts = np.array_split(places_N, readers)
        futures = [pool.submit(self._shards.fill, window_NHWC, part_N, rows_N[part_N]) for part_N in parts]
        return torch.from_numpy(window_NHWC), futures
