"""Whether contenders do the work that they are compared by."""

import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

from benchmarks import contenders
from benchmarks.comparisons.augmentation import our_crops, our_views
from benchmarks.comparisons.several_runs import build_networks, step_at_once, step_in_turn
from model_code.training.run_config import CIFAR10_MEAN, CIFAR10_STD

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
BRIGHTNESS = 204
IMAGES = torch.full((16, 32, 32, 3), BRIGHTNESS, dtype=torch.uint8)


def one_by_one(transform):
    return lambda images: torch.stack([transform(Image.fromarray(image.numpy())) for image in images])


CROPS = {
    "ours": lambda: our_crops(CPU),
    "torchvision v1": lambda: one_by_one(contenders.torchvision_v1(contenders.crop_steps(transforms))),
    "torchvision v2": lambda: one_by_one(contenders.torchvision_v2(contenders.crop_steps(v2))),
    "torchvision v2, whole batch": lambda: contenders.torchvision_v2_batched(contenders.crop_steps(v2)),
    "kornia": contenders.kornia_crop,
}
VIEWS = {
    "ours": lambda: lambda images: our_views(CPU)(images)[0],
    "torchvision v1": lambda: one_by_one(contenders.torchvision_v1(contenders.view_steps(transforms))),
    "torchvision v2": lambda: one_by_one(contenders.torchvision_v2(contenders.view_steps(v2))),
    "torchvision v2, whole batch": lambda: contenders.torchvision_v2_batched(contenders.view_steps(v2)),
    "kornia": contenders.kornia_view,
    "lightly": lambda: one_by_one(lambda image: contenders.lightly_two_views()(image)[1]),
}


def build(makers, name):
    if name in ("kornia", "lightly"):
        pytest.importorskip(name)
    torch.manual_seed(0)
    return makers[name]()


@pytest.mark.parametrize("name", CROPS)
def test_crops_have_black_borders_and_are_normalised(name):
    images = torch.cat([build(CROPS, name)(IMAGES) for _ in range(4)])
    assert (images.dtype, images.shape) == (torch.float32, (64, 3, 32, 32))
    for channel, mean, std in zip(images.unbind(1), CIFAR10_MEAN, CIFAR10_STD, strict=True):
        expected = torch.tensor([-mean / std, (BRIGHTNESS / 255 - mean) / std])
        assert (channel[..., None] - expected).abs().amin(-1).max() < 1e-5
        assert (channel - expected[0]).abs().min() < 1e-5
        assert torch.allclose(channel[:, 8:-8, 8:-8], expected[1], atol=1e-5)


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_normalised_and_change_the_brightness_by_two_fifths_at_most(name):
    images = build(VIEWS, name)(IMAGES)
    assert (images.dtype, images.shape) == (torch.float32, (16, 3, 32, 32))
    mean, std = torch.tensor(CIFAR10_MEAN).view(3, 1, 1), torch.tensor(CIFAR10_STD).view(3, 1, 1)
    brightness = images * std + mean
    assert torch.allclose(brightness, brightness[:, :1, :1, :1].expand_as(brightness), atol=0.01)
    assert brightness.min() > 0.6 * BRIGHTNESS / 255 - 0.01
    assert brightness.max() < 1.001


def test_runs_at_once_learn_what_runs_one_after_the_other_do():
    torch.manual_seed(0)
    networks = build_networks(CPU)
    images_RBCHW, labels_RB = torch.randn((2, 8, 3, 32, 32)), torch.arange(16).view(2, 8) % 10
    at_once, in_turn = (make(networks, images_RBCHW, labels_RB) for make in (step_at_once, step_in_turn))
    losses = [(float(at_once()), float(in_turn())) for _ in range(3)]
    assert losses[0][0] != pytest.approx(losses[2][0], rel=0.01)
    for one, other in losses:
        assert one == pytest.approx(other, rel=1e-3)
