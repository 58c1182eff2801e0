"""Workload of the training benchmark, and the timing of a pass over it.

Images are random: what they show does not matter here.

Shape suffixes: N = images, B = images of a batch, H = height, W = width, C = the three colour channels.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset

BATCH = 128
WORKERS = 2
NETWORK = "resnet18"  # 7x7 stem: the fastest net of the study, so the one that waits most for its data


def draw_images(count: int) -> Tensor:
    """Random uint8 images [count, 32, 32, 3]."""
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def save_images(images_NHWC: Tensor, folder: Path) -> list[Path]:
    """Write each image as a PNG file."""
    folder.mkdir()
    files = [folder / f"{index}.png" for index in range(len(images_NHWC))]
    for file, image_HWC in zip(files, images_NHWC.numpy(), strict=True):
        Image.fromarray(image_HWC).save(file)
    return files


def build_sgd(parameters: Iterable[Parameter] | Iterable[Tensor]) -> SGD:
    """The optimizer of every training step here."""
    return SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)


def time_work(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds of one of `times` calls, after one that does not count."""
    work()
    synchronise(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    synchronise(device)
    return (time.perf_counter() - start) / times


def time_once(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def time_batches(images_NHWC: Tensor, augment: Callable[[Tensor], object]) -> float:
    """Images per second of one pass of batched augmentation, after one batch that does not count."""
    augment(images_NHWC[:BATCH])
    synchronise(images_NHWC.device)
    start = time.perf_counter()
    for images_BHWC in images_NHWC.split(BATCH):
        augment(images_BHWC)
    synchronise(images_NHWC.device)
    return len(images_NHWC) / (time.perf_counter() - start)


def time_loader(dataset: Dataset[Any]) -> float:
    """Images per second of one pass through a DataLoader whose workers are started already."""
    loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    _consume(loader)
    start = time.perf_counter()
    count = _consume(loader)
    return count / (time.perf_counter() - start)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _consume(batches: Iterable[Any]) -> int:
    """Take every batch and return how many images came."""
    return sum(len(labels) for _, labels in batches)
