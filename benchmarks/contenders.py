"""What the training benchmark measures against: the articles' per-picture pipelines, torchvision, kornia, lightly.

Each function returns pictures per second of one pass over some pictures.

Shape suffixes: N = pictures, B = pictures of a batch, H = height, W = width, C = the three colour channels.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from model_code.training.losses import simsiam_loss
from model_code.training.run_config import CIFAR10_MEAN, CIFAR10_STD

BATCH = 128
WORKERS = 2
Picture = Callable[[Image.Image], Any]


class PictureFiles(Dataset[Any]):
    """One PNG file for each picture, opened when it is asked for, as the articles' data sets do."""

    def __init__(self, files: list[Path], labels: list[int], transform: Picture) -> None:
        self.files, self.labels, self.transform = files, labels, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.open(self.files[index]).convert("RGB")), self.labels[index]


class PictureArray(Dataset[Any]):
    """Pictures in memory, as torchvision's CIFAR10 has them."""

    def __init__(self, images_NHWC: npt.NDArray[np.uint8], transform: Picture) -> None:
        self.images_NHWC, self.transform = images_NHWC, transform

    def __len__(self) -> int:
        return len(self.images_NHWC)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images_NHWC[index])), 0


def supervised_transform() -> Picture:
    """The ResNet article's augmentation of one picture, torchvision v1."""
    return transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD),
        ]
    )


class TwoViews:
    """The SimSiam article's augmentation of one picture, torchvision v1: two views of 32 pixels, without blur."""

    def __init__(self) -> None:
        self.view = transforms.Compose(
            [
                transforms.RandomResizedCrop(32, scale=(0.2, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                transforms.ToTensor(),
                transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD),
            ]
        )

    def __call__(self, picture: Image.Image) -> tuple[Tensor, Tensor]:
        """Return both views, float32 [C, H, W], normalised."""
        return self.view(picture), self.view(picture)


def time_loader(dataset: Dataset[Any], workers: int = WORKERS) -> float:
    """Pictures per second of one pass through a DataLoader whose workers are started already."""
    loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    consume(loader)
    start = time.perf_counter()
    count = consume(loader)
    return count / (time.perf_counter() - start)


def consume(batches: Iterable[Any]) -> int:
    """Take every batch and return how many pictures came."""
    return sum(len(labels) for _, labels in batches)


def time_batches(images_NHWC: Tensor, augment: Callable[[Tensor], object]) -> float:
    """Pictures per second of one pass of batched augmentation."""
    start = time.perf_counter()
    for images_BHWC in images_NHWC.split(BATCH):
        augment(images_BHWC)
    return len(images_NHWC) / (time.perf_counter() - start)


def torchvision_batched() -> Callable[[Tensor], Tensor]:
    """Use torchvision v2 on whole batches: one set of parameters for all pictures of a batch, so not the same task."""
    steps = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(CIFAR10_MEAN, CIFAR10_STD),
        ]
    )
    return lambda images_BHWC: steps(images_BHWC.permute(0, 3, 1, 2))


def kornia_supervised() -> Callable[[Tensor], Tensor]:
    """Use kornia's batched augmentation, with parameters for each picture."""
    import kornia.augmentation as K

    steps = nn.Sequential(
        K.RandomCrop((32, 32), padding=4),
        K.RandomHorizontalFlip(),
        K.Normalize(torch.tensor(CIFAR10_MEAN), torch.tensor(CIFAR10_STD)),
    )
    return lambda images_BHWC: steps(images_BHWC.permute(0, 3, 1, 2).float() / 255)


def kornia_two_views() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Use kornia's batched two views."""
    import kornia.augmentation as K

    steps = nn.Sequential(
        K.RandomResizedCrop((32, 32), scale=(0.2, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.Normalize(torch.tensor(CIFAR10_MEAN), torch.tensor(CIFAR10_STD)),
    )

    def augment(images_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        images_BCHW = images_BHWC.permute(0, 3, 1, 2).float() / 255
        return steps(images_BCHW), steps(images_BCHW)

    return augment


def lightly_two_views() -> Picture:
    """Use lightly's SimSiam transform of one picture, at 32 pixels and without blur."""
    from lightly.transforms import SimSiamTransform

    transform = SimSiamTransform(input_size=32, gaussian_blur=0.0, cj_strength=1.0)
    return lambda picture: tuple(transform(picture))


def train_supervised(loader: DataLoader[Any], network: nn.Module, device: torch.device) -> float:
    """The ResNet article's epoch as it is printed; pictures per second."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    loss = nn.CrossEntropyLoss()
    network.train()
    count = 0
    start = time.perf_counter()
    for images_BCHW, labels_B in loader:
        error = loss(network(images_BCHW.to(device)), labels_B.to(device)).sum()
        error.backward()
        optimizer.step()
        optimizer.zero_grad()
        count += len(labels_B)
    return count / (time.perf_counter() - start)


def train_simsiam(loader: DataLoader[Any], network: nn.Module, device: torch.device) -> float:
    """The SimSiam article's epoch; pictures per second, a picture counting once for its two views."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4)
    network.train()
    count = 0
    start = time.perf_counter()
    for (first_BCHW, second_BCHW), labels_B in loader:
        error = simsiam_loss(network(first_BCHW.to(device)), network(second_BCHW.to(device)))
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        count += len(labels_B)
    return count / (time.perf_counter() - start)
