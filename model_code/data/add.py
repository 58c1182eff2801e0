"""`darkroom data add`: a source goes in, a packed data set comes out; reused while the source is the same."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from model_code.data.cache import (
    FEEDBACK_SUFFIX,
    PackedDataset,
    SkippedImage,
    check_dataset_name,
    find_lock,
    format_remedy,
    open_dataset,
    read_manifest,
)
from model_code.data.exclusion import EXCLUDED_BY, leave_out, read_exclusions
from model_code.data.fingerprint import fingerprint_paths
from model_code.data.limits import MAX_BAD_FRACTION
from model_code.data.packing import pack_dataset, remove_leftovers
from model_code.data.revisions import has_revision
from model_code.data.sources.detect import get_known, open_source
from model_code.data.sources.feedback import add_feedback_to
from model_code.data.sources.images import PixelSplit
from model_code.data.sources.layout import DATASETS
from model_code.disk import hold_lock
from model_code.errors import DataError, UsageError
from model_code.hints import suggest

MAX_IMAGE_SIZE = 1024
_MAX_NAME_LENGTH = 64
_READ_AS_VALUE = r"[0-9]+(e-?[0-9]+)?|true|false|null|none|nan"
# Raised whenever the same source packs differently, so that packed sets are made anew.
_PACKING_VERSION = 8


@dataclass(frozen=True)
class AddedDataset:
    """What came of adding a data set.

    Attributes:
        dataset: The packed data set.
        reused: Whether it was there already and its source had not changed.
        skipped: Images that did not decode and files that are not read, each with its reason; notes.
    """

    dataset: PackedDataset
    reused: bool
    skipped: tuple[SkippedImage, ...]


def add_dataset(
    name: str,
    sources: Sequence[Path] = (),
    *,
    cache_dir: Path,
    data_dir: Path,
    download: bool = False,
    url: str | None = None,
    image_size: int | None = None,
    progress: bool = True,
    skip: bool = False,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    exclude: Sequence[Path] = (),
) -> AddedDataset:
    """Pack a data set, or reuse what is packed when its source did not change and its images have their checksums.

    Two processes that add the same name wait for each other; a process killed at any moment leaves the old
    version or the new one.

    Args:
        name: `cifar10` (its ten classes are required), `shapes` (drawn, no source), `food11` (any of its three
            layouts), `imagenet-val` (the published archives, or folders named by wnid), or any other name for
            any other layout. With `-with-feedback` at its end what is packed without that, and more training images
            from a folder.
        sources: Folders, zips or tars; several are merged, unless they are CIFAR-10's archive or Kaggle's layout.
        cache_dir: The folder of all packed data sets.
        data_dir: Folder of downloads.
        download: True to fetch the published archive instead of `sources`; only for data sets with one.
        url: Address of a mirror of that archive; None for the published one.
        image_size: Height and width of the packed images, pixels; when None the data set's own (`DATASETS`),
            that of what feedback is added to, or 64.
        progress: Whether to show progress.
        skip: True to leave out files and folders that fit no layout, links to nothing and empty classes.
        max_bad_fraction: Largest share of a split's images that may not decode; they are left out. 0 to 1.
        exclude: Files that name images to leave out (`read_exclusions`); they add up.

    Raises:
        UsageError: The name, the size, the share or the combination of arguments is not allowed.
        DataError: The source is missing, damaged or not of a known layout.
        DownloadError: The download did not finish.
        DiskFullError: The disk is full; nothing is lost.
    """
    check_arguments(name, sources, download, image_size, url)
    if not 0 <= max_bad_fraction < 1:
        raise UsageError(f"a share of {max_bad_fraction} bad files is not allowed; give 0 or more, less than 1")
    base = open_dataset(name.removesuffix(FEEDBACK_SUFFIX), cache_dir) if name.endswith(FEEDBACK_SUFFIX) else None
    excluded = {image: f"{EXCLUDED_BY}{file.name}" for file in reversed(exclude) for image in read_exclusions(file)}
    known = get_known(name)
    size = image_size or (base.image_size if base else known.image_size)
    with hold_lock(find_lock(name, cache_dir), f"adding {name}"):
        paths = [known.fetch(data_dir, url, progress)] if download and known.fetch else list(sources)
        version = base.checksum if base else known.version
        settings = (name, size, _PACKING_VERSION, version, skip, str(max_bad_fraction), *sorted(excluded))
        fingerprint = fingerprint_paths(paths, *settings)
        reusable = _find_reusable(name, cache_dir, fingerprint)
        if reusable is not None:
            return AddedDataset(reusable, True, read_manifest(name, cache_dir).skipped)

        def check_unchanged() -> None:
            # Feedback comes in at any time; what is not read now is read the next time.
            if base is None and fingerprint_paths(paths, *settings) != fingerprint:
                raise DataError(f"{', '.join(map(str, paths))} changed while it was read; run the command again")

        with ExitStack() as stack:
            if base is not None:
                source = add_feedback_to(base, paths[0])
            else:
                source = known.draw(size) if known.draw else open_source(known, paths, stack, skip)
            for split in source.splits.values():
                if isinstance(split, PixelSplit) and split.images_NHWC.shape[1] != size:
                    native = split.images_NHWC.shape[1]
                    raise UsageError(
                        f"image size {size} is not possible: {source.description} has {native}x{native} "
                        f"pixels; give image size {native}"
                    )
            if excluded:
                source = leave_out(source, excluded)
            dataset = pack_dataset(
                name,
                source,
                image_size=size,
                source_fingerprint=fingerprint,
                cache_dir=cache_dir,
                source_paths=() if download else sources,
                is_progress_shown=progress,
                check_source=check_unchanged,
                max_bad_fraction=max_bad_fraction,
            )
    return AddedDataset(dataset, False, read_manifest(name, cache_dir).skipped)


def check_arguments(
    name: str, sources: Sequence[Path], download: bool, image_size: int | None, url: str | None = None
) -> None:
    """Refuse arguments of `add_dataset` that cannot work, whatever the sources hold.

    Raises:
        DataError: A source is not there.
        UsageError: The name, the size or the combination is not allowed.
    """
    check_dataset_name(name)
    if len(own := name.removesuffix(FEEDBACK_SUFFIX)) > _MAX_NAME_LENGTH or re.fullmatch(_READ_AS_VALUE, own):
        raise UsageError(
            f"data set name {own!r} is not allowed: --set dataset= reads numbers, true, false, null and none as "
            f"values, and models have names of up to {_MAX_NAME_LENGTH} characters; choose another name"
        )
    known = get_known(name)
    is_drawn = known.draw is not None
    if is_drawn and (sources or download):
        raise UsageError(f"{name} is drawn, not read; use `darkroom data add {name}` without --from and --download")
    if name.endswith(FEEDBACK_SUFFIX * 2):
        raise UsageError(f"{name} would hold feedback twice; use {format_remedy(name.removesuffix(FEEDBACK_SUFFIX))}")
    if name.endswith(FEEDBACK_SUFFIX) and len(sources) != 1:
        raise UsageError(f"{name} needs one folder, {len(sources)} were given; use {format_remedy(name)}")
    if url is not None and not download:
        raise UsageError(f"--url {url} is the address of a mirror; it goes with --download")
    if download and known.fetch is None:
        offered = ", ".join(one for one, other in DATASETS.items() if other.fetch)
        raise UsageError(f"{name} cannot be downloaded, only {offered} can; use {format_remedy(name)}")
    if download and sources:
        raise UsageError("--from and --download were both given; give one of them")
    if not is_drawn and not sources and not download:
        hint = "" if name in DATASETS else suggest(name, known=DATASETS, least_ratio=0.8)
        raise UsageError(f"no source for {name}; {hint}use {format_remedy(name)}")
    if image_size is not None and not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise UsageError(f"image size {image_size} is not allowed; 1 to {MAX_IMAGE_SIZE} pixels are")
    for path in sources:
        if not path.exists():
            raise DataError(f"no such file or folder: {path}; give a folder, a zip or a tar that exists")


def _find_reusable(name: str, cache_dir: Path, fingerprint: str) -> PackedDataset | None:
    try:
        manifest = read_manifest(name, cache_dir)
        if manifest.source_fingerprint != fingerprint or not has_revision(name, manifest.checksum, cache_dir):
            return None
        dataset = open_dataset(name, cache_dir)
        dataset.verify()
    except DataError:
        return None
    remove_leftovers(name, cache_dir)
    return dataset
