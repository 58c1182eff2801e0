"""What a source hands over: classes and splits, each split as pixels or as encoded pictures still to be read.

Shape suffixes: N = pictures in the split, H = height, W = width, C = the three colour channels, red first.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from model_code.data.cache import BaseDataset
from model_code.data.sources.archives import Archive
from model_code.errors import DataError

PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
)
CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


@dataclass(frozen=True)
class EncodedPicture:
    """One picture file that has not been read yet.

    Attributes:
        archive: Where it is.
        member: Its name there.
        label: Class index; -1 when it has none.
    """

    archive: Archive
    member: str
    label: int


@dataclass(frozen=True)
class EncodedSplit:
    """Pictures to read and decode.

    Attributes:
        pictures: In the order in which the split keeps them.
        left_out: SHA-256 of the pixels, once decoded to the packed size, of pictures that the split must not have.
    """

    pictures: tuple[EncodedPicture, ...]
    left_out: frozenset[bytes] = frozenset()

    def __len__(self) -> int:
        return len(self.pictures)


@dataclass(frozen=True)
class PixelSplit:
    """Pictures that come as pixels.

    Attributes:
        images_NHWC: uint8 [N, H, W, 3].
        labels_N: Class indices, int64 [N].
        more: What comes after them and has to be read.
    """

    images_NHWC: npt.NDArray[np.uint8]
    labels_N: npt.NDArray[np.int64]
    more: EncodedSplit | None = None

    def __len__(self) -> int:
        return len(self.labels_N) + (0 if self.more is None else len(self.more))


@dataclass(frozen=True)
class PictureSource:
    """Everything that is packed into one data set.

    Attributes:
        description: Where it comes from, for people.
        classes: Names; a label is an index into them.
        splits: "train", "validation", "test" and "unlabelled" (all labels -1), those that there are; "train" is there
            unless the set is for evaluation only (`imagenet-val`). "test" may be unlabelled.
        ignored: Files in class folders whose type is not read.
        base: The packed data set that this adds feedback to; None without any.
    """

    description: str
    classes: tuple[str, ...]
    splits: Mapping[str, EncodedSplit | PixelSplit]
    ignored: tuple[str, ...] = ()
    base: BaseDataset | None = None


def is_picture_name(name: str) -> bool:
    """Return whether the file type in `name` is one that is read."""
    return PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES


def order_classes(found: Iterable[str], expected: tuple[str, ...] | None, where: str) -> tuple[str, ...]:
    """Return the classes in the order in which labels count them.

    Args:
        found: Class names of the source, any order.
        expected: The official order when the data set has one; sorted by name otherwise.
        where: The source, for the message.

    Raises:
        DataError: The names are not those expected, or fewer than two.
    """
    names = sorted(set(found))
    if expected is None:
        if len(names) < 2:
            raise DataError(f"{where}: found {len(names)} class ({', '.join(names)}); at least 2 are needed")
        return tuple(names)
    if names != sorted(expected):
        missing, unknown = sorted(set(expected) - set(names)), sorted(set(names) - set(expected))
        parts = [f"missing {name_some(missing)}"] * bool(missing) + [f"unknown {name_some(unknown)}"] * bool(unknown)
        raise DataError(
            f"{where}: found {len(names)} classes with {' and '.join(parts)}; expected exactly the "
            f"{len(expected)} classes {', '.join(expected)}: rename the folders or add it under another name"
        )
    return expected


def name_some(names: Iterable[str], limit: int = 5) -> str:
    """Return the first few names joined for a message, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
