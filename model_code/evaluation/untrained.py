"""Evaluation of untrained networks: answers to many images, time and memory.

Shape suffixes: N = images, B = images of one batch, H = height, W = width, C = the three colour channels,
K = classes.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model_code.data.shards import ImageArray


@dataclass(frozen=True)
class UntrainedReport:
    """The answers of one network.

    Attributes:
        count: Images.
        correct: Right answers.
        accuracy_fraction: Share of right answers, in [0, 1].
        distinct_classes: Number of different classes among the answers.
        top_class_share: Share of images that got the most frequent answer, in (0, 1].
        seconds: From reading the first image to the last answer, with the first batch's warm-up; the network was
            built and moved to the device before.
        pictures_per_s: Images / seconds.
        peak_memory_bytes: On CUDA the most that tensors, weights among them, took at once; on a CPU the most that the
            whole process has held since it began.
    """

    count: int
    correct: int
    accuracy_fraction: float
    distinct_classes: int
    top_class_share: float
    seconds: float
    pictures_per_s: float
    peak_memory_bytes: int


@torch.inference_mode()
def evaluate_untrained(
    model: nn.Module,
    images: ImageArray,
    labels_N: npt.NDArray[np.int64],
    view: Callable[[Tensor], Tensor],
    batch_size: int,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    on_batch: Callable[[int], None] | None = None,
) -> UntrainedReport:
    """Ask a network about every image once, in order; one batch at a time is in memory.

    Args:
        model: Images [B, H, W, C] as `view` returns them in, logits [B, K] out; is moved to the device and left in
            evaluation mode.
        images: uint8 [N, H, W, C], may be memory-mapped.
        labels_N: Indices into the classes.
        view: Transform of each batch on the device, such as a random resized crop; uint8 in and out.
        batch_size: Images at once, at least 1.
        device: Device that computes.
        precision: Precision of the network: float32 or bfloat16.
        on_batch: Told after each batch how many images it had.

    Raises:
        ValueError: There are no images, the lengths differ, or `batch_size` is below 1.
    """
    if len(labels_N) == 0 or len(labels_N) != len(images) or batch_size < 1:
        raise ValueError(
            f"{len(images)} images for {len(labels_N)} labels in batches of {batch_size}; "
            "the first two must be equal, and all above 0"
        )
    model.to(device).eval()
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _reset_process_peak()
    start = time.perf_counter()
    answers = []
    for first in range(0, len(images), batch_size):
        # Copied, since a memory map is read-only and torch has no such tensors.
        images_BHWC = torch.from_numpy(np.array(images[first : first + batch_size])).to(device)
        views_BHWC = view(images_BHWC)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            answers.append(model(views_BHWC).argmax(dim=1))
        if on_batch:
            on_batch(len(images_BHWC))
    if is_cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if is_cuda else _read_process_peak()
    answers_N = torch.cat(answers).cpu().numpy()
    counts_K = np.bincount(answers_N)
    correct = int((answers_N == labels_N).sum())
    return UntrainedReport(
        count=len(labels_N),
        correct=correct,
        accuracy_fraction=correct / len(labels_N),
        distinct_classes=int((counts_K > 0).sum()),
        top_class_share=float(counts_K.max() / len(labels_N)),
        seconds=seconds,
        pictures_per_s=len(labels_N) / seconds,
        peak_memory_bytes=peak,
    )


def _reset_process_peak() -> None:
    """Let Linux forget the largest resident set so far; where that is not permitted the figure is that of its life."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _read_process_peak() -> int:
    """Return the process's largest resident set since the reset, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
