"""Crops and blur against torchvision's, image by image.

Shape suffixes: N = images, C = colour channels, H = height, W = width.
"""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from model_code.data.resampling import SIGMA_WITHOUT_BLUR, Crops, blur, draw_crops, draw_sigmas, resize_crops
from model_code.data.view_settings import ViewSettings

pytestmark = pytest.mark.usefixtures("one_thread")

SIGNIFICANCE = 0.01
SETTINGS = ViewSettings()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def torchvision_crops(count: int, size: tuple[int, int], settings: ViewSettings) -> np.ndarray:
    """Rows of top, left, height, width."""
    torch.manual_seed(0)
    blank = torch.zeros(3, *size)
    return np.array(
        [RandomResizedCrop.get_params(blank, settings.crop_area, settings.crop_aspect) for _ in range(count)]
    )


def our_crops(count: int, size: tuple[int, int], settings: ViewSettings) -> np.ndarray:
    crops = draw_crops(count, *size, generator(), crop_area=settings.crop_area, crop_aspect=settings.crop_aspect)
    return torch.stack([crops.tops_N, crops.lefts_N, crops.heights_N, crops.widths_N], dim=1).numpy()


@pytest.mark.parametrize("size", [(32, 32), (256, 256), (40, 64)])
def test_crops_are_distributed_as_torchvisions(size):
    ours, theirs = our_crops(3000, size, SETTINGS), torchvision_crops(3000, size, SETTINGS)
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > SIGNIFICANCE
    for derived in (_area, _aspect, _relative_top, _relative_left):
        assert stats.ks_2samp(derived(ours, size), derived(theirs, size)).pvalue > SIGNIFICANCE


def _area(crops, size):
    return crops[:, 2] * crops[:, 3] / (size[0] * size[1])


def _aspect(crops, size):
    return crops[:, 3] / crops[:, 2]


def _relative_top(crops, size):
    return (crops[:, 0] + 0.5) / (size[0] - crops[:, 2] + 1)


def _relative_left(crops, size):
    return (crops[:, 1] + 0.5) / (size[1] - crops[:, 3] + 1)


def test_crops_stay_inside_and_reach_every_border():
    crops = our_crops(20000, (32, 32), SETTINGS)
    top, left, height, width = crops.T
    assert min(top.min(), left.min()) == 0
    assert max((top + height).max(), (left + width).max()) == 32
    assert min(height.min(), width.min()) >= 12
    assert len(np.unique(crops, axis=0)) > 5000


@pytest.mark.parametrize("size", [(16, 64), (64, 16), (32, 32)])
def test_an_image_in_which_no_try_fits_gets_the_central_crop(size):
    settings = ViewSettings(crop_area=(1.0, 1.0), crop_aspect=(0.9, 0.9) if size == (32, 32) else (3 / 4, 4 / 3))
    ours, theirs = our_crops(50, size, settings), torchvision_crops(50, size, settings)
    assert np.array_equal(np.unique(ours, axis=0), np.unique(theirs, axis=0))


def test_half_of_the_crops_are_mirrored():
    crops = draw_crops(5000, 32, 32, generator(), crop_area=(0.2, 1.0), flip_probability=0.5)
    mirrored = int(crops.is_mirrored_N.sum())
    assert stats.binomtest(mirrored, 5000, 0.5).pvalue > SIGNIFICANCE


@pytest.mark.parametrize(("size", "image_size"), [((32, 32), 32), ((80, 80), 24), ((40, 60), 32)])
def test_resized_crops_equal_torchvision_image_by_image(size, image_size):
    count = 60
    images_NCHW = torch.rand((count, 3, *size), generator=generator(1))
    crops = draw_crops(count, *size, generator(2), crop_area=(0.2, 1.0), flip_probability=0.5)
    ours = resize_crops(images_NCHW, crops, image_size)
    for index, image_CHW in enumerate(images_NCHW):
        box = [int(values_N[index]) for values_N in (crops.tops_N, crops.lefts_N, crops.heights_N, crops.widths_N)]
        expected = reference.resized_crop(
            image_CHW, *box, [image_size, image_size], InterpolationMode.BILINEAR, antialias=True
        )
        if crops.is_mirrored_N[index]:
            expected = expected.flip(-1)
        torch.testing.assert_close(ours[index], expected, rtol=0, atol=1e-5)


def test_the_whole_image_at_its_own_size_is_unchanged():
    images_NCHW = torch.rand((2, 3, 8, 8), generator=generator())
    zero, eight = torch.zeros(2, dtype=torch.int64), torch.full((2,), 8)
    views = resize_crops(images_NCHW, Crops(zero, zero, eight, eight, torch.tensor([False, True])), 8)
    assert torch.equal(views[0], images_NCHW[0])
    assert torch.equal(views[1], images_NCHW[1].flip(-1))


@pytest.mark.parametrize("size", [40, 96])
def test_blur_equals_torchvision_image_by_image(size):
    images_NCHW = torch.rand((8, 3, size, size), generator=generator())
    sigmas_N = torch.tensor([0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 1.9, 2.0])
    ours, kernel = blur(images_NCHW, sigmas_N), size // 20 * 2 + 1
    for index, sigma in enumerate(sigmas_N.tolist()):
        expected = reference.gaussian_blur(images_NCHW[index], [kernel, kernel], [sigma, sigma])
        torch.testing.assert_close(ours[index], expected, rtol=0, atol=1e-5)


def test_without_blur_an_image_is_unchanged():
    images_NCHW = torch.rand((2, 3, 64, 64), generator=generator())
    assert torch.equal(blur(images_NCHW, torch.full((2,), SIGMA_WITHOUT_BLUR)), images_NCHW)


def test_half_of_the_images_are_blurred_with_uniform_sigma():
    sigmas = draw_sigmas(4000, SETTINGS, generator()).numpy()
    blurred = sigmas[sigmas != np.float32(SIGMA_WITHOUT_BLUR)]
    assert stats.binomtest(len(blurred), 4000, 0.5).pvalue > SIGNIFICANCE
    assert stats.kstest(blurred, stats.uniform(0.1, 1.9).cdf).pvalue > SIGNIFICANCE
