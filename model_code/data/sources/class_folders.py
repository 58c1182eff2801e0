"""Class folders: `{train,test,val}/<class>/<image>`, or `<class>/<image>`, taken for train.

They may be folders, zips or tars, several at once, and may sit in one wrapping folder. Splits may have their other
usual names too, in any case, also as a part (`seg_train`), and twice (`seg_train/seg_train`). Several sources without
split folders may be splits by their own names (`train.zip`, `test.zip`). Folders inside a class folder belong to its
class. A test folder without class folders is an unlabelled test split, a folder `unlabelled` or `pred` a split for
pretraining.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from model_code.data.cache import SkippedImage
from model_code.data.sources.archives import Archive, Problem
from model_code.data.sources.images import (
    EncodedImage,
    EncodedSplit,
    ImageSource,
    find_twins,
    is_image_name,
    list_ignored,
    name_some,
    normalise_class_name,
    order_classes,
    settle_problems,
)
from model_code.data.sources.layout import LAYOUTS
from model_code.errors import DataError

# Hugging Face's words for splits, and each with `set`.
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "valset", "devset"), "validation"),
    **dict.fromkeys(("test", "testing", "evaluation", "eval", "testset"), "test"),
    **dict.fromkeys(("unlabelled", "unlabeled", "pred"), "unlabelled"),
}
# Without class folders in them they may be classes beside others: no class is called test.
_ALSO_CLASSES = {"valid", "dev", "eval"}
SHOWN = "{train,test,val}/<class>/<image>, <class>/<image>"
_UNLABELLED = ""
_NO_CLASS = "image outside of any class folder (expected <class>/<image>)"
_NO_SPLIT = "image outside of the train, validation and test folders"
_NO_LABELS = "image of a split without class folders (expected <split>/<class>/<image>)"
_DEEP = "class folder with images in its subfolders only (give the folder whose subfolders are the classes)"
_REPEATED = "image of the same name, split and class as one of an earlier source (rename it, or give the image once)"
_EMPTY = "class folder without images"


@dataclass
class _Scan:
    """What was found in all sources.

    Attributes:
        main_split: The split that class folders outside of any split are.
        found: (file name, archive, member) of each split and class; class "" = without a label.
        empty: (class, folder) of folders of the main split without images.
        ignored: Files whose type is not read.
        problems: Members that fit no layout.
    """

    main_split: str
    found: dict[tuple[str, str], list[tuple[str, Archive, str]]] = field(default_factory=lambda: defaultdict(list))
    empty: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_class_folders(
    archives: Sequence[Archive],
    expected_classes: tuple[str, ...] | None = None,
    main_split: str = "train",
    skip: bool = False,
) -> ImageSource:
    """List the images of class folders; several sources are merged.

    Args:
        archives: Open; they must stay open until the images are read.
        expected_classes: Official order; None sorts by name.
        main_split: The one that must be there, whose classes count; class folders outside of any split are it.
        skip: True to leave out what can be left out of all that is wrong.

    Returns:
        The source, ordered by class and then file name, whatever order the archive has. A split may lack a class.

    Raises:
        DataError: No images, no images of `main_split`, classes that differ from those expected, one file name
            twice, or a list of all else that is wrong: files that cannot be read or fit no layout, empty classes,
            classes that the main split does not have, names that look alike.
    """
    scan = _Scan(main_split)
    where = name_some([str(archive.path) for archive in archives])
    named = [_name_split(archive) for archive in archives]
    are_splits = len(set(filter(None, named))) > 1
    for archive, split in zip(archives, named, strict=True):
        scan.problems += archive.problems
        _collect(archive, scan, (split if are_splits else None) or main_split)
    splits = sorted({split for split, _ in scan.found})
    main_classes = {name for split, name in scan.found if split == main_split and name != _UNLABELLED}
    if splits and not main_classes and not scan.problems:
        raise DataError(f"{where}: found only {', '.join(splits)}; a {main_split} folder with class folders is needed")
    scan.problems += [Problem(_EMPTY, folder) for name, folder in scan.empty if name not in main_classes]
    scan.problems += find_twins(name for _, name in scan.found if name != _UNLABELLED)
    labelled = {split for split, name in scan.found if name != _UNLABELLED}
    for split, name in sorted(scan.found):
        may_lack_labels = split in ("test", "unlabelled") and split not in labelled
        if name not in main_classes and not (may_lack_labels and name == _UNLABELLED):
            outside = _NO_CLASS if split in labelled else _NO_LABELS
            kind = outside if name == _UNLABELLED else f"class of {split} that {main_split} does not have"
            files = scan.found.pop((split, name))
            scan.problems += [Problem(kind, f"{archive.path.name}/{member}") for _, archive, member in files]
    scan.problems += _find_repeated(scan)
    skipped = settle_problems(where, scan.problems, skip, scan.ignored)
    classes = order_classes(main_classes, expected_classes, where)
    splits = sorted({split for split, _ in scan.found})
    return ImageSource(
        description=f"class folders in {', '.join(archive.path.name for archive in archives)}",
        classes=classes,
        splits={split: _order_images(split, classes, scan) for split in splits},
        ignored=tuple(scan.ignored),
        skipped=skipped + tuple(_tell_missing(scan, splits, classes)),
    )


def find_wrapper(images: Sequence[Sequence[str]]) -> int:
    """Return how many folders wrap the layout: most images are below them, and one more folder still follows.

    A few images may lie beside a wrapping folder, or in it.
    """
    wrapper = 0
    while True:
        tops = {parts[wrapper] for parts in images if len(parts) > wrapper + 1}
        nested = sum(len(parts) > wrapper + 2 for parts in images)
        if len(tops) != 1 or any(map(find_split, tops)) or 2 * nested <= len(images):
            return wrapper
        wrapper += 1


def find_split(folder: str) -> str | None:
    """Return the split that a folder's whole name stands for, in any case."""
    return SPLIT_FOLDERS.get(folder.casefold())


def has_class_folders(archive: Archive) -> bool:
    """Return whether images lie in two folders or more, as those of classes do; those at the top are in none."""
    folders = {PurePosixPath(name).parent for name in archive.files if is_image_name(name)}
    return len(folders - {PurePosixPath()}) > 1


def _name_split(archive: Archive) -> str | None:
    """Return the split that a source's name, or that of a folder around all its images, stands for."""
    images = [name.split("/") for name in archive.files if is_image_name(name)]
    wrapper = max(images, key=len)[: find_wrapper(images)] if images else []
    found = {split for name in (archive.path.stem, *wrapper) if (split := find_split_word(name))}
    return found.pop() if len(found) == 1 else None


def _collect(archive: Archive, scan: _Scan, own_split: str) -> None:
    """Note what a source holds; class folders outside of any split of it are of its own split."""
    images = [name.split("/") for name in archive.files if is_image_name(name)]
    if not images:
        if not archive.problems:
            types = name_some(sorted({PurePosixPath(name).suffix.lower() or "no ending" for name in archive.files}))
            found = f" among {len(archive.files)} files ({types})" if archive.files else ""
            if archive.hidden:
                found += f", and {name_some(sorted(archive.hidden))} hidden, which is not read"
            layouts = ", ".join((SHOWN, *(one.shown for one in LAYOUTS)))
            raise DataError(f"{archive.path}: no images found{found}; allowed layouts: {layouts}")
        return
    wrapper = find_wrapper(images)
    split_by_top = _find_splits(images, wrapper)
    doubled = _find_doubled(images, wrapper, split_by_top)
    if split_by_top:
        own_split = scan.main_split
    placed: list[tuple[str, list[str], list[str]]] = []
    for parts in images:
        place = _place(parts, wrapper, split_by_top, doubled, own_split)
        if isinstance(place, str):
            scan.problems.append(Problem(place, f"{archive.path.name}/{'/'.join(parts)}"))
        else:
            placed.append((*place, parts))
    has_own = any(len(rest) == 2 for _, rest, _ in placed)
    for split, rest, parts in placed:
        if len(rest) > 2 and not has_own:
            scan.problems.append(Problem(_DEEP, f"{archive.path.name}/{'/'.join(parts)}", can_skip=False))
        class_name = normalise_class_name(rest[0]) if len(rest) > 1 else _UNLABELLED
        if len(rest) > 1 and not class_name:
            scan.problems.append(Problem(_NO_CLASS, f"{archive.path.name}/{'/'.join(parts)}"))
            continue
        scan.found[split, class_name].append(("/".join(rest[1:] or rest), archive, "/".join(parts)))
    _collect_rest(archive, max(images, key=len)[:wrapper], split_by_top, doubled, scan, own_split)


def _find_splits(images: Sequence[Sequence[str]], wrapper: int) -> dict[str, str]:
    """Return the split of each top folder that is one; none where the top folders are classes."""
    tops = sorted({parts[wrapper] for parts in images if len(parts) > wrapper + 1})
    with_folders = {parts[wrapper] for parts in images if len(parts) > wrapper + 2}
    whole = {top: split for top in tops if (split := find_split(top))}
    if whole.keys() & with_folders:
        return whole
    in_part = {top: split for top in tops if (split := find_split_word(top))}
    with_classes = {in_part[top] for top in in_part.keys() & with_folders}
    are_all_splits = len(in_part) == len(tops) and len(set(in_part.values())) > 1
    if len(with_classes) > 1 or ("train" in with_classes and are_all_splits):
        return in_part
    return {top: split for top, split in whole.items() if top.casefold() not in _ALSO_CLASSES}


def _find_doubled(images: Sequence[Sequence[str]], wrapper: int, split_by_top: dict[str, str]) -> set[str]:
    """Return the split folders whose only folder names the split again and holds classes or, but in train, images."""
    inner: dict[str, set[str]] = defaultdict(set)
    deep: set[str] = set()
    for parts in images:
        if len(parts) > wrapper + 2:
            inner[parts[wrapper]].add(parts[wrapper + 1])
        if len(parts) > wrapper + 3:
            deep.add(parts[wrapper])
    doubled = {top for top, folders in inner.items() if len(folders) == 1 and top in split_by_top}
    return {
        top
        for top in doubled
        if find_split_word(*inner[top]) == split_by_top[top] and (top in deep or split_by_top[top] != "train")
    }


def find_split_word(folder: str) -> str | None:
    """Return the split that a word of a name stands for; None if there is none, or several."""
    splits = {split for word in re.split(r"[\W_]+", folder) if (split := find_split(word))}
    return splits.pop() if len(splits) == 1 else None


def _place(
    parts: list[str], wrapper: int, split_by_top: dict[str, str], doubled: set[str], own_split: str
) -> tuple[str, list[str]] | str:
    """Return an image's split and its path from the class on, or what is wrong with it."""
    rest = parts[wrapper:]
    if len(rest) < 2:
        return _NO_CLASS
    split = split_by_top.get(rest[0])
    if split is None:
        is_class = not split_by_top or own_split not in split_by_top.values()
        return (own_split, rest) if is_class else _NO_SPLIT
    return split, rest[2 if rest[0] in doubled and len(rest) > 2 else 1 :]


def _collect_rest(
    archive: Archive,
    wrapper: Sequence[str],
    split_by_top: dict[str, str],
    doubled: set[str],
    scan: _Scan,
    own_split: str,
) -> None:
    """Note files of other types, a stray table among them, and class folders without images."""
    scan.ignored += list_ignored(archive)
    for folder in sorted(archive.folders):
        parts = [*folder.split("/"), ""]
        place = _place(parts, len(wrapper), split_by_top, doubled, own_split)
        if parts[: len(wrapper)] != wrapper or isinstance(place, str):
            continue
        split, rest = place
        if split == scan.main_split and len(rest) == 2 and not (split_by_top and find_split_word(rest[0])):
            scan.empty.append((normalise_class_name(rest[0]), f"{archive.path.name}/{folder}"))


def _find_repeated(scan: _Scan) -> list[Problem]:
    """Return the images that an earlier source has under the same name, split and class."""
    problems = []
    for entries in scan.found.values():
        first: dict[str, Archive] = {}
        repeated = [entry for entry in entries if first.setdefault(entry[0], entry[1]) is not entry[1]]
        problems += [Problem(_REPEATED, f"{archive.path.name}/{member}", False) for _, archive, member in repeated]
    return problems


def _tell_missing(scan: _Scan, splits: Sequence[str], classes: tuple[str, ...]) -> list[SkippedImage]:
    told = []
    for split in splits:
        missing = [name for name in classes if (split, name) not in scan.found]
        if missing and (split, _UNLABELLED) not in scan.found:
            told.append(SkippedImage(name=split, reason=f"has no images of {name_some(missing)}", is_note=True))
    return told


def _order_images(split: str, classes: tuple[str, ...], scan: _Scan) -> EncodedSplit:
    ordered: list[EncodedImage] = []
    is_unlabelled = (split, _UNLABELLED) in scan.found
    for label, class_name in [(-1, _UNLABELLED)] if is_unlabelled else enumerate(classes):
        entries = sorted(scan.found.get((split, class_name), []), key=lambda entry: (entry[0], entry[2]))
        ordered.extend(EncodedImage(archive, member, label) for _, archive, member in entries)
    return EncodedSplit(tuple(ordered))
