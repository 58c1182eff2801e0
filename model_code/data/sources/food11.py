"""Food-11: 16,643 images of food in eleven classes, in any of the three layouts in which it goes around.

    training/<label>_<id>.jpg               numbers in the file names; test images may have none: testing/0001.jpg
    training/labeled/<label>/<image>      numbered folders, unlabelled images beside them in training/unlabeled/,
                                            test images without a label: testing/<image> or testing/00/<image>
    training/<class>/<image>              folders named by class

Each has the same folders for validation and test; labels are 0 to 10. Which layout it is, each split shows itself.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from model_code.data.sources.archives import Archive
from model_code.data.sources.class_folders import SPLIT_FOLDERS, find_split, find_wrapper
from model_code.data.sources.images import (
    EncodedImage,
    EncodedSplit,
    ImageSource,
    is_image_name,
    name_some,
)
from model_code.data.sources.layout import DATASETS, KnownDataset
from model_code.errors import DataError

FOOD11_CLASSES = (
    "Bread",
    "Dairy product",
    "Dessert",
    "Egg",
    "Fried food",
    "Meat",
    "Noodles-Pasta",
    "Rice",
    "Seafood",
    "Soup",
    "Vegetable-Fruit",
)
LAYOUTS = (
    "training/<label>_<id>.jpg, training/{labeled/<label>,unlabeled}/<image> or training/<class>/<image>, "
    "each with validation/ and testing/ beside training/"
)
UNLABELLED = -1
_LABEL_BY_CLASS = {name.lower(): label for label, name in enumerate(FOOD11_CLASSES)}


@dataclass(frozen=True)
class _Found:
    """One image: its split, its name below the split's folder, its label, and how it says so."""

    split: str
    name: str
    form: str
    image: EncodedImage


def read_food11(archives: Sequence[Archive]) -> ImageSource:
    """List the images of Food-11; several sources are merged.

    Args:
        archives: Open; they must stay open until the images are read.

    Returns:
        The source: "train", and "validation", "test" and "unlabelled" where there are some, each ordered by label
        and then name, whatever order the archive has. "unlabelled" and a test split without labels have -1.

    Raises:
        DataError: No images, a layout that is none of the three or changes within a split, a label outside 0 to
            10, labelled images mixed with others, no training images, a class without any, or one name twice.
    """
    found = [one for archive in archives for one in _list_images(archive)]
    where = name_some([str(archive.path) for archive in archives])
    splits = sorted({one.split for one in found})
    if "train" not in splits:
        raise DataError(
            f"{where}: found only {', '.join(splits)}; labelled images in training/ are needed, layouts: {LAYOUTS}"
        )
    return ImageSource(
        description=f"Food-11 in {', '.join(archive.path.name for archive in archives)}",
        classes=FOOD11_CLASSES,
        splits={split: _order_split(where, split, [one for one in found if one.split == split]) for split in splits},
        ignored=tuple(
            f"{archive.path.name}/{name}"
            for archive in archives
            for name in archive.files
            if not is_image_name(name) and not SPLIT_FOLDERS.keys().isdisjoint(name.casefold().split("/")[:-1])
        ),
    )


def _list_images(archive: Archive) -> list[_Found]:
    images = [name.split("/") for name in archive.files if is_image_name(name)]
    if not images:
        raise DataError(f"{archive.path}: no images found; layouts of Food-11: {LAYOUTS}")
    wrapper = find_wrapper(images)
    for parts in images:
        if len(parts) < wrapper + 2:
            raise _fits_no_layout(f"{archive.path}/{'/'.join(parts)}")
    test_labels = {parts[-2] for parts in images if find_split(parts[wrapper]) == "test"}
    return [_place(archive, parts, wrapper, has_test_labels=test_labels != {"00"}) for parts in images]


def _place(archive: Archive, parts: Sequence[str], wrapper: int, *, has_test_labels: bool) -> _Found:
    """Tell an image's split and label from its path."""
    where = f"{archive.path}/{'/'.join(parts)}"
    split, below = find_split(parts[wrapper]), tuple(parts[wrapper + 1 :])
    if split is None:
        raise _fits_no_layout(where)
    label = UNLABELLED
    match [part.lower() for part in below[:-1]]:
        case []:
            number, separator, _ = below[-1].partition("_")
            form = "numbers in file names"
            if separator and _is_number(number):
                label = _check_label(number, where)
        case [("unlabeled" | "unlabelled"), *folders] if split == "train" and len(folders) <= 1:
            split, form = "unlabelled", "an unlabelled folder"
        case [("labeled" | "labelled"), number] if split == "train" and _is_number(number):
            label, form = _check_label(number, where), "numbered folders"
        case [number] if _is_number(number):
            form = "numbered folders"
            if split != "test" or has_test_labels:
                label = _check_label(number, where)
        case [name] if name in _LABEL_BY_CLASS:
            label, form = _LABEL_BY_CLASS[name], "class folders"
        case [name] if name not in {"labeled", "labelled", "unlabeled", "unlabelled"}:
            raise DataError(
                f"{where}: {below[0]!r} is not a class of Food-11, which are {', '.join(FOOD11_CLASSES)}; correct the "
                "folder's name, or add the images under another name"
            )
        case _:
            raise _fits_no_layout(where)
    return _Found(split, "/".join(below), form, EncodedImage(archive, "/".join(parts), label))


def _order_split(where: str, split: str, found: Iterable[_Found]) -> EncodedSplit:
    ordered = sorted(found, key=lambda one: (one.image.label, one.name))
    forms = sorted({one.form for one in ordered})
    if len(forms) > 1:
        raise DataError(f"{where}: {split} mixes {' and '.join(forms)}; give each split one layout: {LAYOUTS}")
    for one, other in pairwise(ordered):
        if one.name == other.name:
            raise DataError(f"{where}: {split} has {one.name} twice; give each image once")
    _check_labels(where, split, ordered)
    return EncodedSplit(tuple(one.image for one in ordered))


def _check_labels(where: str, split: str, ordered: Sequence[_Found]) -> None:
    """Refuse a split in which only some images have a label, or a class has none; test may be wholly unlabelled."""
    labels = {one.image.label for one in ordered}
    if split == "unlabelled" or (split == "test" and labels == {UNLABELLED}):
        return
    if UNLABELLED in labels:
        unlabelled = [one.name for one in ordered if one.image.label == UNLABELLED]
        raise DataError(
            f"{where}: {len(unlabelled)} of {len(ordered)} {split} images have no label ({name_some(unlabelled)}); "
            "name them <label>_<id>.jpg, or move those of training to training/unlabeled/"
        )
    missing = [name for label, name in enumerate(FOOD11_CLASSES) if label not in labels]
    if missing:
        raise DataError(
            f"{where}: {split} has no images of {name_some(missing)}; every class, labels 0 to 10, needs some"
        )


def _check_label(number: str, where: str) -> int:
    label = int(number)
    if label >= len(FOOD11_CLASSES):
        raise DataError(
            f"{where}: label {number} is not one of Food-11, 0 to {len(FOOD11_CLASSES) - 1}; correct its name"
        )
    return label


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _fits_no_layout(where: str) -> DataError:
    return DataError(f"{where} fits no layout of Food-11: {LAYOUTS}; move or remove it")


DATASETS["food11"] = KnownDataset(
    image_size=256,
    read=lambda archives, _: read_food11(archives),
    origin="https://www.epfl.ch/labs/mmspg/downloads/food-image-datasets/",
)
