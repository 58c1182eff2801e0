"""The packed cache -> tensors on the training device, split into training, validation and test.

Shape suffixes: N = pictures, H = height, W = width, C = the three colour channels.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model_code.data.cache import PackedDataset, PackedSplit
from model_code.data.splits import split_stratified, take_stratified
from model_code.errors import DataError
from model_code.training.config import TrainingConfig


@dataclass(frozen=True)
class Pictures:
    """Some labelled pictures on a device.

    Attributes:
        images_NHWC: uint8.
        labels_N: int64, in [0, classes).
    """

    images_NHWC: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True)
class TrainingPictures:
    """The pictures of one run; validation chooses the epoch, test is looked at once.

    Attributes:
        train: Pictures that are learned from.
        validation: Pictures that choose the best epoch; none of them is in `train`.
        test: Pictures of the final figure; None if the data set has none.
        classes: Names in label order.
        checksum: Of the whole packed data set.
    """

    train: Pictures
    validation: Pictures
    test: Pictures | None
    classes: tuple[str, ...]
    checksum: str


def load_pictures(dataset: PackedDataset, config: TrainingConfig, device: torch.device) -> TrainingPictures:
    """Split a packed data set as the config says and move it to the device.

    A data set that brings its own validation pictures keeps them for validation and is not split.

    Raises:
        DataError: Some training or test pictures have no label.
        UsageError: `limit_train` or `validation_fraction` are impossible for these pictures.
    """
    for split in dataset.splits.values():
        unlabelled = int((split.labels_N < 0).sum())
        if unlabelled:
            raise DataError(f"{unlabelled} of {len(split.labels_N)} pictures of {dataset.name} have no label")
    train = dataset.splits["train"]
    chosen = np.arange(len(train.labels_N))
    if config.limit_train is not None and config.limit_train < len(chosen):
        chosen = take_stratified(train.labels_N, config.limit_train, config.split_seed)
    own, test = dataset.splits.get("validation"), dataset.splits.get("test")
    if own is not None:
        learn, validation = chosen, _to_device(own, np.arange(len(own.labels_N)), device)
    else:
        kept, held_out = split_stratified(train.labels_N[chosen], config.validation_fraction, config.split_seed)
        learn, validation = chosen[kept], _to_device(train, chosen[held_out], device)
    return TrainingPictures(
        train=_to_device(train, learn, device),
        validation=validation,
        test=None if test is None else _to_device(test, np.arange(len(test.labels_N)), device),
        classes=dataset.classes,
        checksum=dataset.checksum,
    )


def _to_device(split: PackedSplit, indices: npt.NDArray[np.int64], device: torch.device) -> Pictures:
    images_NHWC = torch.from_numpy(np.ascontiguousarray(split.images_NHWC[indices]))
    return Pictures(images_NHWC.to(device), torch.from_numpy(split.labels_N[indices]).to(device))
