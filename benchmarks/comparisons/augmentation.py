"""Augmentation of 32-pixel images in batches of 128, to normalised float32.

Shape suffixes: N = images, B = images of a batch, H = height, W = width, C = the three colour channels.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torchvision import transforms
from torchvision.transforms import v2

from benchmarks import contenders
from benchmarks.comparison import OURS, Comparison, Pass
from benchmarks.contenders import Augment, View, twice
from benchmarks.workload import draw_images, time_batches, time_loader
from model_code.data.augmentation import crop_and_flip
from model_code.data.view_settings import ViewSettings
from model_code.data.views import two_views
from model_code.models.image_input import ImageInput
from model_code.training.run_config import CIFAR10_MEAN, CIFAR10_STD

IMAGES = 5120
WHOLE_BATCH = "torchvision v2, whole batch"
KORNIA = "kornia, whole batch"


def compare_crops(device: torch.device, _: Path) -> Comparison:
    """Crop, flip, normalise."""
    return _compare(
        device,
        our_crops(device),
        contenders.torchvision_v1(contenders.crop_steps(transforms)),
        contenders.torchvision_v2(contenders.crop_steps(v2)),
        contenders.torchvision_v2_batched(contenders.crop_steps(v2)),
        contenders.kornia_crop,
    )


def compare_views(device: torch.device, _: Path) -> Comparison:
    """Two SimSiam views of each image."""
    comparison = _compare(
        device,
        our_views(device),
        twice(contenders.torchvision_v1(contenders.view_steps(transforms))),
        twice(contenders.torchvision_v2(contenders.view_steps(v2))),
        twice(contenders.torchvision_v2_batched(contenders.view_steps(v2))),
        lambda: twice(contenders.kornia_view()),
    )
    if KORNIA in comparison.contenders:
        comparison.notes[KORNIA] = "one order of the colour changes for all images of a batch"
    comparison.add_optional("lightly, DataLoader, 2 workers", lambda: _load(contenders.lightly_two_views()))
    return comparison


def our_crops(device: torch.device) -> Augment:
    """What our supervised runs do before the network."""
    generator = torch.Generator(device=device).manual_seed(0)
    normalise = ImageInput(CIFAR10_MEAN, CIFAR10_STD).to(device)
    return lambda images_BHWC: normalise(crop_and_flip(images_BHWC, 4, True, generator))


def our_views(device: torch.device) -> Augment:
    """What our SimSiam runs do before the network."""
    generator = torch.Generator(device=device).manual_seed(0)
    normalise = ImageInput(CIFAR10_MEAN, CIFAR10_STD).to(device)
    settings = ViewSettings()
    return lambda images_BHWC: [normalise(view_BHWC) for view_BHWC in two_views(images_BHWC, generator, settings)]


def _compare(
    device: torch.device, ours: Augment, v1: View, v2: View, v2_batched: Augment, kornia: Callable[[], Augment]
) -> Comparison:
    images_NHWC = draw_images(IMAGES).to(device)
    comparison = Comparison(
        "images/s",
        {
            OURS: lambda: time_batches(images_NHWC, ours),
            "torchvision v1, DataLoader, 2 workers": _load(v1),
            "torchvision v2, DataLoader, 2 workers": _load(v2),
            WHOLE_BATCH: lambda: time_batches(images_NHWC, v2_batched),
        },
        {WHOLE_BATCH: "one set of parameters for all images of a batch"},
    )

    def make_kornia() -> Pass:
        augment = kornia()
        return lambda: time_batches(images_NHWC, augment)

    comparison.add_optional(KORNIA, make_kornia)
    return comparison


def _load(transform: View) -> Pass:
    dataset = contenders.ImageArray(draw_images(IMAGES // 2).numpy(), transform)
    return lambda: time_loader(dataset)
