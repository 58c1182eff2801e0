"""Class folders: `{train,test,val}/<class>/<picture>`, or `<class>/<picture>`, taken for train.

They may be folders, zips or tars, several at once, and may sit in one wrapping folder. Splits may have their other
usual names too.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from model_code.data.sources.archives import Archive
from model_code.data.sources.pictures import (
    EncodedPicture,
    EncodedSplit,
    PictureSource,
    is_picture_name,
    name_some,
    order_classes,
)
from model_code.errors import DataError

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing", "evaluation"), "test"),
}
LAYOUTS = (
    "{train,test,val}/<class>/<picture>, <class>/<picture>, Kaggle's trainImages/<id>.png + trainLabels.csv, "
    "or cifar-10-python.tar.gz"
)
# (split, class) -> (file name, archive, member)
_Found = dict[tuple[str, str], list[tuple[str, Archive, str]]]


def read_class_folders(
    archives: Sequence[Archive], expected_classes: tuple[str, ...] | None = None, main_split: str = "train"
) -> PictureSource:
    """List the pictures of class folders; several sources are merged.

    Args:
        archives: Open; they must stay open until the pictures are read.
        expected_classes: Official order; None sorts by name.
        main_split: The one that must be there, whose classes count; class folders outside of any split are it.

    Returns:
        The source, ordered by class and then file name, whatever order the archive has.

    Raises:
        DataError: No pictures, another layout, no pictures of `main_split`, an empty class, classes that differ
            between splits or from those expected, or one file name twice.
    """
    found: _Found = defaultdict(list)
    empty: set[tuple[str, str, str]] = set()
    ignored: list[str] = []
    for archive in archives:
        _collect(archive, main_split, found, empty, ignored)
    where = name_some([str(archive.path) for archive in archives])
    splits = sorted({split for split, _ in found})
    if main_split not in splits:
        raise DataError(f"{where}: found only {', '.join(splits)}; a {main_split} folder with class folders is needed")
    for split, class_name, folder in sorted(empty):
        if (split, class_name) not in found:
            raise DataError(f"{folder}: class {class_name!r} has no pictures; add some or remove the folder")
    classes = order_classes([name for split, name in found if split == main_split], expected_classes, where)
    for split in splits:
        found_classes = {name for other, name in found if other == split}
        _check_same_classes(where, split, main_split, classes, found_classes)
    return PictureSource(
        description=f"class folders in {', '.join(archive.path.name for archive in archives)}",
        classes=classes,
        splits={split: _order_pictures(split, classes, found) for split in splits},
        ignored=tuple(ignored),
    )


def _collect(
    archive: Archive, main_split: str, found: _Found, empty: set[tuple[str, str, str]], ignored: list[str]
) -> None:
    pictures = [name.split("/") for name in archive.files if is_picture_name(name)]
    if not pictures:
        raise DataError(f"{archive.path}: no pictures found; allowed layouts: {LAYOUTS}")
    wrapper = find_wrapper(pictures)
    has_splits = pictures[0][wrapper] in SPLIT_FOLDERS and len(pictures[0]) > wrapper + 2
    depth = wrapper + (3 if has_splits else 2)
    for parts in pictures:
        if len(parts) != depth or (has_splits and parts[wrapper] not in SPLIT_FOLDERS):
            raise DataError(f"{archive.path}: {'/'.join(parts)!r} fits no known layout; allowed: {LAYOUTS}")
        split = SPLIT_FOLDERS[parts[wrapper]] if has_splits else main_split
        found[split, parts[-2]].append((parts[-1], archive, "/".join(parts)))
    for folder in archive.folders:
        parts = folder.split("/")
        if len(parts) == depth - 1 and (not has_splits or parts[wrapper] in SPLIT_FOLDERS):
            split = SPLIT_FOLDERS[parts[wrapper]] if has_splits else main_split
            empty.add((split, parts[-1], f"{archive.path}/{folder}"))
    ignored.extend(
        f"{archive.path.name}/{name}"
        for name in archive.files
        if name.count("/") == depth - 1 and not is_picture_name(name)
    )


def find_wrapper(pictures: Sequence[Sequence[str]]) -> int:
    """Return how many folders wrap the layout: every picture is below them, and one more folder still follows."""
    wrapper = 0
    while (
        all(len(parts) > wrapper + 2 for parts in pictures)
        and pictures[0][wrapper] not in SPLIT_FOLDERS
        and len({parts[wrapper] for parts in pictures}) == 1
    ):
        wrapper += 1
    return wrapper


def _check_same_classes(where: str, split: str, main_split: str, classes: tuple[str, ...], found: set[str]) -> None:
    missing, unknown = sorted(set(classes) - found), sorted(found - set(classes))
    if missing or unknown:
        parts = [f"without {name_some(missing)}"] * bool(missing) + [f"with {name_some(unknown)}"] * bool(unknown)
        raise DataError(
            f"{where}: {split} has other classes than {main_split} ({' and '.join(parts)}); every split needs the same "
            "ones"
        )


def _order_pictures(split: str, classes: tuple[str, ...], found: _Found) -> EncodedSplit:
    ordered: list[EncodedPicture] = []
    for label, class_name in enumerate(classes):
        entries = sorted(found[split, class_name], key=lambda entry: entry[0])
        for (name, archive, _), (next_name, next_archive, _) in pairwise(entries):
            if name == next_name:
                raise DataError(
                    f"{split}/{class_name}/{name} is in {archive.path} and again in {next_archive.path}; "
                    "give each picture once"
                )
        ordered.extend(EncodedPicture(archive, member, label) for _, archive, member in entries)
    return EncodedSplit(tuple(ordered))
