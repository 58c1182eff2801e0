"""Occlusion: what each part of an image contributes to an answer (Zeiler and Fergus 2014, arXiv:1311.2901).

Shape suffixes: N = images that are classified, H = height, W = width, C = colour channels, K = classes.
"""

import numpy as np
import numpy.typing as npt

# With the image itself they fit one batch.
GRID = 7
VARIANTS = GRID * GRID + 1


def cover_cells(image_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return an image, and for each cell of a grid, row by row, a copy with the cell in the image's mean colour.

    Args:
        image_HWC: uint8, as the model reads it.

    Returns:
        uint8 [VARIANTS, H, W, C].
    """
    height, width, _ = image_HWC.shape
    images_NHWC = np.repeat(image_HWC[None], VARIANTS, axis=0)
    mean_C = image_HWC.mean(axis=(0, 1)).round().astype(np.uint8)
    rows, columns = (np.linspace(0, size, GRID + 1).round().astype(int) for size in (height, width))
    for cell in range(GRID * GRID):
        row, column = divmod(cell, GRID)
        images_NHWC[cell + 1, rows[row] : rows[row + 1], columns[column] : columns[column + 1]] = mean_C
    return images_NHWC


def measure_drops(probabilities_NK: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return how much less probable the image's label is without each cell, float32 [GRID, GRID] in [-1, 1].

    Args:
        probabilities_NK: Class probabilities of the images of `cover_cells`, float32.
    """
    label = int(probabilities_NK[0].argmax())
    drops: npt.NDArray[np.float32] = probabilities_NK[0, label] - probabilities_NK[1:, label]
    return drops.clip(-1, 1).reshape(GRID, GRID)
