"""Pictures with true labels that people gave, on top of a packed data set: more to train on, the rest as it was.

    <name>-with-feedback    what was packed as <name>, and <folder>/<class>/<picture> among its training pictures

The data set itself stays as it is, so that whoever trains on it goes on with the same pictures.
"""

import hashlib
from pathlib import Path

from model_code.data.cache import PackedDataset
from model_code.data.sources.archives import FolderArchive
from model_code.data.sources.pictures import (
    EncodedPicture,
    EncodedSplit,
    PictureSource,
    PixelSplit,
    is_picture_name,
    name_some,
)
from model_code.errors import DataError

FEEDBACK_SUFFIX = "-with-feedback"


class _FeedbackFolder(FolderArchive):
    """A folder whose pictures may move while it is read: people correct labels at any time."""

    def read(self, name: str) -> bytes:
        """Return the bytes of one file; none, which do not decode, where it is not there any more."""
        try:
            return super().read(name)
        except DataError:
            if (self.path / name).exists():
                raise
            return b""


def add_feedback_to(base: PackedDataset, folder: Path) -> PictureSource:
    """Return a packed data set with more training pictures; those that it is validated or tested on are left out.

    Args:
        base: What is packed.
        folder: Class folders; a class of `base` may be missing.

    Raises:
        DataError: The folder is missing, or holds something else than pictures in folders of the classes of `base`; or
            `base` has no training pictures with labels.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give one with a folder for each class that there is feedback for")
    train = base.splits.get("train")
    if train is None or not train.has_labels:
        raise DataError(f"{base.name} has no training pictures with labels, to which feedback could be added")
    archive = _FeedbackFolder(folder)
    pictures, ignored = [], []
    for member in archive.files:
        label, _, file = member.rpartition("/")
        if label not in base.classes:
            raise DataError(
                f"{folder / member} is not in a folder of one of {base.name}'s classes: {name_some(base.classes, 10)}"
            )
        if is_picture_name(file):
            pictures.append(EncodedPicture(archive, member, base.classes.index(label)))
        else:
            ignored.append(f"{folder.name}/{member}")
    if not pictures:
        raise DataError(f"{folder}: no pictures found; give a folder with a folder for each class")
    kept = {name: PixelSplit(split.images_NHWC, split.labels_N) for name, split in base.splits.items()}
    held_out = frozenset(
        hashlib.sha256(image_HWC).digest()
        for name in ("validation", "test")
        if name in kept
        for image_HWC in kept[name].images_NHWC
    )
    more = EncodedSplit(tuple(pictures), held_out)
    return PictureSource(
        description=f"{base.source}, with feedback from {folder.name}",
        classes=base.classes,
        splits=kept | {"train": PixelSplit(train.images_NHWC, train.labels_N, more)},
        ignored=tuple(ignored),
    )
