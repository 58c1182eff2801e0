"""ImageNet's validation images: `val/<wnid>/<image>`, or `<wnid>/<image>`; there is no training split.

ImageNet's class indices are the positions of the wnids (WordNet ids: `n01440764`) sorted by name.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from model_code.data.sources.archives import Archive
from model_code.data.sources.class_folders import read_class_folders
from model_code.data.sources.images import ImageSource, is_image_name, name_some
from model_code.data.sources.layout import DATASETS, KnownDataset
from model_code.errors import DataError

_WNID_PATTERN = r"n[0-9]{8}"


def read_imagenet_validation(archives: Sequence[Archive], skip: bool = False) -> ImageSource:
    """List ImageNet's validation images, or those of some of its classes.

    Args:
        archives: Open; they must stay open until the images are read.
        skip: True to leave out what can be left out of all that is wrong.

    Returns:
        The source: one split, "validation"; classes are the wnids that were found, at least two, sorted by name.

    Raises:
        DataError: An image is in no folder named by a wnid, other splits are there too, or what `read_class_folders`
            refuses.
    """
    for archive in archives:
        _check_folders(archive)
    source = read_class_folders(archives, main_split="validation", skip=skip)
    where = name_some([str(archive.path) for archive in archives])
    others = sorted(set(source.splits) - {"validation"})
    if others:
        raise DataError(
            f"{where}: found {', '.join(others)} beside validation; only validation images are packed as "
            "imagenet-val: give the val folder alone, or add it under another name"
        )
    return source


def _check_folders(archive: Archive) -> None:
    """Refuse images outside of wnid folders: their labels are unknown, or would not be ImageNet's."""
    for name in archive.files:
        if is_image_name(name) and not re.fullmatch(_WNID_PATTERN, PurePosixPath(name).parent.name):
            raise DataError(
                f"{archive.path}: {name!r} is in no folder named by a wnid such as n01440764; give the val folder "
                "alone, with its images as <wnid>/<image>, or add it under another name"
            )


# Networks for 224 pixels are evaluated on the centre of 224 * 8 / 7 = 256.
DATASETS["imagenet-val"] = KnownDataset(
    image_size=256,
    read=read_imagenet_validation,
    settles_problems=True,
    origin="https://image-net.org/download.php (an account is needed; sort them into a folder for each wnid)",
)
