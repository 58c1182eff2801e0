"""Revisions of packed data sets: the file, label and pixels of every image, kept after the images are replaced.

    <cache>/<name>/revision-<checksum>.csv.gz    a line of JSON about the revision, then split,file,label,pixels

They are found by NAME, the newest, or NAME@CHECKSUM, of which a few digits are enough.
"""

import csv
import gzip
import io
import json
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model_code.data.cache import PackedDataset, check_dataset_name, read_manifest
from model_code.disk import write_atomically
from model_code.errors import DataError, UsageError

SHORT_CHECKSUM = 12
_PREFIX, _SUFFIX, _LEAKAGE_PREFIX = "revision-", ".csv.gz", "check-"
LEARNED = frozenset({"train", "unlabelled"})


class ImageEntry(NamedTuple):
    """One image of a revision, in the order in which its split is packed.

    Attributes:
        split: Name of its split.
        file: Its source as `data add --exclude` takes it: `photos/oak/1.jpg`, or `train/0` of packed pixels.
        label: Class name; empty without a label.
        pixels: First digits of the SHA-256 of the packed pixels.
    """

    split: str
    file: str
    label: str
    pixels: str


@dataclass(frozen=True)
class Revision:
    """A data set as it was packed at some time.

    Attributes:
        name: Name of the data set.
        checksum: Checksum of the content, hexadecimal.
        added_at: Time of packing, UTC, ISO 8601.
        image_size: Height and width, pixels.
        images: Every image.
    """

    name: str
    checksum: str
    added_at: str
    image_size: int
    images: tuple[ImageEntry, ...]

    def __str__(self) -> str:
        return name_revision(self.name, self.checksum)


@dataclass(frozen=True)
class Difference:
    """What makes one revision another; images are the same if their pixels are.

    Attributes:
        added: Images that the first one does not have.
        removed: Images that the second one does not have.
        relabelled: (before, after) of images with another label.
        moved: (before, after) of images in another split with the same label.
    """

    added: tuple[ImageEntry, ...]
    removed: tuple[ImageEntry, ...]
    relabelled: tuple[tuple[ImageEntry, ImageEntry], ...]
    moved: tuple[tuple[ImageEntry, ImageEntry], ...]


def name_revision(name: str, checksum: str) -> str:
    """Return how people refer to a revision: `photos@0c0d072decb5`."""
    return f"{name}@{checksum[:SHORT_CHECKSUM]}"


def write_revision(folder: Path, checksum: str, image_size: int, images: Iterable[ImageEntry]) -> Path:
    """Write what a data set holds into a folder, durably, and return the file."""
    text = io.StringIO()
    text.write(json.dumps({"checksum": checksum, "added_at": _now(), "image_size": image_size}) + "\n")
    csv.writer(text, lineterminator="\n").writerows(images)
    file = folder / f"{_PREFIX}{checksum[:SHORT_CHECKSUM]}{_SUFFIX}"
    write_atomically(file, gzip.compress(text.getvalue().encode(), mtime=0))
    return file


def read_revision(reference: str, cache_dir: Path) -> Revision:
    """Return a revision.

    Args:
        reference: `NAME` for what is packed now, or `NAME@CHECKSUM`.
        cache_dir: The folder of all packed data sets.

    Raises:
        UsageError: The name is not allowed.
        DataError: There is no such revision, or several begin so.
    """
    name, _, digits = reference.partition("@")
    check_dataset_name(name)
    digits = digits or read_manifest(name, cache_dir).checksum[:SHORT_CHECKSUM]
    kept = find_revisions(name, cache_dir)
    found = [file for checksum, file in kept.items() if checksum.startswith(digits[:SHORT_CHECKSUM])]
    if len(found) != 1:
        there = ", ".join(f"{name}@{checksum}" for checksum in kept) or "none"
        remedy = "give more digits" if found else f"revisions are kept by `darkroom data add {name}`"
        raise DataError(f"{len(found)} revisions of {name} begin with {digits!r}, there are: {there}; {remedy}")
    try:
        header, _, table = gzip.decompress(found[0].read_bytes()).decode().partition("\n")
        images = tuple(map(ImageEntry._make, csv.reader(io.StringIO(table, newline=""))))
        return Revision(name, **json.loads(header), images=images)
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise DataError(f"{found[0]} is damaged ({error}); remove it") from error


def list_revisions(name: str, cache_dir: Path) -> list[Revision]:
    """Return all kept revisions of a data set, the oldest first.

    Raises:
        DataError: One is damaged.
    """
    revisions = [read_revision(f"{name}@{checksum}", cache_dir) for checksum in find_revisions(name, cache_dir)]
    return sorted(revisions, key=lambda one: one.added_at)


def write_leakage(dataset: PackedDataset, cache_dir: Path, count: int) -> None:
    """Keep how many training images a check found to be near-duplicates of validation or test images."""
    file = cache_dir / dataset.name / f"{_LEAKAGE_PREFIX}{dataset.checksum[:SHORT_CHECKSUM]}.json"
    write_atomically(file, json.dumps({"copies": count}).encode())


def find_leakage(dataset: PackedDataset, cache_dir: Path) -> str:
    """Return how many images are in several splits, as a check found it, else by equal pixels; empty if none."""
    folder = cache_dir / dataset.name
    try:
        text = (folder / f"{_LEAKAGE_PREFIX}{dataset.checksum[:SHORT_CHECKSUM]}.json").read_bytes()
        count, kind = int(json.loads(text)["copies"]), "near-duplicates"
    except FileNotFoundError:
        pixels = _read_pixels(dataset, cache_dir)
        held_out = {one for split in pixels.keys() - LEARNED for one in pixels[split]}
        count, kind = sum(one in held_out for split in pixels.keys() & LEARNED for one in pixels[split]), "copies"
    if not count:
        return ""
    return (
        f"{count} training images are {kind} of validation or test images, so held-out accuracy is overestimated; "
        f"`darkroom data check {dataset.name}` lists them for --exclude"
    )


def find_divided_copies(dataset: PackedDataset, cache_dir: Path) -> str:
    """Return how many training images are copies of others, for a run that holds a share of them out; empty if none."""
    pixels = np.array(_read_pixels(dataset, cache_dir)["train"])
    count = len(pixels) - len(np.unique(pixels))
    if not count:
        return ""
    copied = "1 training image is a copy of another" if count == 1 else f"{count} training images are copies of others"
    return (
        f"{copied}, and a share of them is held out, so held-out accuracy may be overestimated; "
        f"`darkroom data check {dataset.name}` lists them for --exclude"
    )


def compare_revisions(before: Revision, after: Revision) -> Difference:
    """Return what was added, removed, relabelled and moved between splits.

    Raises:
        UsageError: They are packed at two sizes, so that no pixels are the same.
    """
    if before.image_size != after.image_size:
        raise UsageError(
            f"{before} has {before.image_size} pixels and {after} {after.image_size}; only revisions of one size can "
            "be compared"
        )
    old, new = _group(before.images), _group(after.images)
    added, removed, relabelled, moved = [], [], [], []
    for pixels in old.keys() | new.keys():
        # Of copies, a file is compared with itself; the others stand for each other.
        earlier = {one.file: one for one in old[pixels]}
        later = {one.file: one for one in new[pixels]}
        pairs = [(earlier.pop(file), later.pop(file)) for file in earlier.keys() & later.keys()]
        pairs = [pair for pair in pairs if _place(pair[0]) != _place(pair[1])]
        kept = Counter(map(_place, earlier.values())) & Counter(map(_place, later.values()))
        gone, come = _drop(earlier.values(), kept), _drop(later.values(), kept)
        removed += gone[len(come) :]
        added += come[len(gone) :]
        pairs += zip(gone, come, strict=False)
        relabelled += [pair for pair in pairs if pair[0].label != pair[1].label]
        moved += [pair for pair in pairs if pair[0].label == pair[1].label]
    return Difference(
        added=tuple(sorted(added)),
        removed=tuple(sorted(removed)),
        relabelled=tuple(sorted(relabelled)),
        moved=tuple(sorted(moved)),
    )


def find_revisions(name: str, cache_dir: Path) -> dict[str, Path]:
    """Return the file of each kept revision of a data set by the first digits of its checksum."""
    files = sorted((cache_dir / name).glob(f"{_PREFIX}*{_SUFFIX}"))
    return {file.name.removeprefix(_PREFIX).removesuffix(_SUFFIX): file for file in files}


def has_revision(name: str, checksum: str, cache_dir: Path) -> bool:
    """Return whether a revision is kept."""
    return checksum[:SHORT_CHECKSUM] in find_revisions(name, cache_dir)


def _read_pixels(dataset: PackedDataset, cache_dir: Path) -> defaultdict[str, "array[int]"]:
    """Return a number for the pixels of each image, by split; none where an earlier version has packed the images.

    Line by line: a training with its images on disk has no room for the names of all.
    """
    numbers: defaultdict[str, array[int]] = defaultdict(partial(array, "Q"))
    file = find_revisions(dataset.name, cache_dir).get(dataset.checksum[:SHORT_CHECKSUM])
    if file is None:
        return numbers
    try:
        with gzip.open(file, "rt", encoding="utf-8", newline="") as text:
            text.readline()
            for split, _, _, pixels in csv.reader(text):
                numbers[split].append(int(pixels[:16], 16))
    except (OSError, EOFError, ValueError, zlib.error, csv.Error):  # damaged: nothing is known
        numbers.clear()
    return numbers


def _group(images: Sequence[ImageEntry]) -> defaultdict[str, list[ImageEntry]]:
    grouped: defaultdict[str, list[ImageEntry]] = defaultdict(list)
    for image in sorted(images):
        grouped[image.pixels].append(image)
    return grouped


def _place(image: ImageEntry) -> tuple[str, str]:
    return image.split, image.label


def _drop(images: Iterable[ImageEntry], kept: Counter[tuple[str, str]]) -> list[ImageEntry]:
    left, rest = Counter(kept), []
    for image in images:
        if left[_place(image)]:
            left[_place(image)] -= 1
        else:
            rest.append(image)
    return rest


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
