"""Real training runs of a second: a network of two layers and images whose colour tells the class."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from model_code.models.fastnet import FastNet
from model_code.models.networks import NETWORKS
from model_code.training.config import TrainingConfig
from model_code.training.images import Images, TrainingImages

CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cat", "dog")
# Every setting that the fast recipes add.
FAST = {
    "norm_bias_rate_factor": 64.0,
    "has_lookahead": True,
    "schedule": "triangular",
    "has_partial_identity": True,
    "whitening_images": 10,
    "has_frozen_norm_scale": True,
    "crop_border": "reflect",
    "flip": "alternating",
    "kept_epoch": "last",
}


class TinyNetwork(nn.Module):
    """A convolution with batch normalisation, a mean and a last layer called fc, as the real networks have it."""

    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images_BCHW):
        return self.fc(self.body(images_BCHW).mean(dim=(2, 3)))


def build_tiny_fastnet(num_classes):
    """The fast network, narrow; partial identity wants no group narrower than the one before."""
    return FastNet(num_classes, (26, 28, 28))


@contextmanager
def tiny_network_entered():
    """Enter the tiny network under the name `tiny`; threads that share busy cores only wait for each other."""
    threads, is_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny", TinyNetwork)
        yield
    torch.set_num_threads(threads)
    if torch.are_deterministic_algorithms_enabled() != is_deterministic:
        torch.use_deterministic_algorithms(is_deterministic)


def draw_images(count, seed=0, side=8, classes=4, noise=90):
    """Return noisy images, each class with its own mean colour."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.arange(count) % classes
    colours_KC = torch.randint(60, 196, (classes, 3), generator=torch.Generator().manual_seed(99))
    noise_NHWC = torch.randint(-noise, noise + 1, (count, side, side, 3), generator=generator)
    images_NHWC = (colours_KC[labels_N][:, None, None, :] + noise_NHWC).clamp(0, 255).to(torch.uint8)
    return Images(images_NHWC, labels_N)


def make_images(train=24, validation=20, test=None, **options):
    """Return the images of one run."""
    return TrainingImages(
        train=draw_images(train, seed=1, **options),
        validation=draw_images(validation, seed=2, **options),
        test=None if test is None else draw_images(test, seed=3, **options),
        classes=CLASSES,
        checksum="c" * 64,
    )


def make_config(**settings):
    """Return a config of the tiny network on the CPU."""
    defaults = {
        "recipe": "tiny_pets_test",
        "dataset": "shapes",
        "network": "tiny",
        "epochs": 4,
        "batch_size": 8,
        "learning_rate": 0.05,
        "crop_padding_pixels": 1,
        "device": "cpu",
    }
    return TrainingConfig(**(defaults | settings))
