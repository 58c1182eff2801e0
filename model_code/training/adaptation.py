"""Settings of a recipe for images other than its own: normalisation, sizes, batch.

Shape suffixes: N = images, H = height, W = width, C = the three colour channels.
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from model_code.data.cache import PackedDataset
from model_code.data.shards import ImageArray
from model_code.data.sources.detect import get_known
from model_code.errors import SizeError, UsageError
from model_code.models.networks import fit_image_size
from model_code.training.config import TrainingConfig
from model_code.training.epoch_config import EpochConfig
from model_code.training.images import get_labelled
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.run_config import Channels
from model_code.training.run_folder import AnyConfig

# More images change the fourth decimal.
_MEASURED_IMAGES = 5000
# In an epoch: with fewer, a recipe's epochs are too few updates.
_FEWEST_STEPS = 10
# By checksum and shape: every recipe of a train-all asks for the same.
_measured: dict[tuple[str, tuple[int, ...]], tuple[Channels, Channels]] = {}


def adapt(config: AnyConfig, dataset: PackedDataset, given: Collection[str] = ()) -> dict[str, Any]:
    """Return the settings that a run needs for images other than those of its recipe.

    Mean and standard deviation are those of the training images. The network sees the same share of the packed image
    as in the recipe, at the nearest smaller size that it can read. A batch that leaves fewer than ten steps in an
    epoch is made smaller, and the learning rate with it.

    Args:
        config: Config of the recipe for its own images.
        dataset: The images to train on.
        given: Settings that stay as they are.

    Raises:
        SizeError: The network cannot read images that small.
        DataError: There are no training images, or some have no label.
    """
    changes: dict[str, Any] = {"dataset": dataset.name}
    if dataset.name != config.dataset and isinstance(config, EpochConfig):
        changes |= dict(zip(("mean", "std"), measure_channels(dataset), strict=True))
        try:
            changes |= _adapt_size(config, dataset.image_size)
        except UsageError as error:
            raise SizeError(f"{error}: pack {dataset.name} anew with --image-size, or take another recipe") from error
        if config.profile != "smoke":  # which has its own, small one
            changes |= {} if "batch_size" in given else _adapt_batch(config, dataset)
    return {name: value for name, value in changes.items() if name not in given}


def measure_channels(dataset: PackedDataset) -> tuple[Channels, Channels]:
    """Return mean and standard deviation of each channel over training images in [0, 1], to four decimals."""
    images_NHWC = get_labelled(dataset, "train").images_NHWC
    key = dataset.checksum, images_NHWC.shape
    if key not in _measured:
        _measured[key] = _measure(images_NHWC)
    return _measured[key]


def _measure(images_NHWC: ImageArray) -> tuple[Channels, Channels]:
    step = -(-len(images_NHWC) // _MEASURED_IMAGES)
    sums_C, squares_C, count = np.zeros(3), np.zeros(3), 0
    for row in range(0, len(images_NHWC), step):
        pixels_PC = images_NHWC[row].reshape(-1, 3) / 255
        sums_C, squares_C = sums_C + pixels_PC.sum(0), squares_C + (pixels_PC**2).sum(0)
        count += len(pixels_PC)
    mean_C = sums_C / count
    # Images of one colour have no deviation; 1/255 is the smallest step between two.
    std_C = np.sqrt(np.maximum(squares_C / count - mean_C**2, 255**-2))
    red, green, blue = mean_C.round(4).tolist()
    red_std, green_std, blue_std = std_C.round(4).tolist()
    return (red, green, blue), (red_std, green_std, blue_std)


def _adapt_size(config: TrainingConfig | SimSiamConfig, packed_size: int) -> dict[str, Any]:
    if isinstance(config, SimSiamConfig):
        size = fit_image_size(config.network, packed_size)
        return {"views.image_size": size, "evaluation_enlargement": packed_size / size}
    share = 1.0 if config.image_size is None else min(1.0, config.image_size / get_known(config.dataset).image_size)
    size = fit_image_size(config.network, round(share * packed_size))
    return {} if config.image_size is None and size == packed_size else {"image_size": size}


def _adapt_batch(config: TrainingConfig | SimSiamConfig, dataset: PackedDataset) -> dict[str, Any]:
    count = len(dataset.splits["train"].labels_N)
    count = min(count, config.limit_train or count)
    if isinstance(config, TrainingConfig) and "validation" not in dataset.splits:
        count -= round(count * config.validation_fraction)
    if count >= _FEWEST_STEPS * config.batch_size:
        return {}
    batch_size = 2 ** max(1, (count // _FEWEST_STEPS).bit_length() - 1)
    if isinstance(config, SimSiamConfig):
        return {"batch_size": batch_size}
    return {"batch_size": batch_size, "learning_rate": config.learning_rate * batch_size / config.batch_size}
