"""Which layout a path has: decided by the data set's name and what is in the path, not by an option."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from model_code.data.sources.archives import Archive, open_archive
from model_code.data.sources.cifar_archive import META_FILE, is_cifar_archive, read_cifar_archive
from model_code.data.sources.class_folders import read_class_folders
from model_code.data.sources.food11 import read_food11
from model_code.data.sources.imagenet_folders import read_imagenet_validation
from model_code.data.sources.images import CIFAR10_CLASSES, ImageSource, name_some, settle_problems
from model_code.data.sources.kaggle import find_labels_file, read_kaggle
from model_code.errors import DataError

_OFFICIAL_CLASSES = {"cifar10": CIFAR10_CLASSES}
_OWN_LAYOUTS = {"food11", "imagenet-val"}


def open_source(name: str, paths: Sequence[Path], stack: ExitStack, skip: bool = False) -> ImageSource:
    """Find out which layout the paths have and list their images.

    Args:
        name: What it is added as. `food11` and `imagenet-val` have layouts of their own, `cifar10` its official
            classes in their order; for any other name classes are sorted by name.
        paths: At least one folder, zip or tar. CIFAR-10's archive and Kaggle's layout cannot be several.
        stack: Keeps the archives open; close it when the images have been read.
        skip: True to leave out what can be left out of all that is wrong.

    Raises:
        DataError: Nothing there, damaged, or no layout that is known; ChecksumError for an altered CIFAR-10
            archive.
    """
    expected_classes = _OFFICIAL_CLASSES.get(name)
    if name not in _OWN_LAYOUTS and any(is_cifar_archive(path) for path in paths):
        return read_cifar_archive(_take_only(paths), expected_classes)
    archives = [stack.enter_context(open_archive(path)) for path in paths]
    if name == "imagenet-val":
        return read_imagenet_validation(archives, skip)
    tables = [(archive, table) for archive in archives if (table := find_labels_file(archive))]
    if name == "food11":
        read: Callable[[], ImageSource] = partial(read_food11, archives)
    elif any(_holds_cifar_batches(archive) for archive in archives):
        read = partial(read_cifar_archive, _take_only(paths), expected_classes)
    elif tables:
        _take_only(paths)
        read = partial(read_kaggle, *tables[0], expected_classes)
    else:
        return read_class_folders(archives, expected_classes, skip=skip)
    where = name_some([str(archive.path) for archive in archives])
    skipped = settle_problems(where, [one for archive in archives for one in archive.problems], skip)
    return replace(read(), skipped=skipped)


def _holds_cifar_batches(archive: Archive) -> bool:
    return any(PurePosixPath(name).name == META_FILE for name in archive.files)


def _take_only(paths: Sequence[Path]) -> Path:
    if len(paths) > 1:
        raise DataError(
            f"{name_some(map(str, paths))}: only class folders can be merged; give the CIFAR-10 archive "
            "or Kaggle's folder alone"
        )
    return paths[0]
