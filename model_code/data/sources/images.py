"""Classes and splits of a source, each split as pixels or as encoded images still to be read.

Shape suffixes: N = images in the split, H = height, W = width, C = the three colour channels, red first.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from model_code.data.cache import BaseDataset, SkippedImage
from model_code.data.shards import ImageArray
from model_code.data.sources.archives import Archive, Problem
from model_code.data.tables import NO_LABELS
from model_code.errors import DataError, FaultyFilesError
from serving.bundle.image_structure import SUFFIXES

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
# Names that a message lists.
SOME = 5
UNREAD = "this file type is not read"
# Variation selectors, which choose between two forms of one character.
_VARIANTS = frozenset(map(chr, range(0xFE00, 0xFE10)))


@dataclass(frozen=True)
class EncodedImage:
    """One image file that has not been read yet.

    Attributes:
        archive: Archive that holds it.
        member: Its name there.
        label: Class index; -1 when it has none.
    """

    archive: Archive
    member: str
    label: int


@dataclass(frozen=True)
class EncodedSplit:
    """Images to read and decode.

    Attributes:
        images: In the order in which the split keeps them.
        left_out: SHA-256 of the pixels, once decoded to the packed size, of images that the split must not have.
    """

    images: tuple[EncodedImage, ...]
    left_out: frozenset[bytes] = frozenset()

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class PixelSplit:
    """Images that come as pixels.

    Attributes:
        images_NHWC: uint8 [N, H, W, 3].
        labels_N: Class indices, int64 [N].
        more: Further items, to be read after them.
    """

    images_NHWC: ImageArray
    labels_N: npt.NDArray[np.int64]
    more: EncodedSplit | None = None

    def __len__(self) -> int:
        return len(self.labels_N) + (0 if self.more is None else len(self.more))


@dataclass(frozen=True)
class ImageSource:
    """Everything that is packed into one data set.

    Attributes:
        description: Its origin, for people.
        classes: Names; a label is an index into them.
        splits: "train", "validation", "test" and "unlabelled" (all labels -1), those that there are; "train" is there
            unless the set is for evaluation only (`imagenet-val`). "test" may be unlabelled.
        ignored: Files whose type is not read.
        skipped: Parts of the source that were left out before it was read, and splits without some classes.
        base: The packed data set that this adds feedback to; None without any.
    """

    description: str
    classes: tuple[str, ...]
    splits: Mapping[str, EncodedSplit | PixelSplit]
    ignored: tuple[str, ...] = ()
    skipped: tuple[SkippedImage, ...] = ()
    base: BaseDataset | None = None

    @property
    def left_out(self) -> tuple[SkippedImage, ...]:
        """All that is left out before any image is read, and why."""
        return (*(SkippedImage(name=name, reason=UNREAD) for name in self.ignored), *self.skipped)


def name_image(image: EncodedImage) -> str:
    """Return the name of an image's file for people: `photos/oak/1.jpg`."""
    return f"{image.archive.path.name}/{image.member}"


def is_image_name(name: str) -> bool:
    """Return whether the file type in `name` is one that is read."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def list_ignored(archive: Archive, tables: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the files, for people, that are neither images nor one of the tables that are read."""
    others = (name for name in archive.files if not is_image_name(name) and name not in tables)
    return tuple(f"{archive.path.name}/{name}" for name in others)


def normalise_class_name(name: str) -> str:
    r"""Return the name of a class: composed (NFC), without blanks around it; bytes that are no UTF-8 as `\xe4`."""
    return unicodedata.normalize("NFC", escape_bytes(name)).strip()


def escape_bytes(name: str) -> str:
    r"""Return a file name in which bytes that are no UTF-8 are written as `\xe4`."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def find_twins(classes: Iterable[str]) -> list[Problem]:
    """Return the classes that cannot be told apart or stand for none.

    Names look alike that differ in case, width, characters that are not seen, or as 1 and 1.0 do.
    """
    classes = set(classes)
    alike: dict[str, list[str]] = defaultdict(list)
    for name in sorted(classes):
        folded = re.sub(r"^(\d+)\.0+$", r"\1", unicodedata.normalize("NFKC", name).casefold())
        visible = "".join(one for one in folded if unicodedata.category(one) != "Cf" and one not in _VARIANTS)
        alike[" ".join(visible.split())].append(name)
    kind = "classes whose names look alike (rename or merge them)"
    unclear = [Problem(kind, _show_apart(names), can_skip=False) for names in alike.values() if names[1:]]
    for name in sorted(classes):
        if name.casefold() in NO_LABELS:
            unclear.append(Problem("class whose name stands for no label in tables (rename it)", name, can_skip=False))
        if any(unicodedata.category(one) == "Cc" for one in name):
            broken = "class whose name has a line break or another control character (rename it)"
            unclear.append(Problem(broken, repr(name), can_skip=False))
    return unclear


def _show_apart(names: Sequence[str]) -> str:
    """Return names as they are written where that tells them apart, else with their characters escaped."""
    is_plain = all(unicodedata.category(one) != "Cf" and one not in _VARIANTS for name in names for one in name)
    is_wide = len({unicodedata.normalize("NFKC", name) for name in names}) < len(names)
    return " and ".join(map(repr if is_plain and not is_wide else ascii, names))


def settle_problems(
    where: str, problems: Sequence[Problem], skip: bool, ignored: Sequence[str] = ()
) -> tuple[SkippedImage, ...]:
    """Return what is left out because of problems.

    Args:
        where: The source, for the message.
        problems: All that were found.
        skip: True to leave out what can be left out.
        ignored: Files whose type is not read, for the table of all faults.

    Raises:
        DataError: There are problems that must be corrected; the message lists all of them.
    """
    must_correct = [one for one in problems if not (skip and one.can_skip)]
    if not must_correct:
        return tuple(SkippedImage(name=one.name, reason=one.kind) for one in problems)
    names_by_kind: dict[str, list[str]] = defaultdict(list)
    for one in must_correct:
        names_by_kind[one.kind].append(one.name)
    listed = "; ".join(f"{len(names)} x {kind}: {name_some(names)}" for kind, names in names_by_kind.items())
    skippable = sum(one.can_skip for one in must_correct)
    way = f", or leave out {skippable} of them with --skip" if skippable else ""
    raise FaultyFilesError(
        f"{escape_bytes(f'{where}: {listed}')}; correct them{way}",
        [*((one.name, one.kind) for one in problems), *((name, UNREAD) for name in ignored)],
    )


def list_learned(by_split: Mapping[str, Sequence[tuple[str, str | None]]]) -> set[str]:
    """Return the class names that count: those of the training images, or of all in a set for evaluation only.

    Args:
        by_split: Member and class name of each image by split; None without a label.
    """
    learned = [by_split["train"]] if "train" in by_split else by_split.values()
    return {label for images in learned for _, label in images if label}


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


def index_labels(
    archive: Archive, splits: Mapping[str, Iterable[tuple[str, str | None]]], classes: Sequence[str]
) -> dict[str, EncodedSplit]:
    """Return the images of splits.

    Args:
        archive: Archive that holds all.
        splits: Member and class name of each image by split; None without a label. Those of "unlabelled" are dropped.
        classes: Names in the order in which labels count them.
    """
    index = {name: position for position, name in enumerate(classes)}
    return {
        split: EncodedSplit(
            tuple(
                EncodedImage(archive, member, -1 if name is None or split == "unlabelled" else index[name])
                for member, name in images
            )
        )
        for split, images in splits.items()
    }


def name_some(names: Iterable[str], limit: int = SOME) -> str:
    """Return the first few names joined for a message, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
