"""The packed cache: every data set as arrays on disk, ready to train on.

    <cache>/<name>/manifest.json            what is there and which folder holds it
    <cache>/<name>/<version>/<split>-images-00000.npy, …, <split>-labels.npy

Images are in shards of about 64 MB (`shards.py`); earlier versions wrote one <split>-images.npy, which is still read.
Replacing manifest.json by a rename is the moment at which a new version counts: before it the old one is
read, after it the new one, and a process killed at any time leaves one of the two. `packing.py` writes it.

Shape suffixes: N = images in the split, H = height, W = width, C = the three colour channels, red first.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_code.errors import DataError, UsageError
from model_code.hints import suggest

if TYPE_CHECKING:  # `darkroom recipes` does not wait for numpy
    import numpy as np
    import numpy.typing as npt

    from model_code.data.shards import ShardedImages

MANIFEST_FILE = "manifest.json"
# 1: one file of images for each split; 2: shards.
FORMAT_VERSION = 2
# NAME-with-feedback is NAME with more training images (`sources/feedback.py`).
FEEDBACK_SUFFIX = "-with-feedback"
_NAME_PATTERN = r"[a-z0-9][a-z0-9_-]*"
_PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SkippedImage(_FrozenModel):
    """An image or a file that was left out, and why.

    Attributes:
        name: Its name.
        reason: Why.
        is_note: True for what to know of images that were not left out.
    """

    name: str
    reason: str
    is_note: bool = False


class ShardManifest(_FrozenModel):
    """A file of consecutive images of a split; `crc32` has 8 hexadecimal digits for each block."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*\.npy$")]
    count: Annotated[int, Field(ge=1)]
    size_bytes: int
    crc32: Annotated[str, Field(pattern=r"^[0-9a-f]*$")]


class SplitManifest(_FrozenModel):
    """One split on disk; `count_per_class` leaves out images without a label.

    `shards` are in order, `block_rows` the images of a block; both are missing in the manifests of earlier versions.
    """

    count: Annotated[int, Field(ge=1)]
    count_per_class: Mapping[str, int]
    images_bytes: int
    labels_bytes: int
    shards: tuple[ShardManifest, ...] = ()
    block_rows: Annotated[int, Field(ge=1)] | None = None


class BaseDataset(_FrozenModel):
    """The data set that feedback was added to; the first `train_count` of the training images are its own."""

    checksum: str
    train_count: Annotated[int, Field(ge=1)]


class CacheManifest(_FrozenModel):
    """What manifest.json says about one packed data set; `splits` need not have "train" (see `PackedDataset`).

    `source_paths` are absolute; empty for what was drawn or downloaded, and in the manifests of earlier versions.
    `base` is there where feedback was added.
    """

    format_version: Literal[1, 2]
    name: str
    classes: tuple[str, ...]
    image_size: Annotated[int, Field(ge=1)]
    folder: _PlainName
    splits: Mapping[_PlainName, SplitManifest]
    checksum: str
    source: str
    source_fingerprint: str
    source_paths: tuple[str, ...] = ()
    base: BaseDataset | None = None
    skipped: tuple[SkippedImage, ...]


@dataclass(frozen=True)
class PackedSplit:
    """One split, in the order in which it was packed.

    Attributes:
        images_NHWC: uint8 [N, H, W, 3]; memory-mapped and read-only where they are one file, else its `shards`.
        labels_N: Class indices; -1 = unlabelled.
        shards: Files of the same images; None for images that are not in the cache.
    """

    images_NHWC: "npt.NDArray[np.uint8] | ShardedImages"
    labels_N: "npt.NDArray[np.int64]"
    shards: "ShardedImages | None" = None

    @property
    def has_labels(self) -> bool:
        """Whether any image has a label."""
        return bool(self.labels_N.max() >= 0)


@dataclass(frozen=True)
class PackedDataset:
    """A data set in the cache.

    Attributes:
        name: Name of the data set.
        classes: Class names; a label is an index into them.
        image_size: Height and width, pixels.
        splits: "train", "validation", "test" and "unlabelled" (all labels -1), those that the source has. A set for
            evaluation only (`imagenet-val`) has no "train"; "test" may be unlabelled.
        checksum: SHA-256 over classes, sizes, pixels and labels of all splits, hexadecimal.
        source: Its origin, for people.
        path: Its folder in the cache.
        base: Data set that feedback was added to; None without any.
    """

    name: str
    classes: tuple[str, ...]
    image_size: int
    splits: Mapping[str, PackedSplit]
    checksum: str
    source: str
    path: Path
    base: BaseDataset | None = None

    def count_feedback(self) -> int:
        """Return how many training images, the last, are feedback."""
        return 0 if self.base is None else len(self.splits["train"].labels_N) - self.base.train_count

    def verify(self) -> None:
        """Compare all images with their checksums; those that an earlier version packed have none.

        Raises:
            DataError: A file has other bytes than were packed; the message names it.
        """
        for split in self.splits.values():
            if split.shards is not None:
                split.shards.verify()


@dataclass(frozen=True)
class DatasetSummary:
    """One line of `darkroom data list`.

    Attributes:
        name: Name of the data set.
        counts: Images per split.
        classes: Class names in label order.
        image_size: Height and width, pixels.
        size_bytes: Size on disk.
        checksum: That of the content, hexadecimal.
        source: Its origin, for people.
        damage: Description of its damage; None when it can be used. A damaged one may have nothing but its name.
    """

    name: str
    counts: Mapping[str, int]
    classes: tuple[str, ...]
    image_size: int
    size_bytes: int
    checksum: str
    source: str
    damage: str | None = None


def check_dataset_name(name: str) -> None:
    """Refuse names that are no plain file name.

    Raises:
        UsageError: The name has other characters than allowed.
    """
    if not re.fullmatch(_NAME_PATTERN, name):
        raise UsageError(
            f"data set name {name!r} is not allowed; use a-z, 0-9, _ and -, beginning with a letter or digit"
        )


def find_lock(name: str, cache_dir: Path) -> Path:
    """Return the lock that is held while the files of a data set are replaced."""
    return cache_dir / ".locks" / f"{name}.lock"


def open_dataset(name: str, cache_dir: Path, remedy: str | None = None) -> PackedDataset:
    """Map a packed data set into memory; sizes and headers are checked, pixels are not read.

    Args:
        name: Name of the data set: `cifar10`.
        cache_dir: The folder of all packed data sets.
        remedy: What to do about files that are damaged; None to add the data set again.

    Raises:
        DataError: It was never added, or is damaged; the message gives the command that adds it.
        UsageError: The name is not allowed.
    """
    check_dataset_name(name)
    manifest = read_manifest(name, cache_dir)
    while True:
        try:
            return _map_dataset(manifest, cache_dir, remedy)
        except DataError:
            # Another process may have replaced the version between the manifest and its arrays.
            newer = read_manifest(name, cache_dir)
            if newer.folder == manifest.folder:
                raise
            manifest = newer


def read_manifest(name: str, cache_dir: Path) -> CacheManifest:
    """Read what the cache says about a data set.

    Raises:
        DataError: It was never added, or its manifest is damaged.
        UsageError: The name is not allowed.
    """
    check_dataset_name(name)
    path = cache_dir / name / MANIFEST_FILE
    try:
        manifest = CacheManifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        from model_code.data.sources.detect import is_known  # only now: what it imports imports this file
        from model_code.data.sources.images import name_some

        packed = [] if is_known(name) else list_names(cache_dir)
        hint = suggest(name, known=packed, least_ratio=0.8)
        there = f", where {name_some(packed)} {'is' if len(packed) == 1 else 'are'} packed" if packed else ""
        raise DataError(
            f"data set {name!r} is not in {cache_dir}{there}; {hint}add it with {format_remedy(name)}"
        ) from error
    except (OSError, ValidationError) as error:
        raise _damaged(name, f"{path} cannot be read") from error
    if manifest.name != name:
        raise _damaged(name, f"{path} is that of {manifest.name!r}")
    return manifest


def is_added(name: str, cache_dir: Path) -> bool:
    """Whether a data set of that name was ever added, damaged or not."""
    return (cache_dir / name / MANIFEST_FILE).exists()


def is_dataset_taken(dataset: str, pattern: str) -> bool:
    """Whether a shell pattern takes a data set, with feedback or without."""
    return fnmatchcase(dataset.removesuffix(FEEDBACK_SUFFIX), pattern)


def list_datasets(cache_dir: Path) -> list[DatasetSummary]:
    """Return what is in the cache, sorted by name; damaged data sets are listed with their damage."""
    return [_summarise(name, cache_dir) for name in list_names(cache_dir)]


def list_names(cache_dir: Path) -> list[str]:
    """Return the names of the data sets in the cache, sorted; damaged ones too."""
    names = sorted(path.parent.name for path in cache_dir.glob(f"*/{MANIFEST_FILE}"))
    return [name for name in names if re.fullmatch(_NAME_PATTERN, name)]


def format_remedy(name: str) -> str:
    """Return the command that adds a data set."""
    from model_code.data.sources.detect import get_known  # only now: what it imports imports this file

    known = get_known(name)
    if known.draw is not None:
        return f"`darkroom data add {name}`"
    origin = f"; the images are at {known.origin}" if known.origin else ""
    sources = " ".join(f"--from {file}" for file in known.files or ("PATH",))
    return f"`darkroom data add {name} {sources}{' | --download' if known.fetch else ''}`{origin}"


def compute_checksum(
    classes: tuple[str, ...],
    image_size: int,
    splits: "Iterable[tuple[str, npt.NDArray[np.int64], str]]",
) -> str:
    """Return the checksum of a data set's content, independent of where it came from.

    Args:
        classes: Class names in label order.
        image_size: Height and width, pixels.
        splits: (name, labels_N, SHA-256 of the pixels as they lie in memory) of every split, any order.

    Returns:
        SHA-256, hexadecimal.
    """
    content = {
        "classes": classes,
        "image_size": image_size,
        "splits": {
            split: {
                "count": len(labels_N),
                "labels_sha256": hashlib.sha256(labels_N.astype("<i8").tobytes()).hexdigest(),
                "pixels_sha256": pixels_sha256,
            }
            for split, labels_N, pixels_sha256 in splits
        },
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _map_dataset(manifest: CacheManifest, cache_dir: Path, remedy: str | None) -> PackedDataset:
    path = cache_dir / manifest.name / manifest.folder
    damaged = partial(_damaged, manifest.name, remedy=remedy)
    splits = {split: _map_split(manifest, split, path, damaged) for split in manifest.splits}
    return PackedDataset(
        name=manifest.name,
        classes=manifest.classes,
        image_size=manifest.image_size,
        splits=splits,
        checksum=manifest.checksum,
        source=manifest.source,
        path=path,
        base=manifest.base,
    )


def _map_split(manifest: CacheManifest, split: str, path: Path, damaged: Callable[[str], DataError]) -> PackedSplit:
    import numpy as np

    from model_code.data.shards import ShardedImages, ShardFile, count_block_rows

    expected, size = manifest.splits[split], manifest.image_size
    files = [ShardFile(path / one.file, one.count, one.size_bytes, one.crc32) for one in expected.shards]
    files = files or [ShardFile(path / f"{split}-images.npy", expected.count, expected.images_bytes, "")]
    block_rows = expected.block_rows or count_block_rows(size)
    shards = ShardedImages(files, size, block_rows, damaged)
    images_NHWC: npt.NDArray[np.uint8] | ShardedImages = shards
    if len(files) == 1:
        images_NHWC = _map_array(damaged, files[0].path, expected.images_bytes)
    labels_N: npt.NDArray[np.int64] = _map_array(damaged, path / f"{split}-labels.npy", expected.labels_bytes)
    if images_NHWC.shape != (expected.count, size, size, 3) or images_NHWC.dtype != np.uint8:
        raise damaged(f"{split} images are {images_NHWC.dtype} {images_NHWC.shape}")
    if labels_N.shape != (expected.count,) or labels_N.dtype != np.int64:
        raise damaged(f"{split} labels are {labels_N.dtype} {labels_N.shape}")
    if labels_N.min() < -1 or labels_N.max() >= len(manifest.classes):
        raise damaged(f"{split} labels run from {labels_N.min()} to {labels_N.max()}")
    return PackedSplit(images_NHWC, labels_N, shards)


def _map_array(damaged: Callable[[str], DataError], path: Path, expected_bytes: int) -> "npt.NDArray[Any]":
    import numpy as np

    try:
        found_bytes = path.stat().st_size
        if found_bytes != expected_bytes:
            raise damaged(f"{path} has {found_bytes} bytes, {expected_bytes} were written")
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError, EOFError) as error:
        raise damaged(f"{path}: {error}") from error


def _damaged(name: str, why: str, remedy: str | None = None) -> DataError:
    return DataError(f"data set {name!r} is damaged ({why}); {remedy or f'add it again with {format_remedy(name)}'}")


def _summarise(name: str, cache_dir: Path) -> DatasetSummary:
    try:
        manifest = read_manifest(name, cache_dir)
    except DataError as error:
        return DatasetSummary(name, {}, (), 0, 0, "", "", damage=str(error))
    damage = None
    try:
        open_dataset(name, cache_dir)
    except DataError as error:
        damage = str(error)
    return DatasetSummary(
        name=name,
        counts={split: content.count for split, content in manifest.splits.items()},
        classes=manifest.classes,
        image_size=manifest.image_size,
        size_bytes=sum(content.images_bytes + content.labels_bytes for content in manifest.splits.values()),
        checksum=manifest.checksum,
        source=manifest.source,
        damage=damage,
    )
