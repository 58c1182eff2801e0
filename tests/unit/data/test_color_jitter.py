"""Colour changes against torchvision's, image by image.

Shape suffixes: N = images, C = colour channels, H = height, W = width.
"""

from itertools import permutations

import pytest
import torch
from scipy import stats
from torchvision.transforms import ColorJitter
from torchvision.transforms.v2 import functional as reference

from model_code.data.color_jitter import ColorFactors, draw_color_factors, grayscale, jitter_colors, turn_hue
from model_code.data.view_settings import ViewSettings

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = ViewSettings(jitter_probability=1.0)
# 1 % for each comparison; the draws are seeded, so a test that passes once always does.
SIGNIFICANCE = 0.01
OPERATIONS = (
    reference.adjust_brightness,
    reference.adjust_contrast,
    reference.adjust_saturation,
    reference.adjust_hue,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, size: int = 16) -> torch.Tensor:
    """Noise, with pure colours, greys, black and white among it."""
    images_NCHW = torch.rand((count, 3, size, size), generator=generator(1))
    images_NCHW[:, :, 0] = images_NCHW[:, :, 0].round()
    images_NCHW[:, :, 1] = images_NCHW[:, :1, 1]
    return images_NCHW


def adjust_one_by_one(images_NCHW: torch.Tensor, factors: ColorFactors) -> torch.Tensor:
    adjusted = []
    for index, original_CHW in enumerate(images_NCHW):
        image_CHW = original_CHW
        values = [*factors.blends_3N[:, index].tolist(), float(factors.hue_N[index])]
        for operation in factors.places_4N[:, index].argsort().tolist():
            image_CHW = OPERATIONS[operation](image_CHW, values[operation])
        adjusted.append(image_CHW)
    return torch.stack(adjusted)


def test_every_order_equals_torchvision_image_by_image():
    orders_4N = torch.tensor(list(permutations(range(4)))).T.repeat(1, 8)
    factors = draw_color_factors(orders_4N.shape[1], SETTINGS, generator())
    factors = ColorFactors(factors.blends_3N, factors.hue_N, orders_4N.argsort(dim=0))
    images_NCHW = images(orders_4N.shape[1])
    expected = adjust_one_by_one(images_NCHW, factors)
    torch.testing.assert_close(jitter_colors(images_NCHW.clone(), factors), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strength", [0.05, 1.0])
def test_extreme_strengths_equal_torchvision(strength):
    settings = SETTINGS.model_copy(
        update={"brightness": strength, "contrast": strength, "saturation": strength, "hue": strength / 2}
    )
    factors, images_NCHW = draw_color_factors(100, settings, generator(2)), images(100)
    expected = adjust_one_by_one(images_NCHW, factors)
    torch.testing.assert_close(jitter_colors(images_NCHW.clone(), factors), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 1 / 6, 0.5])
def test_hue_equals_torchvision(turn):
    images_NCHW = images(20)
    expected = reference.adjust_hue(images_NCHW, turn)
    torch.testing.assert_close(turn_hue(images_NCHW.clone(), torch.full((20,), turn)), expected, rtol=0, atol=1e-5)


def test_a_third_of_a_turn_makes_red_green():
    red = torch.tensor([1.0, 0.25, 0.25]).view(1, 3, 1, 1)
    green = turn_hue(red, torch.tensor([1 / 3]))
    torch.testing.assert_close(green.flatten(), torch.tensor([0.25, 1.0, 0.25]))


def test_grayscale_equals_torchvision():
    images_NCHW = images(5)
    torch.testing.assert_close(grayscale(images_NCHW), reference.rgb_to_grayscale(images_NCHW))


def test_images_without_jitter_stay_as_they_are():
    factors = draw_color_factors(50, SETTINGS.model_copy(update={"jitter_probability": 0.0}), generator())
    images_NCHW = images(50)
    assert torch.equal(jitter_colors(images_NCHW.clone(), factors), images_NCHW)


def test_only_some_images_are_jittered():
    settings = SETTINGS.model_copy(update={"jitter_probability": 0.8})
    factors = draw_color_factors(5000, settings, generator())
    is_jittered = factors.hue_N != 0
    assert torch.equal(is_jittered, (factors.blends_3N != 1).all(0))
    assert torch.equal(~is_jittered, (factors.blends_3N == 1).all(0))
    assert stats.binomtest(int(is_jittered.sum()), 5000, 0.8).pvalue > SIGNIFICANCE


def test_factors_are_distributed_as_torchvisions():
    count = 2000
    factors = draw_color_factors(count, SETTINGS, generator())
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.1)
    torch.manual_seed(0)
    draws = [jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) for _ in range(count)]
    ours = [*factors.blends_3N, factors.hue_N]
    for index, values_N in enumerate(ours):
        theirs = [draw[index + 1] for draw in draws]
        assert stats.ks_2samp(values_N.numpy(), theirs).pvalue > SIGNIFICANCE
    correlations = torch.corrcoef(torch.stack(ours)) - torch.eye(4)
    assert correlations.abs().max() < 0.08


def test_every_order_is_equally_likely():
    places_4N = draw_color_factors(12000, SETTINGS, generator()).places_4N
    codes = (places_4N * torch.tensor([[64], [16], [4], [1]])).sum(0)
    _, counts = codes.unique(return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > SIGNIFICANCE


def test_order_by_schedule_is_a_permutation_with_equal_schedules_side_by_side():
    factors = draw_color_factors(500, SETTINGS.model_copy(update={"jitter_probability": 0.8}), generator())
    order = factors.order_by_schedule()
    assert torch.equal(order.sort().values, torch.arange(500))
    groups = torch.where(factors.hue_N == 0, 4, factors.places_4N[3])[order]
    assert torch.equal(groups, groups.sort().values)
