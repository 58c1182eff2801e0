"""Detection of a path's layout by the data set's name and what is in the path, not by an option."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import model_code.data.sources
from model_code.data.cache import SkippedImage
from model_code.data.sources.archives import Archive, open_archive
from model_code.data.sources.cifar_archive import is_cifar_archive, read_cifar_archive
from model_code.data.sources.class_folders import read_class_folders
from model_code.data.sources.images import ImageSource, name_some, settle_problems
from model_code.data.sources.layout import DATASETS, LAYOUTS, KnownDataset
from model_code.errors import DataError

# Every file of the folder registers what it reads.
for _file in iter_modules(model_code.data.sources.__path__, f"{model_code.data.sources.__name__}."):
    import_module(_file.name)


def get_known(name: str) -> KnownDataset:
    """Return what a data set's name says of it."""
    return DATASETS.get(name, KnownDataset())


def is_known(name: str) -> bool:
    """Whether a data set of this name is one that the package describes."""
    return name in DATASETS


def open_source(known: KnownDataset, paths: Sequence[Path], stack: ExitStack, skip: bool = False) -> ImageSource:
    """Find out which layout the paths have and list their images.

    Args:
        known: Facts by the data set's name: its classes and, if it has one, its own layout.
        paths: At least one folder, zip or tar; several must be class folders, or of a data set's own layout.
        stack: Keeps the archives open; close it when the images have been read.
        skip: True to leave out what can be left out of all that is wrong.

    Raises:
        DataError: Nothing there, damaged, or no layout that is known; ChecksumError for an altered CIFAR-10
            archive.
    """
    # Known by its name: to list the compressed archive takes as long as to read it.
    if known.read is None and any(is_cifar_archive(path) for path in paths):
        return read_cifar_archive(_take_only(paths), known.classes)
    archives = [stack.enter_context(open_archive(path)) for path in paths]
    hidden = [
        SkippedImage(name=f"{archive.path.name}/{name}", reason="hidden folder, which is not read")
        for archive in archives
        for name in sorted(archive.hidden)
    ]
    source = _read(known, paths, archives, skip)
    return replace(source, skipped=(*source.skipped, *hidden))


def _read(known: KnownDataset, paths: Sequence[Path], archives: Sequence[Archive], skip: bool) -> ImageSource:
    found = next(((archive, one) for one in LAYOUTS for archive in archives if one.is_found(archive)), None)
    if known.read is not None:
        read: Callable[[], ImageSource] = partial(known.read, archives, skip)
        if known.settles_problems:
            return read()
    elif found is not None:
        _take_only(paths)
        archive, layout = found
        read = partial(layout.read, archive, known.classes)
    else:
        return read_class_folders(archives, known.classes, skip=skip)
    where = name_some([str(archive.path) for archive in archives])
    skipped = settle_problems(where, [one for archive in archives for one in archive.problems], skip)
    source = read()
    return replace(source, skipped=(*skipped, *source.skipped))


def _take_only(paths: Sequence[Path]) -> Path:
    if len(paths) > 1:
        raise DataError(
            f"{name_some(map(str, paths))}: only class folders can be merged; give the CIFAR-10 archive "
            "or the folder of a label table alone"
        )
    return paths[0]
