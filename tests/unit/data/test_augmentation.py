import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chi2_contingency, chisquare, ks_2samp
from torchvision import transforms
from torchvision.transforms import functional

from model_code.data import augmentation
from model_code.data.augmentation import crop_and_flip, resized_crop

SIDE, PADDING = 8, 4
SHIFTS = 2 * PADDING + 1


def draw_position_image():
    """An image whose pixels say where they are and are never black."""
    rows, columns = torch.meshgrid(torch.arange(1, SIDE + 1), torch.arange(1, SIDE + 1), indexing="ij")
    return torch.stack([rows, columns, torch.full_like(rows, 200)], dim=-1).to(torch.uint8)


def list_windows(image_HWC):
    """{bytes of the result: (row shift, column shift, is mirrored)} of all results that torchvision can give."""
    padded = functional.pad(image_HWC.permute(2, 0, 1), [PADDING] * 4)
    windows = {}
    for row in range(SHIFTS):
        for column in range(SHIFTS):
            window = functional.crop(padded, row, column, SIDE, SIDE)
            for is_mirrored in (False, True):
                result = functional.hflip(window) if is_mirrored else window
                windows[result.permute(1, 2, 0).contiguous().numpy().tobytes()] = (row, column, is_mirrored)
    assert len(windows) == 2 * SHIFTS**2
    return windows


def augment(count, seed=0, padding=PADDING, has_flip=True):
    images = draw_position_image().expand(count, -1, -1, -1)
    return crop_and_flip(images, padding, has_flip, torch.Generator().manual_seed(seed))


def count_results(images_BHWC):
    """How often each (row shift, column shift, is mirrored) came out, as an array [shifts, shifts, 2]."""
    windows = list_windows(draw_position_image())
    counts = np.zeros((SHIFTS, SHIFTS, 2), dtype=np.int64)
    for image in images_BHWC.numpy():
        row, column, is_mirrored = windows[image.tobytes()]
        counts[row, column, int(is_mirrored)] += 1
    return counts


def test_every_window_of_torchvision_is_equally_likely():
    counts = count_results(augment(20_000))
    assert counts.min() > 0
    assert chisquare(counts.ravel()).pvalue > 1e-3
    assert chisquare(counts.sum(axis=(1, 2))).pvalue > 1e-3
    assert chisquare(counts.sum(axis=(0, 2))).pvalue > 1e-3
    assert binomtest(int(counts[..., 1].sum()), 20_000, 0.5).pvalue > 1e-3


def test_distribution_is_that_of_torchvisions_transforms():
    theirs = transforms.Compose([transforms.RandomCrop(SIDE, padding=PADDING), transforms.RandomHorizontalFlip(0.5)])
    image_CHW = draw_position_image().permute(2, 0, 1)
    torch.manual_seed(0)
    their_counts = count_results(torch.stack([theirs(image_CHW).permute(1, 2, 0) for _ in range(4000)]))
    our_counts = count_results(augment(4000, seed=1))
    table = np.stack([our_counts.ravel(), their_counts.ravel()])
    assert chi2_contingency(table).pvalue > 1e-3


def test_a_reflected_border_is_torchvisions():
    images = draw_position_image().expand(2000, -1, -1, -1)
    cut = crop_and_flip(images, PADDING, False, torch.Generator().manual_seed(0), border="reflect")
    padded = functional.pad(images[0].permute(2, 0, 1), [PADDING] * 4, padding_mode="reflect").permute(1, 2, 0)
    windows = {
        padded[row : row + SIDE, column : column + SIDE].contiguous().numpy().tobytes()
        for row in range(SHIFTS)
        for column in range(SHIFTS)
    }
    assert {image.numpy().tobytes() for image in cut} == windows


def test_images_are_mirrored_as_told():
    images = draw_position_image().expand(6, -1, -1, -1)
    is_mirrored = torch.tensor([True, False, True, True, False, False])
    told = crop_and_flip(images, 0, True, torch.Generator().manual_seed(0), is_mirrored_B=is_mirrored)
    for image, is_flipped in zip(told, is_mirrored.tolist(), strict=True):
        assert torch.equal(image, images[0].flip(1) if is_flipped else images[0])


def test_images_of_one_batch_draw_their_own_parameters():
    counts = count_results(augment(64))
    assert (counts > 0).sum() > 30


def test_the_generator_decides():
    assert torch.equal(augment(32, seed=5), augment(32, seed=5))
    assert not torch.equal(augment(32, seed=5), augment(32, seed=6))
    generator = torch.Generator().manual_seed(5)
    images = draw_position_image().expand(32, -1, -1, -1)
    assert not torch.equal(*(crop_and_flip(images, PADDING, True, generator) for _ in range(2)))


def test_global_randomness_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    augment(8)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_padding_and_no_flip_is_a_copy():
    images = torch.randint(0, 256, (5, 6, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    result = crop_and_flip(images, 0, False, torch.Generator().manual_seed(0))
    assert torch.equal(result, images)
    result += 1
    assert not torch.equal(result, images)


def test_no_padding_mirrors_or_leaves():
    image = draw_position_image()
    results = augment(200, padding=0)
    mirrored = sum(torch.equal(result, image.flip(1)) for result in results)
    left = sum(torch.equal(result, image) for result in results)
    assert mirrored + left == 200
    assert 70 < mirrored < 130


def test_without_flip_nothing_is_mirrored():
    assert count_results(augment(500, has_flip=False))[..., 1].sum() == 0


@pytest.mark.parametrize("padding", [1, 3])
def test_border_is_black_and_at_most_the_padding_wide(padding):
    white = torch.full((300, SIDE, SIDE, 3), 255, dtype=torch.uint8)
    result = crop_and_flip(white, padding, True, torch.Generator().manual_seed(0))
    assert result.dtype == torch.uint8
    assert set(result.unique().tolist()) == {0, 255}
    assert (result[:, padding:-padding, padding:-padding] == 255).all()
    black_rows_B = (result == 0).all(dim=3).all(dim=2).sum(dim=1)
    assert set(black_rows_B.tolist()) == set(range(padding + 1))


def test_images_need_not_be_square():
    images = torch.randint(1, 256, (20, 6, 10, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert crop_and_flip(images, 2, True, torch.Generator().manual_seed(0)).shape == (20, 6, 10, 3)


AREA = (0.25, 1.0)


def draw_ramps(height, width):
    """Red rises by one a row and green by one a column: a crop's pixels say where it was and how large."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.zeros_like(rows)], dim=-1).to(torch.uint8)


def crop_ramps(count, size=(160, 160), image_size=32, seed=0):
    images = draw_ramps(*size).expand(count, -1, -1, -1)
    return resized_crop(images, image_size, AREA, torch.Generator().manual_seed(seed))


def measure_crops(images_BHWC):
    """Columns of centre row, centre column, height and width, all in pixels of the uncropped image."""
    images = images_BHWC.double()
    rows, columns = images[..., 0].mean(dim=2), images[..., 1].mean(dim=1)
    sides = [(axis[:, -2] - axis[:, 1]) / (axis.shape[1] - 3) * axis.shape[1] for axis in (rows, columns)]
    return torch.stack([rows.mean(dim=1), columns.mean(dim=1), *sides], dim=1).numpy()


@pytest.mark.parametrize("size", [(160, 160), (120, 200)])
def test_resized_crops_are_distributed_as_torchvisions(size):
    torch.manual_seed(0)
    blank = torch.zeros(3, *size)
    boxes = [transforms.RandomResizedCrop.get_params(blank, AREA, (3 / 4, 4 / 3)) for _ in range(2000)]
    theirs = np.array(
        [(top + (rows - 1) / 2, left + (columns - 1) / 2, rows, columns) for top, left, rows, columns in boxes]
    )
    ours = measure_crops(crop_ramps(2000, size))
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    for derived in (lambda found: found[:, 2] * found[:, 3], lambda found: np.log(found[:, 3] / found[:, 2])):
        assert ks_2samp(derived(ours), derived(theirs)).pvalue > 1e-3


def test_a_resized_crop_keeps_its_image_and_direction():
    found = crop_ramps(300)
    assert found.dtype == torch.uint8
    assert found.shape == (300, 32, 32, 3)
    assert (measure_crops(found)[:, 2:] > 0).all()
    levels = torch.arange(0, 250, 5, dtype=torch.uint8)
    images = levels[:, None, None, None].expand(-1, 20, 30, 3)
    small = resized_crop(images, 12, AREA, torch.Generator().manual_seed(0))
    assert torch.equal(small, levels[:, None, None, None].expand(-1, 12, 12, 3))


def test_images_of_one_batch_are_cropped_differently():
    assert len(crop_ramps(64).flatten(1).unique(dim=0)) > 60


def test_equal_generators_give_equal_resized_crops(monkeypatch):
    whole = crop_ramps(32, seed=5)
    assert torch.equal(crop_ramps(32, seed=5), whole)
    assert not torch.equal(crop_ramps(32, seed=6), whole)
    generator = torch.Generator().manual_seed(5)
    images = draw_ramps(40, 40).expand(8, -1, -1, -1)
    assert not torch.equal(*(resized_crop(images, 32, AREA, generator) for _ in range(2)))
    monkeypatch.setattr(augmentation, "CPU_CHUNK_PIXELS", 1)
    assert (crop_ramps(32, seed=5).int() - whole.int()).abs().max() <= 1


def test_the_whole_image_at_its_size_is_a_copy():
    images = torch.randint(0, 256, (4, 9, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # An aspect other than 1 does not fit, so what is left is the largest crop: everything.
    assert torch.equal(resized_crop(images, 9, (1.0, 1.0), torch.Generator().manual_seed(0)), images)


@pytest.mark.parametrize("crop_area", [(0.0, 1.0), (0.5, 0.2), (0.5, 1.1)])
def test_impossible_crop_areas(crop_area):
    with pytest.raises(ValueError, match="is not allowed; give two shares"):
        resized_crop(draw_ramps(8, 8)[None], 8, crop_area, torch.Generator())
