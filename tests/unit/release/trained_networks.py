"""Networks that learned easy images in seconds, and are sure of their answers."""

import torch
from torch import nn

from model_code.models.image_input import ImageInput
from model_code.models.swin import SwinTransformer
from model_code.models.view_average import ViewAverage
from tests.unit.training.small_runs import TinyNetwork, build_tiny_fastnet, draw_images

SIDE, CLASSES = 16, 4


def build_small_swin():
    """Two stages, windows with and without shift: every operator of the large ones."""
    return SwinTransformer(
        CLASSES, image_size=SIDE, patch_size=2, channels=32, depths=(2, 1), heads=(2, 4), window=4, mlp_ratio=2
    )


NETWORKS = {
    "tiny": lambda: TinyNetwork(CLASSES),
    "swin": build_small_swin,
    "fastnet": lambda: build_tiny_fastnet(CLASSES),
}


def draw(count, seed=0):
    """Images whose mean colour tells the class."""
    return draw_images(count, seed=seed, side=SIDE, classes=CLASSES)


def train(name, steps=60):
    """Return a model, uint8 images in, logits out, that labels such images well; FastNet averages six views."""
    torch.manual_seed(0)
    model = nn.Sequential(ImageInput((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), NETWORKS[name]())
    model[0].is_channels_last = False
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02 if name == "tiny" else 1e-3)
    images = draw(steps * 16, seed=1)
    for images_BHWC, labels_B in zip(images.images_NHWC.split(16), images.labels_N.split(16), strict=True):
        loss = nn.functional.cross_entropy(model(images_BHWC), labels_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (ViewAverage(model, shift_pixels=1) if name == "fastnet" else model).eval()
