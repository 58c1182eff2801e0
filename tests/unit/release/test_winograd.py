"""Rounding of Winograd's convolutions, which cuDNN may choose, in the probabilities of a deep float32 network."""

import torch
import torch.nn.functional as F

from model_code.release.precisions import PRECISIONS

# Lavin & Gray 2016, arXiv:1509.09308: F(4x4, 3x3), the coarsest in use.
INPUT = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
FILTER = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
OUTPUT = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
DEPTH, WIDTH, SIDE, COUNT, CLASSES = 16, 64, 16, 32, 10


def convolve(images_NCHW, filters_OC33):
    """Return the 3x3 convolution with padding 1, computed in tiles of 4x4 outputs, in the images' precision."""
    given, filters, made = (matrix.to(images_NCHW.dtype) for matrix in (INPUT, FILTER, OUTPUT))
    tiles = F.pad(images_NCHW, (1, 1, 1, 1)).unfold(2, 6, 4).unfold(3, 6, 4)
    tiles = given @ tiles @ given.T
    weights = filters @ filters_OC33 @ filters.T
    products = torch.einsum("nchwij,ocij->nohwij", tiles, weights)
    outputs = made @ products @ made.T
    return outputs.permute(0, 1, 2, 4, 3, 5).reshape(len(images_NCHW), len(filters_OC33), SIDE, SIDE)


def answer(dtype, convolution):
    """Return the probabilities of a deep network, drawn with confident answers."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(COUNT, WIDTH, SIDE, SIDE, generator=generator).to(dtype)
    for _ in range(DEPTH):
        filters = torch.randn(WIDTH, WIDTH, 3, 3, generator=generator).to(dtype) / (WIDTH * 9) ** 0.5
        features = F.instance_norm(convolution(features, filters)).relu() + 0.5 * features
    head = torch.randn(WIDTH, CLASSES, generator=generator).to(dtype)
    return (8 * features.mean(dim=(2, 3)) @ head).softmax(1)


def test_the_limit_of_fp32_holds_winograds_rounding_a_hundred_times():
    exact = answer(torch.float64, lambda images, filters: F.conv2d(images, filters, padding=1))
    assert torch.allclose(answer(torch.float64, convolve), exact, atol=1e-10)
    in_order = (answer(torch.float32, lambda images, filters: F.conv2d(images, filters, padding=1)) - exact).abs().max()
    winograd = (answer(torch.float32, convolve) - exact).abs().max()
    assert in_order < winograd < 4 * in_order
    assert winograd < PRECISIONS["fp32"].max_difference / 100
