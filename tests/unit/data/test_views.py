"""Two views per image as a whole.

Shape suffixes: B = images, H = height, W = width, C = colour channels.
"""

import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torchvision.transforms import v2

from model_code.data import views
from model_code.data.view_settings import ViewSettings
from model_code.data.views import plain_view, two_views

pytestmark = pytest.mark.usefixtures("one_thread")

SIGNIFICANCE = 0.01
# Nothing happens to an image.
STILL = ViewSettings(
    crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip_probability=0, jitter_probability=0, grayscale_probability=0
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(name="images_BHWC")
def noise() -> torch.Tensor:
    return torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8, generator=generator(9))


def test_the_seed_decides_and_the_images_stay(images_BHWC):
    before = images_BHWC.clone()
    first, again, other = (two_views(images_BHWC, generator(seed), ViewSettings()) for seed in (1, 1, 2))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(images_BHWC, before)


def test_views_keep_dtype_and_take_the_size(images_BHWC):
    settings = ViewSettings(image_size=48)
    for images in (images_BHWC, images_BHWC.float() / 255):
        for view in two_views(images, generator(), settings):
            assert view.shape == (40, 48, 48, 3)
            assert view.dtype == images.dtype
            assert view.min() >= 0
            assert view.max() <= (255 if images is images_BHWC else 1)


def test_uint8_and_float_images_get_the_same_views(images_BHWC):
    from_uint8 = two_views(images_BHWC, generator(), ViewSettings())
    from_float = two_views(images_BHWC.float() / 255, generator(), ViewSettings())
    for one, other in zip(from_uint8, from_float, strict=True):
        assert (one.float() / 255 - other).abs().max() <= 0.5 / 255 + 1e-6


def test_with_everything_off_views_are_the_images(images_BHWC):
    for view in two_views(images_BHWC, generator(), STILL):
        assert torch.equal(view, images_BHWC)


@pytest.mark.parametrize(
    "change",
    [
        {"crop_area": (0.2, 0.9)},
        {"flip_probability": 0.5},
        {"jitter_probability": 1.0},
        {"grayscale_probability": 0.5},
        {"image_size": 40, "blur_probability": 0.5},
    ],
)
def test_copies_of_one_image_differ_within_a_batch_and_between_views(change):
    image = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8, generator=generator(3))
    settings = ViewSettings(**{**STILL.model_dump(), **change})
    both = torch.cat(two_views(image.expand(64, -1, -1, -1), generator(), settings))
    kinds = len(both.flatten(1).unique(dim=0))
    few_kinds = "flip_probability" in change or "grayscale_probability" in change
    assert kinds == 2 if few_kinds else kinds > 50
    assert not torch.equal(both[:64], both[64:])


def test_a_fifth_of_the_views_is_grey(images_BHWC):
    settings = STILL.model_copy(update={"grayscale_probability": 0.2})
    both = torch.cat(two_views(images_BHWC.repeat(50, 1, 1, 1), generator(), settings)).int()
    is_gray = (both[..., 0] == both[..., 1]).flatten(1).all(1) & (both[..., 1] == both[..., 2]).flatten(1).all(1)
    assert stats.binomtest(int(is_gray.sum()), len(both), 0.2).pvalue > SIGNIFICANCE


def test_small_views_are_never_blurred(images_BHWC):
    for view in two_views(images_BHWC, generator(), STILL.model_copy(update={"blur_probability": 1.0})):
        assert torch.equal(view, images_BHWC)


def test_views_do_not_depend_on_the_chunks(images_BHWC, monkeypatch):
    whole = two_views(images_BHWC, generator(), ViewSettings())
    monkeypatch.setattr(views, "CPU_CHUNK_PIXELS", 3 * 32 * 32)
    for one, other in zip(whole, two_views(images_BHWC, generator(), ViewSettings()), strict=True):
        assert (one.int() - other.int()).abs().max() <= 1


def test_each_view_shows_its_own_image():
    levels = torch.arange(0, 250, 5, dtype=torch.uint8)
    images_BHWC = levels[:, None, None, None].expand(-1, 32, 32, 3)
    settings = ViewSettings(jitter_probability=0, grayscale_probability=0)
    for view in two_views(images_BHWC, generator(), settings):
        assert torch.equal(view, images_BHWC)


def test_pixel_statistics_are_those_of_torchvisions_pipeline():
    """Mean, spread and colourfulness of views of one image, against per-image transforms."""
    ramp = torch.linspace(0, 1, 32)
    red, green = ramp[:, None].expand(32, 32), ramp[None, :].expand(32, 32)
    image_CHW = torch.stack([red, green, (red * 0.7 + 0.1)])
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(32, (0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
        ]
    )
    torch.manual_seed(0)
    theirs = torch.stack([transform(image_CHW) for _ in range(1000)])
    batch = image_CHW.permute(1, 2, 0).expand(500, -1, -1, -1)
    ours = torch.cat(two_views(batch, generator(), ViewSettings())).permute(0, 3, 1, 2)
    for statistic in (
        lambda views: views.mean(dim=(1, 2, 3)),
        lambda views: views.std(dim=(1, 2, 3)),
        lambda views: (views[:, 0] - views[:, 2]).mean(dim=(1, 2)),
        lambda views: (views[..., -1] - views[..., 0]).mean(dim=(1, 2)),
        lambda views: (views[:, :, -1] - views[:, :, 0]).mean(dim=(1, 2)),
    ):
        assert stats.ks_2samp(statistic(ours).numpy(), statistic(theirs).numpy()).pvalue > SIGNIFICANCE


def test_plain_view_of_the_right_size_is_the_image(images_BHWC):
    assert torch.equal(plain_view(images_BHWC, 32), images_BHWC)


def test_plain_view_equals_torchvisions_resize_and_centre_crop():
    images_BHWC = torch.rand((3, 60, 40, 3), generator=generator())
    reference = v2.Compose([v2.Resize(27, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(24)])
    expected = reference(images_BHWC.permute(0, 3, 1, 2)).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(plain_view(images_BHWC, 24, 8 / 7), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_area": (0.5, 0.2)}, "smaller value first"),
        ({"crop_area": (0.5, 1.2)}, "at most 1"),
        ({"hue": 0.6}, "hue"),
        ({"brightnes": 0.1}, "brightnes"),
    ],
)
def test_impossible_settings(change, message):
    with pytest.raises(ValidationError, match=message):
        ViewSettings(**change)
