"""A source -> a new version of a data set in the cache, whole or not at all.

Everything is written into a scratch folder beside the old version, made durable, and then made to count by
one rename (see `cache.py`). What a killed process left behind is removed by the next one.

Shape suffixes: N = images in the split, H = height, W = width, C = the three colour channels, red first.
"""

import hashlib
import io
import math
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from model_code.data.cache import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    CacheManifest,
    PackedDataset,
    SkippedImage,
    SplitManifest,
    compute_checksum,
    open_dataset,
    read_manifest,
)
from model_code.data.decoding import DecodedChunk, count_workers, decode_images
from model_code.data.exclusion import list_files
from model_code.data.limits import MAX_BAD_FRACTION
from model_code.data.progress import show_progress
from model_code.data.revisions import ImageEntry, write_revision
from model_code.data.sources.images import (
    EncodedSplit,
    ImageSource,
    PixelSplit,
    escape_bytes,
    name_image,
    name_some,
)
from model_code.disk import check_free_space, flush_folder, writing_to
from model_code.errors import DataError, FaultyFilesError

# Manifest, headers and what the file system adds.
_OVERHEAD_BYTES = 64 * 1024
# Of an image's hash: two of 10^9 images share them with a probability of 3 %.
_IMAGE_DIGITS = 16


@dataclass(frozen=True)
class _WrittenSplit:
    manifest: SplitManifest
    labels_N: npt.NDArray[np.int64]
    pixels_sha256: str
    skipped: list[SkippedImage]
    images: list[ImageEntry]


def pack_dataset(
    name: str,
    source: ImageSource,
    *,
    image_size: int,
    source_fingerprint: str,
    cache_dir: Path,
    source_paths: Sequence[Path] = (),
    is_progress_shown: bool = True,
    check_source: Callable[[], None] = lambda: None,
    max_bad_fraction: float = MAX_BAD_FRACTION,
) -> PackedDataset:
    """Write a new version of a data set; the caller holds the lock of its name.

    Args:
        name: Name of the data set.
        source: Classes and images.
        image_size: Height and width of the packed images, pixels.
        source_fingerprint: Recorded, to tell later whether the source changed.
        cache_dir: The folder of all packed data sets; made when missing.
        source_paths: Recorded, to pack the same again.
        is_progress_shown: True to show progress.
        check_source: Called before the new version counts; what it raises keeps the old one.

        max_bad_fraction: Largest share of a split's images that is left out because they do not decode.

    Returns:
        The new version, mapped.

    Raises:
        DataError: Too many images do not decode, a class has none left, or the source is damaged.
        DiskFullError: The disk is full; the old version is kept.
    """
    folder = cache_dir / name
    image_count = sum(len(split) for split in source.splits.values())
    needed_bytes = image_count * (3 * image_size * image_size + 8) + _OVERHEAD_BYTES
    purpose = f"packing {name}"
    with writing_to(cache_dir, needed_bytes, purpose):
        cache_dir.mkdir(parents=True, exist_ok=True)
        try:
            _remove_leftovers(name, cache_dir)
            check_free_space(cache_dir, needed_bytes, purpose)
            scratch = folder / f"scratch-{secrets.token_hex(4)}"
            scratch.mkdir(parents=True)
            written: dict[str, _WrittenSplit] = {}
            faulty: list[FaultyFilesError] = []
            with show_progress(purpose, image_count, "images", is_progress_shown) as advance:
                for split, content in sorted(source.splits.items()):
                    try:
                        written[split] = _write_split(
                            scratch,
                            split,
                            content,
                            classes=source.classes,
                            image_size=image_size,
                            advance=advance,
                            max_bad_fraction=max_bad_fraction,
                            main_split="train" if "train" in source.splits else split,
                        )
                    except FaultyFilesError as error:
                        faulty.append(error)
                if faulty:
                    faults = [fault for error in faulty for fault in error.faults]
                    left_out = [(one.name, one.reason) for one in source.left_out]
                    raise FaultyFilesError("; ".join(map(str, faulty)), faults + left_out)
            check_source()
            manifest = _describe(name, source, image_size, source_fingerprint, source_paths, written)
            entries = (image for one in written.values() for image in one.images)
            _commit(folder, scratch, manifest, write_revision(scratch, manifest.checksum, image_size, entries))
        finally:
            _remove_leftovers(name, cache_dir)
    return open_dataset(name, cache_dir)


def _describe(
    name: str,
    source: ImageSource,
    image_size: int,
    source_fingerprint: str,
    source_paths: Sequence[Path],
    written: dict[str, _WrittenSplit],
) -> CacheManifest:
    checksum = compute_checksum(
        source.classes,
        image_size,
        ((split, one.labels_N, one.pixels_sha256) for split, one in written.items()),
    )
    skipped = [*(image for one in written.values() for image in one.skipped), *source.left_out]
    paths = tuple(str(path.resolve()) for path in source_paths)
    return CacheManifest(
        format_version=FORMAT_VERSION,
        name=name,
        classes=source.classes,
        image_size=image_size,
        folder=f"{checksum[:16]}-{secrets.token_hex(4)}",
        splits={split: one.manifest for split, one in written.items()},
        checksum=checksum,
        source=escape_bytes(source.description),
        source_fingerprint=source_fingerprint,
        # A path that is no UTF-8 cannot be recorded.
        source_paths=paths if list(paths) == list(map(escape_bytes, paths)) else (),
        base=source.base,
        skipped=tuple(one.model_copy(update={"name": escape_bytes(one.name)}) for one in skipped),
    )


def _commit(folder: Path, scratch: Path, manifest: CacheManifest, revision: Path) -> None:
    with (scratch / MANIFEST_FILE).open("wb") as file:
        file.write(manifest.model_dump_json(indent=1).encode())
        _flush_file(file)
    flush_folder(scratch)
    version = folder / manifest.folder
    scratch.rename(version)
    flush_folder(folder)
    (version / revision.name).replace(folder / revision.name)
    flush_folder(folder)
    (version / MANIFEST_FILE).replace(folder / MANIFEST_FILE)
    flush_folder(folder)
    flush_folder(folder.parent)


def _remove_leftovers(name: str, cache_dir: Path) -> None:
    """Remove every version but the one that counts, and the folder when there is none."""
    folder = cache_dir / name
    if not folder.is_dir():
        return
    try:
        current = read_manifest(name, cache_dir).folder
    except DataError:
        current = None
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name != current:
            shutil.rmtree(entry)
    if not any(folder.iterdir()):
        folder.rmdir()


def _write_split(
    scratch: Path,
    split: str,
    content: EncodedSplit | PixelSplit,
    *,
    classes: tuple[str, ...],
    image_size: int,
    advance: Callable[[int], None],
    max_bad_fraction: float,
    main_split: str,
) -> _WrittenSplit:
    images_path, labels_path = scratch / f"{split}-images.npy", scratch / f"{split}-labels.npy"
    skipped: list[SkippedImage] = []
    with images_path.open("wb+") as file:
        if isinstance(content, PixelSplit):
            labels_N, kept = content.labels_N, list(range(len(content)))
            _write_header(file, len(content), image_size)
            for start in range(0, len(labels_N), 1024):
                images_NHWC = content.images_NHWC[start : start + 1024]
                file.write(np.ascontiguousarray(images_NHWC).data)
                advance(len(images_NHWC))
            if content.more is not None:
                # Whoever gave them cannot be asked to repair them: any number is skipped.
                more_N, kept_more, skipped = _write_decoded(
                    file, split, content.more, image_size, advance, len(labels_N), 1.0
                )
                if not len(more_N):
                    raise DataError(
                        f"{len(skipped)} images were to be added and none can be: {skipped[0].name}: "
                        f"{skipped[0].reason}"
                    )
                kept = [*range(len(labels_N)), *(len(labels_N) + position for position in kept_more)]
                labels_N = np.concatenate([labels_N, more_N])
        else:
            labels_N, kept, skipped = _write_decoded(
                file, split, content, image_size, advance, max_bad_fraction=max_bad_fraction
            )
        _flush_file(file)
        pixels_sha256, hashes = _hash_pixels(file, image_size)
    count_per_class = {name: int((labels_N == label).sum()) for label, name in enumerate(classes)}
    emptied = [name for name, count in count_per_class.items() if count == 0]
    if emptied and split == main_split and labels_N.max() >= 0:
        raise FaultyFilesError(
            f"{split}: no images of {name_some(emptied)} can be used; every class needs some",
            [(one.name, one.reason) for one in skipped],
        )
    with labels_path.open("wb") as file:
        np.save(file, labels_N, allow_pickle=False)
        _flush_file(file)
    manifest = SplitManifest(
        count=len(labels_N),
        count_per_class=count_per_class,
        images_bytes=images_path.stat().st_size,
        labels_bytes=labels_path.stat().st_size,
    )
    files = list_files(split, content)
    names = [classes[label] if label >= 0 else "" for label in labels_N]
    entries = [ImageEntry(split, files[index], *one) for index, *one in zip(kept, names, hashes, strict=True)]
    return _WrittenSplit(manifest, labels_N, pixels_sha256, skipped, entries)


def _write_decoded(
    file: IO[bytes],
    split: str,
    content: EncodedSplit,
    image_size: int,
    advance: Callable[[int], None],
    first_row: int = 0,
    max_bad_fraction: float = MAX_BAD_FRACTION,
) -> tuple[npt.NDArray[np.int64], list[int], list[SkippedImage]]:
    """Write pixels at the place of their image, in any order; then close the gaps of skipped ones.

    Returns labels and positions of what was kept, and what was skipped.

    The first image goes to `first_row` of the split. Plain writes, not a writable memory map: on a full disk a map
    kills the process instead of raising.
    """
    images = content.images
    row_bytes = 3 * image_size * image_size
    start_bytes = _write_header(file, first_row + len(images), image_size) + first_row * row_bytes
    reasons: dict[int, str] = {}
    for chunk in decode_images(images, image_size, count_workers(len(images))):
        _write_chunk(file, chunk, start_bytes, row_bytes)
        if content.left_out:
            for position, image_HWC in zip(chunk.positions, chunk.images_KHWC, strict=True):
                if hashlib.sha256(image_HWC).digest() in content.left_out:
                    reasons[position] = "is one of the data set's own images"
        reasons.update({chunk.positions[index]: reason for index, reason in chunk.failures})
        advance(len(chunk.positions))
    skipped = [
        SkippedImage(name=escape_bytes(name_image(images[position])), reason=reason)
        for position, reason in sorted(reasons.items())
    ]
    if len(skipped) > 0 and len(skipped) / len(images) > max_bad_fraction:
        share = math.ceil(100 * len(skipped) / len(images))
        way = "" if share == 100 else f", or leave them out with --max-bad {share / 100:g}"
        raise FaultyFilesError(
            f"{len(skipped)} of {len(images)} {split} images do not decode, more than {100 * max_bad_fraction:g} % "
            f"are not skipped: {name_some((one.name for one in skipped), 3)} (the first: {skipped[0].reason}); "
            f"repair or remove them{way}",
            [(one.name, one.reason) for one in skipped],
        )
    kept = [position for position in range(len(images)) if position not in reasons]
    if skipped:
        _close_gaps(file, kept, start_bytes, row_bytes)
        _write_header(file, first_row + len(kept), image_size)
    return np.array([images[position].label for position in kept], dtype=np.int64), kept, skipped


def _write_chunk(file: IO[bytes], chunk: DecodedChunk, start_bytes: int, row_bytes: int) -> None:
    start = 0
    for end in range(1, len(chunk.positions) + 1):
        if end == len(chunk.positions) or chunk.positions[end] != chunk.positions[end - 1] + 1:
            file.seek(start_bytes + chunk.positions[start] * row_bytes)
            file.write(chunk.images_KHWC[start:end].data)
            start = end


def _close_gaps(file: IO[bytes], kept: Sequence[int], start_bytes: int, row_bytes: int) -> None:
    for target, position in enumerate(kept):
        if target != position:
            file.seek(start_bytes + position * row_bytes)
            row = file.read(row_bytes)
            file.seek(start_bytes + target * row_bytes)
            file.write(row)
    file.truncate(start_bytes + len(kept) * row_bytes)


def _write_header(file: IO[bytes], count: int, image_size: int) -> int:
    """Write the header of a .npy file of images and return its length, which does not depend on `count`."""
    header = io.BytesIO()
    shape = (count, image_size, image_size, 3)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    file.seek(0)
    return file.write(header.getvalue())


def _hash_pixels(file: IO[bytes], image_size: int) -> tuple[str, list[str]]:
    """Return the SHA-256 of all pixels, and the first digits of that of each image."""
    file.seek(_write_header(io.BytesIO(), 1, image_size))
    digest, hashes = hashlib.sha256(), []
    while image := file.read(3 * image_size * image_size):
        digest.update(image)
        hashes.append(hashlib.sha256(image).hexdigest()[:_IMAGE_DIGITS])
    return digest.hexdigest(), hashes


def _flush_file(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
