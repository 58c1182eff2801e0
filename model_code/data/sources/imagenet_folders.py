"""ImageNet's validation images, as published or as class folders; there is no training split.

    ILSVRC2012_img_val.tar            ILSVRC2012_val_00000001.JPEG and so on, without labels; with it
    ILSVRC2012_devkit_t12.tar.gz      the label of each number
    val/<wnid>/<image>              or <wnid>/<image>

ImageNet's class indices are the positions of the wnids (WordNet ids: `n01440764`) sorted by name.
"""

import re
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath

from model_code.data.checksums import check_md5
from model_code.data.sources.archives import Archive
from model_code.data.sources.class_folders import read_class_folders
from model_code.data.sources.images import (
    EncodedImage,
    EncodedSplit,
    ImageSource,
    is_image_name,
    name_some,
    order_classes,
    settle_problems,
)
from model_code.data.sources.layout import DATASETS, KnownDataset
from model_code.errors import DataError

PUBLISHED_FILES = ("ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")
_LABELS_FILE = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
_WNID_PATTERN = r"n[0-9]{8}"
_PUBLISHED_PATTERN = r"ILSVRC2012_val_([0-9]{8})\.JPEG"


def read_imagenet_validation(archives: Sequence[Archive], skip: bool = False) -> ImageSource:
    """List ImageNet's validation images, or those of some of its classes.

    Args:
        archives: Open; they must stay open until the images are read.
        skip: True to leave out what can be left out of all that is wrong.

    Returns:
        The source: one split, "validation"; classes are the wnids that were found, at least two, sorted by name.

    Raises:
        DataError: An image is in no folder named by a wnid and no devkit tells its label, other splits are there too,
            or what `read_class_folders` refuses.
        ChecksumError: The devkit is not the published one.
    """
    devkits = [archive for archive in archives if _LABELS_FILE in archive.files]
    if devkits:
        return _read_published([archive for archive in archives if archive not in devkits], devkits[0].path, skip)
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


def _read_published(archives: Sequence[Archive], devkit: Path, skip: bool) -> ImageSource:
    """List the images of the published archive, in the order of the class folders."""
    wnids, found = read_devkit(devkit), list[tuple[str, str, Archive, str]]()
    where = name_some([str(archive.path) for archive in archives])
    for archive in archives:
        for member in filter(is_image_name, archive.files):
            name = PurePosixPath(member).name
            number = re.fullmatch(_PUBLISHED_PATTERN, name)
            if number is None or not 1 <= int(number[1]) <= len(wnids):
                raise DataError(
                    f"{archive.path}: {member!r} is none of the images ILSVRC2012_val_00000001.JPEG to "
                    f"{len(wnids):08}.JPEG that {devkit.name} has labels for; give {PUBLISHED_FILES[0]} beside it"
                )
            found.append((wnids[int(number[1]) - 1], name, archive, member))
    if not found:
        raise DataError(f"{devkit} holds labels only; add its images with {PUBLISHED_FILES[0]} as another --from")
    skipped = settle_problems(where, [one for archive in archives for one in archive.problems], skip)
    classes = order_classes((wnid for wnid, *_ in found), None, where)
    label_by_wnid = {wnid: label for label, wnid in enumerate(classes)}
    found.sort(key=lambda one: one[:2])
    for (_, name, first, _), (_, next_name, second, _) in pairwise(found):
        if name == next_name:
            raise DataError(f"{name} is in {first.path} and again in {second.path}; give each image once")
    images = tuple(EncodedImage(archive, member, label_by_wnid[wnid]) for wnid, _, archive, member in found)
    names = ", ".join(archive.path.name for archive in archives)
    return ImageSource(
        f"{names} with the labels of {devkit.name}", classes, {"validation": EncodedSplit(images)}, skipped=skipped
    )


def read_devkit(path: Path) -> list[str]:
    """Return the wnid of each validation image, in the order of their numbers.

    Args:
        path: The published archive of the devkit.

    Raises:
        DataError: It is a folder.
        ChecksumError: It is not the published one.
    """
    import torch  # only now: most data sets need neither
    from torchvision.datasets import imagenet

    if path.is_dir():
        raise DataError(f"{path} is a folder; give {PUBLISHED_FILES[1]} itself, whose checksum is known")
    check_md5(path, imagenet.ARCHIVE_META["devkit"][1])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / PUBLISHED_FILES[1]).symlink_to(path.resolve())
        imagenet.parse_devkit_archive(folder)
        _, wnids = torch.load(Path(folder) / imagenet.META_FILE, weights_only=True)
    return list(wnids)


def _check_folders(archive: Archive) -> None:
    """Refuse images outside of wnid folders: their labels are unknown, or would not be ImageNet's."""
    for name in archive.files:
        if is_image_name(name) and not re.fullmatch(_WNID_PATTERN, PurePosixPath(name).parent.name):
            raise DataError(
                f"{archive.path}: {name!r} is in no folder named by a wnid such as n01440764; "
                + (
                    f"give {PUBLISHED_FILES[1]}, which holds its label, as another --from"
                    if re.fullmatch(_PUBLISHED_PATTERN, PurePosixPath(name).name)
                    else "give the val folder alone, with its images as <wnid>/<image>, or add it under another name"
                )
            )


# Networks for 224 pixels are evaluated on the centre of 224 * 8 / 7 = 256.
DATASETS["imagenet-val"] = KnownDataset(
    image_size=256,
    read=read_imagenet_validation,
    settles_problems=True,
    origin="https://image-net.org/download.php (an account is needed)",
    files=PUBLISHED_FILES,
)
