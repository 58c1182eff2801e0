import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chi2_contingency, chisquare
from torchvision import transforms
from torchvision.transforms import functional

from model_code.data.augmentation import crop_and_flip

SIDE, PADDING = 8, 4
SHIFTS = 2 * PADDING + 1


def draw_position_picture():
    """A picture whose pixels say where they are and are never black."""
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
    images = draw_position_picture().expand(count, -1, -1, -1)
    return crop_and_flip(images, padding, has_flip, torch.Generator().manual_seed(seed))


def count_results(images_BHWC):
    """How often each (row shift, column shift, is mirrored) came out, as an array [shifts, shifts, 2]."""
    windows = list_windows(draw_position_picture())
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
    image_CHW = draw_position_picture().permute(2, 0, 1)
    torch.manual_seed(0)
    their_counts = count_results(torch.stack([theirs(image_CHW).permute(1, 2, 0) for _ in range(4000)]))
    our_counts = count_results(augment(4000, seed=1))
    table = np.stack([our_counts.ravel(), their_counts.ravel()])
    assert chi2_contingency(table).pvalue > 1e-3


def test_pictures_of_one_batch_draw_their_own_parameters():
    counts = count_results(augment(64))
    assert (counts > 0).sum() > 30


def test_the_generator_decides():
    assert torch.equal(augment(32, seed=5), augment(32, seed=5))
    assert not torch.equal(augment(32, seed=5), augment(32, seed=6))
    generator = torch.Generator().manual_seed(5)
    images = draw_position_picture().expand(32, -1, -1, -1)
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
    image = draw_position_picture()
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


def test_pictures_need_not_be_square():
    images = torch.randint(1, 256, (20, 6, 10, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert crop_and_flip(images, 2, True, torch.Generator().manual_seed(0)).shape == (20, 6, 10, 3)
