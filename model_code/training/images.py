"""The packed cache -> tensors on the training device or beside it, split into training, validation and test.

Shape suffixes: N = images, H = height, W = width, C = the three colour channels.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model_code.data.cache import PackedDataset, PackedSplit
from model_code.data.disk_images import DiskImages
from model_code.data.splits import split_stratified, take_stratified
from model_code.disk import format_size
from model_code.errors import DataError, UsageError
from model_code.training.batches import fits_device
from model_code.training.config import TrainingConfig
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.run_config import RunConfig
from serving.bundle.processors import count_memory_bytes

Indices = npt.NDArray[np.int64]
Place = Literal["resident", "streamed", "disk"]

# The rest of a machine's memory is left to everything but images.
MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Images:
    """Some labelled images.

    Attributes:
        images_NHWC: uint8; on the device, or on the host or on disk where they are streamed.
        labels_N: int64, in [0, classes); on the device.
    """

    images_NHWC: Tensor | DiskImages
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, part: slice) -> "Images":
        """Return some of them."""
        return Images(self.images_NHWC[part], self.labels_N[part])

    def read(self) -> Tensor:
        """Return the images in the host's memory."""
        return self.images_NHWC.to("cpu")


@dataclass(frozen=True)
class TrainingImages:
    """The labelled images of one run; validation chooses the epoch, test is looked at once.

    Attributes:
        train: Images that are learned from.
        validation: Images that choose the best epoch; none of them is in `train`.
        test: Images of the final figure; None if the data set has none with labels.
        classes: Names in label order.
        checksum: Checksum of the whole packed data set.
    """

    train: Images
    validation: Images
    test: Images | None
    classes: tuple[str, ...]
    checksum: str

    @property
    def image_size(self) -> int:
        """Height and width as packed, pixels."""
        return self.train.images_NHWC.shape[1]

    @property
    def final(self) -> tuple[str, Images]:
        """The name of the split of the final figure, and its images: test, or else validation."""
        return ("validation", self.validation) if self.test is None else ("test", self.test)


@dataclass(frozen=True)
class PretrainingImages:
    """The images of one SimSiam run.

    Attributes:
        images_NHWC: Training images, without labels, uint8.
        memory: Memory bank of the kNN classifier for the validation images.
        validation: Labelled images that choose the best epoch; none of them is in `memory`.
        labelled: Memory bank and training images of the probes for the final figure: memory and, where the set brings
            no validation images along, validation too.
        test: Images of the final figure; None if the data set has none with labels.
        classes: Names in label order.
    """

    images_NHWC: Tensor | DiskImages
    memory: Images
    validation: Images
    labelled: Images
    test: Images | None
    classes: tuple[str, ...]


def load_images(dataset: PackedDataset, config: TrainingConfig | SimSiamConfig, device: torch.device) -> TrainingImages:
    """Split a packed data set as the config says and move it to the device, or leave it where the config says.

    A data set that brings its own validation images keeps them for validation and is not split.

    Raises:
        DataError: There are no training images, or some that are needed have no label.
        UsageError: `limit_train` or `validation_fraction` are impossible for these images.
    """
    train = get_labelled(dataset, "train")
    learn, held_out = _divide(dataset, train, config)
    place = choose_place(dataset, config, device)
    return TrainingImages(
        train=to_device(train, learn, device, place),
        validation=_load_validation(dataset, config, train, held_out, device, place),
        test=load_test(dataset, config, device, place),
        classes=dataset.classes,
        checksum=dataset.checksum,
    )


def load_pretraining_images(dataset: PackedDataset, config: SimSiamConfig, device: torch.device) -> PretrainingImages:
    """Divide a data set into training images, memory bank and query images, and move them to the device.

    Training images are those without labels where the data set has some, else all of them.

    Raises:
        DataError: There are no training images, or some that are needed have no label.
        UsageError: `limit_train` or `validation_fraction` are impossible for these images.
    """
    train = get_labelled(dataset, "train")
    remembered, held_out = _divide(dataset, train, config)
    place = choose_place(dataset, config, device)
    labelled = to_device(train, np.union1d(remembered, held_out), device, place)
    unlabelled = dataset.splits.get("unlabelled")
    images_NHWC = labelled.images_NHWC
    if unlabelled is not None:
        images_NHWC = to_device(unlabelled, _take_any(unlabelled, config), device, place).images_NHWC
    return PretrainingImages(
        images_NHWC=images_NHWC,
        memory=to_device(train, remembered, device, place) if len(held_out) else labelled,
        validation=_load_validation(dataset, config, train, held_out, device, place),
        labelled=labelled,
        test=load_test(dataset, config, device, place),
        classes=dataset.classes,
    )


def count_learned(
    dataset: PackedDataset, config: TrainingConfig | SimSiamConfig, other: TrainingConfig | SimSiamConfig
) -> int:
    """Return how many of the images that one run on a data set held out for validation another one has learned from."""
    train = get_labelled(dataset, "train")
    (_, held_out), (learned, _) = _divide(dataset, train, config), _divide(dataset, train, other)
    return int(np.isin(held_out, learned).sum())


def load_unlabelled(dataset: PackedDataset, config: TrainingConfig, device: torch.device) -> Tensor:
    """Return the images that pseudo-labels are given to, uint8 [N, H, W, C], where the other ones are kept.

    They are the data set's images without labels, or without such the training images beyond `limit_train`.

    Raises:
        DataError: There are no training images, or some of them have no label.
        UsageError: There are no such images.
    """
    split = dataset.splits.get("unlabelled")
    if split is not None:
        chosen = _take_any(split, config)
    else:
        split = get_labelled(dataset, "train")
        labelled, feedback = _choose_labelled(dataset, split, config)
        chosen = np.setdiff1d(np.arange(len(split.labels_N)), np.concatenate([labelled, feedback]))
    if not len(chosen):
        raise UsageError(
            f"{config.recipe} gives pseudo-labels to images without labels, and {dataset.name} has none; give "
            "--limit-train N: the other training images are then taken as such"
        )
    images_NHWC = to_device(split, chosen, device, choose_place(dataset, config, device)).images_NHWC
    assert isinstance(images_NHWC, Tensor), "the config refuses pseudo-labels for images on disk"
    return images_NHWC


def get_labelled(dataset: PackedDataset, name: str) -> PackedSplit:
    """Return a split whose images all have a label.

    Raises:
        DataError: There is no such split, or some of its images have none.
    """
    split = dataset.splits.get(name)
    if split is None:
        raise DataError(
            f"{dataset.name} has no {name} images, only {', '.join(dataset.splits)}; take another data set: --data NAME"
        )
    unlabelled = int((split.labels_N < 0).sum())
    if unlabelled:
        raise DataError(
            f"{unlabelled} of {len(split.labels_N)} {name} images of {dataset.name} have no label, and this recipe "
            "needs labels; label them, or leave them out of the folder"
        )
    return split


def choose_place(dataset: PackedDataset, config: TrainingConfig | SimSiamConfig, device: torch.device) -> Place:
    """Return where a run keeps its images: on the device, or in the host's memory or on disk to stream them.

    Raises:
        UsageError: The machine's memory cannot hold them. They are left on disk only where that is asked for: their
            order is another one there, and must not depend on the machine.
    """
    if config.engine.pictures != "auto":
        return config.engine.pictures
    # SimSiam holds its labelled images twice: all of them, and divided into memory and validation.
    size_bytes = (2 if isinstance(config, SimSiamConfig) else 1) * _count_bytes(dataset, config)
    memory_bytes = count_memory_bytes()
    if size_bytes > MEMORY_SHARE * memory_bytes:
        raise UsageError(
            f"the images of {dataset.name} take {format_size(size_bytes)} of the {format_size(memory_bytes)} of memory "
            "here; train from disk with --set engine.pictures=disk, or on fewer with --limit-train N"
        )
    return "resident" if fits_device(size_bytes, device) else "streamed"


def _count_bytes(dataset: PackedDataset, config: TrainingConfig | SimSiamConfig) -> int:
    """Return the size of the images that a run uses."""
    limits = {"train": config.limit_train, "unlabelled": config.limit_train}
    uses_unlabelled = isinstance(config, SimSiamConfig) or config.pseudo_label_confidence is not None
    counts = [
        min(len(split.labels_N), limits.get(name, config.limit_test) or len(split.labels_N))
        for name, split in dataset.splits.items()
        if name != "unlabelled" or uses_unlabelled
    ]
    return 3 * dataset.image_size**2 * sum(counts)


def load_test(
    dataset: PackedDataset, config: RunConfig, device: torch.device, place: Place = "resident"
) -> Images | None:
    """Return the test images, `limit_test` of them; None if there are none with labels."""
    test = dataset.splits.get("test")
    if test is None or test.labels_N.min() < 0:
        return None
    return to_device(test, take(test.labels_N, config.limit_test, config.split_seed), device, place)


def take(labels_N: Indices, limit: int | None, seed: int) -> Indices:
    """Return the indices of `limit` images with the class proportions of all; of all when it is None or larger."""
    if limit is None or limit >= len(labels_N):
        return np.arange(len(labels_N))
    return take_stratified(labels_N, limit, seed)


def to_device(split: PackedSplit, indices: Indices, device: torch.device, place: Place = "resident") -> Images:
    """Return some images of a split as tensors; those that are streamed stay on the host or, unread, on disk."""
    labels_N = torch.from_numpy(split.labels_N[indices]).to(device)
    if place == "disk":
        assert split.shards is not None, "only sets of the cache are trained on"
        return Images(DiskImages(split.shards, indices), labels_N)
    images_NHWC = torch.from_numpy(np.ascontiguousarray(split.images_NHWC[indices]))
    return Images(images_NHWC.to(device) if place == "resident" else images_NHWC, labels_N)


def _divide(
    dataset: PackedDataset, train: PackedSplit, config: TrainingConfig | SimSiamConfig
) -> tuple[Indices, Indices]:
    """Return which training images are learned from and which are held out: none where the set has validation.

    Feedback is learned from, all of it: what is held out, and a smaller training set, are those of the set without it.
    """
    chosen, feedback = _choose_labelled(dataset, train, config)
    if "validation" in dataset.splits:
        return np.concatenate([chosen, feedback]), chosen[:0]
    kept, held_out = split_stratified(train.labels_N[chosen], config.validation_fraction, config.split_seed)
    return np.concatenate([chosen[kept], feedback]), chosen[held_out]


def _choose_labelled(dataset: PackedDataset, train: PackedSplit, config: RunConfig) -> tuple[Indices, Indices]:
    """Return `limit_train` of the training images without feedback, and those of feedback."""
    count = len(train.labels_N) - dataset.count_feedback()
    chosen = take(train.labels_N[:count], config.limit_train, config.split_seed)
    return chosen, np.arange(count, len(train.labels_N))


def _load_validation(
    dataset: PackedDataset,
    config: RunConfig,
    train: PackedSplit,
    held_out: Indices,
    device: torch.device,
    place: Place = "resident",
) -> Images:
    if "validation" not in dataset.splits:
        return to_device(train, held_out, device, place)
    own = get_labelled(dataset, "validation")
    return to_device(own, take(own.labels_N, config.limit_test, config.split_seed), device, place)


def _take_any(split: PackedSplit, config: RunConfig) -> Indices:
    """Return the indices of `limit_train` images, whatever they show."""
    count = len(split.labels_N)
    if config.limit_train is None or config.limit_train >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(config.split_seed).permutation(count)[: config.limit_train])
