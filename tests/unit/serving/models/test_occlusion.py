import numpy as np
import pytest

from serving.limits import MAX_IMAGES
from serving.models.occlusion import GRID, VARIANTS, cover_cells, measure_drops


@pytest.mark.parametrize("size", [32, 224, 7, 8, 30])
def test_every_pixel_is_covered_once(size):
    image_HWC = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    before = image_HWC.copy()
    images_NHWC = cover_cells(image_HWC)
    assert images_NHWC.shape == (VARIANTS, size, size, 3)
    assert images_NHWC.dtype == np.uint8
    np.testing.assert_array_equal(images_NHWC[0], image_HWC)
    np.testing.assert_array_equal(image_HWC, before)
    mean_C = image_HWC.mean(axis=(0, 1)).round()
    # A pixel of the mean colour is covered without a change: compare with an image that has none.
    marked = np.where(image_HWC == mean_C, image_HWC ^ 1, image_HWC).astype(np.uint8)
    changed_NHW = (cover_cells(marked)[1:] != marked).any(axis=-1)
    np.testing.assert_array_equal(changed_NHW.sum(axis=0), np.ones((size, size)))
    areas = changed_NHW.sum(axis=(1, 2))
    assert areas.min() > 0
    assert np.sqrt(areas.max()) - np.sqrt(areas.min()) <= 1 + 1e-9


def test_the_first_cell_is_above_and_left_the_second_beside_it():
    image_HWC = np.zeros((70, 70, 3), dtype=np.uint8)
    image_HWC[35:] = 200
    images_NHWC = cover_cells(image_HWC)
    assert (images_NHWC[1, :10, :10] == 100).all()
    assert (images_NHWC[2, :10, 10:20] == 100).all()
    assert (images_NHWC[2, :10, :10] == 0).all()
    assert (images_NHWC[GRID * GRID, 60:, 60:] == 100).all()


def test_drops_are_of_the_label_of_the_whole_image():
    probabilities_NK = np.tile(np.array([0.2, 0.8], dtype=np.float32), (VARIANTS, 1))
    probabilities_NK[1] = (0.9, 0.1)
    probabilities_NK[1 + GRID] = (0.1, 0.9)
    drops = measure_drops(probabilities_NK)
    assert drops.shape == (GRID, GRID)
    assert drops[0, 0] == pytest.approx(0.7)
    assert drops[1, 0] == pytest.approx(-0.1)
    assert np.count_nonzero(drops) == 2


def test_an_explanation_fits_one_batch():
    assert VARIANTS <= MAX_IMAGES
