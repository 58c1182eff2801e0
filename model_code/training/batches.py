"""An order of images -> batch after batch on the device, wherever the images are kept.

Shape suffixes: N = images, B = images of a batch, H = height, W = width, C = the three colour channels.
"""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import torch
from torch import Tensor

from model_code.data.disk_images import DiskImages

# More than this share of a CUDA device's free memory is left to the network.
RESIDENT_SHARE = 0.5


def fits_device(size_bytes: int, device: torch.device) -> bool:
    """Whether images of this size are kept on the device; on a CPU they are in its memory anyway."""
    return device.type != "cuda" or size_bytes <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]


def is_streamed(images_NHWC: Tensor | DiskImages, wanted: str, device: torch.device) -> bool:
    """Whether a run copies its batches to the device: where that is wanted, or the images are not there."""
    is_elsewhere = isinstance(images_NHWC, DiskImages) or images_NHWC.device.type != device.type
    return wanted == "streamed" or is_elsewhere


def iterate_batches(
    images_NHWC: Tensor | DiskImages,
    order_N: Tensor,
    batch_size: int,
    device: torch.device,
    *,
    first: int = 0,
    is_ahead: bool = False,
    readers: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each batch's indices and images on the device; what does not fill the last batch is left out.

    Args:
        images_NHWC: uint8; on the device, or on the host or on disk where they are streamed.
        order_N: int64 on the device; which images, in which order.
        batch_size: Images of a batch.
        device: Device of the batches.
        first: Batches to leave out at the start.
        is_ahead: True if the next batch is gathered and copied by a thread while the caller works on this one; on disk
            they always are.
        readers: Threads that read from disk.
    """
    chosen = [
        order_N[start : start + batch_size]
        for start in range(first * batch_size, len(order_N) - batch_size + 1, batch_size)
    ]
    if not is_ahead and isinstance(images_NHWC, Tensor):
        for chosen_B in chosen:
            yield chosen_B, images_NHWC[chosen_B]
        return
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    # One copy to the host for the whole epoch.
    rows_N = order_N.cpu()
    gathered: Generator[Tensor] = (
        images_NHWC.iterate_batches(rows_N, batch_size, first, readers)
        if isinstance(images_NHWC, DiskImages)
        else (images_NHWC[rows_B] for rows_B in rows_N[first * batch_size :].split(batch_size))
    )
    with closing(gathered), ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-batch") as worker:
        coming = worker.submit(_fetch, gathered, device, stream) if chosen else None
        for index, chosen_B in enumerate(chosen):
            assert coming is not None, "every batch was asked for one batch ahead"
            images_BHWC, event = coming.result()
            coming = worker.submit(_fetch, gathered, device, stream) if index + 1 < len(chosen) else None
            if event is not None:
                current = torch.cuda.current_stream(device)
                current.wait_event(event)
                images_BHWC.record_stream(current)
            yield chosen_B, images_BHWC


def _fetch(
    gathered: Iterator[Tensor], device: torch.device, stream: torch.cuda.Stream | None
) -> tuple[Tensor, torch.cuda.Event | None]:
    """Gather the next batch on the host and start its copy to the device; the event is its end."""
    images_BHWC = next(gathered)
    if stream is None:
        return images_BHWC, None
    with torch.cuda.stream(stream):
        copied = images_BHWC.pin_memory().to(device, non_blocking=True)
        return copied, stream.record_event()
