"""Contenders of the training benchmark: the articles' pipelines and loops, torchvision, kornia, lightly.

All crop, flip and so on as the articles do, and end in normalised float32 [.., C, H, W].

Shape suffixes: N = images, B = images of a batch, H = height, W = width, C = the three colour channels.
"""

import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
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

View = Callable[[Image.Image], Any]
Augment = Callable[[Tensor], Any]


class ImageFiles(Dataset[Any]):
    """One PNG file for each image, opened when it is asked for, as the articles' data sets do."""

    def __init__(self, files: list[Path], labels: list[int], transform: View) -> None:
        self.files, self.labels, self.transform = files, labels, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.open(self.files[index]).convert("RGB")), self.labels[index]


class ImageArray(Dataset[Any]):
    """Images in memory, as torchvision's CIFAR10 has them."""

    def __init__(self, images_NHWC: npt.NDArray[np.uint8], transform: View) -> None:
        self.images_NHWC, self.transform = images_NHWC, transform

    def __len__(self) -> int:
        return len(self.images_NHWC)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images_NHWC[index])), 0


def crop_steps(library: ModuleType) -> list[Any]:
    """The ResNet article's steps, by `torchvision.transforms` or its v2."""
    return [library.RandomCrop(32, padding=4), library.RandomHorizontalFlip()]


def view_steps(library: ModuleType) -> list[Any]:
    """The SimSiam article's steps for one view of 32 pixels, without blur."""
    return [
        library.RandomResizedCrop(32, scale=(0.2, 1.0)),
        library.RandomHorizontalFlip(),
        library.RandomApply([library.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        library.RandomGrayscale(p=0.2),
    ]


def torchvision_v1(steps: list[Any]) -> View:
    """The pipeline of the articles: Pillow's images until the last two steps."""
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD)])


def torchvision_v2(steps: list[Any]) -> View:
    """The same with v2, which too is faster with Pillow's images than with tensors where they have 32 pixels."""
    return v2.Compose([*steps, v2.ToImage(), *_v2_normalise()])


def torchvision_v2_batched(steps: list[Any]) -> Augment:
    """v2 on whole batches: one set of parameters for all images of a batch, so not the same task."""
    compose = v2.Compose([*steps, *_v2_normalise()])
    return lambda images_BHWC: compose(images_BHWC.permute(0, 3, 1, 2))


def twice(view: Callable[[Any], Tensor]) -> Callable[[Any], tuple[Tensor, Tensor]]:
    """Two views, each with parameters of its own."""
    return lambda image: (view(image), view(image))


def kornia_crop() -> Augment:
    """Kornia's batched augmentation, with parameters for each image."""
    import kornia.augmentation as K

    return _kornia(K.RandomCrop((32, 32), padding=4), K.RandomHorizontalFlip())


def kornia_view() -> Augment:
    """Kornia's batched view; pixel centres are aligned as Pillow and torchvision do."""
    import kornia.augmentation as K

    return _kornia(
        K.RandomResizedCrop((32, 32), scale=(0.2, 1.0), align_corners=False),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
    )


def lightly_two_views() -> View:
    """Lightly's SimSiam transform of one image, at 32 pixels, without blur, with CIFAR-10's mean and deviation."""
    from lightly.transforms import SimSiamTransform

    normalise = {"mean": list(CIFAR10_MEAN), "std": list(CIFAR10_STD)}
    return SimSiamTransform(
        input_size=32,
        cj_prob=0.8,
        cj_strength=1.0,
        cj_bright=0.4,
        cj_contrast=0.4,
        cj_sat=0.4,
        cj_hue=0.1,
        min_scale=0.2,
        random_gray_scale=0.2,
        gaussian_blur=0.0,
        vf_prob=0.0,
        hf_prob=0.5,
        rr_prob=0.0,
        normalize=normalise,
    )


def train_supervised(loader: DataLoader[Any], network: nn.Module, device: torch.device) -> float:
    """The ResNet article's epoch as it is printed; images per second."""
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
    """The SimSiam article's epoch; images per second, an image counting once for its two views."""
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


def _v2_normalise() -> list[Any]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(CIFAR10_MEAN, CIFAR10_STD)]


def _kornia(*steps: nn.Module) -> Augment:
    import kornia.augmentation as K

    normalise = K.Normalize(torch.tensor(CIFAR10_MEAN), torch.tensor(CIFAR10_STD))
    compose = nn.Sequential(*steps, normalise)
    return lambda images_BHWC: compose(images_BHWC.permute(0, 3, 1, 2).float() / 255)
