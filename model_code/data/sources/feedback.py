"""Images with true labels that people gave, on top of a packed data set: more to train on, the rest as it was.

    <name>-with-feedback    what was packed as <name>, and <folder>/<class>/<image> among its training images

The data set itself stays as it is, so that whoever trains on it goes on with the same images.
"""

import hashlib
from pathlib import Path

from model_code.data.cache import BaseDataset, PackedDataset
from model_code.data.sources.archives import FolderArchive
from model_code.data.sources.images import (
    EncodedImage,
    EncodedSplit,
    ImageSource,
    PixelSplit,
    is_image_name,
    name_some,
    normalise_class_name,
    settle_problems,
)
from model_code.errors import DataError


class _FeedbackFolder(FolderArchive):
    """A folder whose images may move while it is read: people correct labels at any time."""

    def _walk(self, folder: Path, prefix: str, files: dict[str, None], folders: set[str]) -> None:
        try:
            super()._walk(folder, prefix, files, folders)
        except FileNotFoundError:
            if not prefix:
                raise

    def read(self, name: str) -> bytes:
        """Return the bytes of one file; none, which do not decode, where it is not there any more."""
        try:
            return super().read(name)
        except DataError:
            if (self.path / name).exists():
                raise
            return b""


def add_feedback_to(base: PackedDataset, folder: Path) -> ImageSource:
    """Return a packed data set with more training images; copies of those that it has are left out.

    What is held out of its training images for validation is not known yet: no copy of any can be learned from.

    Args:
        base: Packed data set.
        folder: Class folders; a class of `base` may be missing.

    Raises:
        DataError: The folder is missing, or holds something else than images in folders of the classes of `base`; or
            `base` has no training images with labels.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give one with a folder for each class that there is feedback for")
    train = base.splits.get("train")
    if train is None or not train.has_labels:
        raise DataError(f"{base.name} has no training images with labels, to which feedback could be added")
    archive = _FeedbackFolder(folder)
    settle_problems(str(folder), archive.problems, skip=False)
    images, ignored = [], []
    for member in archive.files:
        label = normalise_class_name(member.rpartition("/")[0])
        if not is_image_name(member):
            ignored.append(f"{folder.name}/{member}")
        elif label in base.classes:
            images.append(EncodedImage(archive, member, base.classes.index(label)))
        else:
            raise DataError(
                f"{folder} holds {member}, which is not an image in a folder of a class; give the folder that holds "
                f"those of {base.name}'s classes: {name_some(base.classes, 10)}"
            )
    if not images:
        raise DataError(f"{folder}: no images found; give a folder with a folder for each class")
    kept = {name: PixelSplit(split.images_NHWC, split.labels_N) for name, split in base.splits.items()}
    own = frozenset(
        hashlib.sha256(image_HWC.data).digest()
        for name, split in kept.items()
        if name != "unlabelled"
        for image_HWC in split.images_NHWC
    )
    more = EncodedSplit(tuple(images), own)
    return ImageSource(
        description=f"{base.source}, with feedback from {folder.name}",
        classes=base.classes,
        splits=kept | {"train": PixelSplit(train.images_NHWC, train.labels_N, more)},
        ignored=tuple(ignored),
        base=BaseDataset(checksum=base.checksum, train_count=len(train.labels_N)),
    )
