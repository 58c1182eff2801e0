"""A source -> a new version of a data set in the cache, whole or not at all.

Everything is written into a scratch folder beside the old version, made durable, and then made to count by
one rename (see `cache.py`). A killed process leaves its finished shards, which a journal names: the next one that packs
the same images keeps them, any other removes them.

Shape suffixes: N = images in the split, H = height, W = width, C = the three colour channels, red first.
"""

import hashlib
import json
import math
import os
import secrets
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
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
    ShardManifest,
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
from model_code.data.shards import count_block_rows, count_shard_rows, make_header
from model_code.data.sources.images import (
    EncodedSplit,
    ImageSource,
    PixelSplit,
    escape_bytes,
    name_image,
    name_some,
)
from model_code.disk import check_free_space, cut_torn_line, flush_folder, writing_to
from model_code.errors import DataError, FaultyFilesError

_JOURNAL_FILE = "journal.jsonl"
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

    Shards that a killed or interrupted call finished are kept, if it packed the same images.

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
        The new version.

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
        scratch = folder / f"scratch-{_identify(source, image_size, source_fingerprint)}"
        try:
            remove_leftovers(name, cache_dir, scratch.name)
            scratch.mkdir(parents=True, exist_ok=True)
            journal = _Journal(scratch)
            check_free_space(cache_dir, needed_bytes - journal.size_bytes, purpose)
            written: dict[str, _WrittenSplit] = {}
            faulty: list[FaultyFilesError] = []
            with show_progress(purpose, image_count, "images", is_progress_shown) as advance:
                for split, content in sorted(source.splits.items()):
                    try:
                        written[split] = _write_split(
                            scratch,
                            journal,
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
        except Exception as error:
            if not isinstance(error.__cause__, BrokenProcessPool):  # memory was full: the next call goes on from there
                remove_leftovers(name, cache_dir)
            raise
        remove_leftovers(name, cache_dir)
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
    (scratch / _JOURNAL_FILE).unlink()
    flush_folder(scratch)
    version = folder / manifest.folder
    scratch.rename(version)
    flush_folder(folder)
    (version / revision.name).replace(folder / revision.name)
    flush_folder(folder)
    (version / MANIFEST_FILE).replace(folder / MANIFEST_FILE)
    flush_folder(folder)
    flush_folder(folder.parent)


def remove_leftovers(name: str, cache_dir: Path, scratch: str | None = None) -> None:
    """Remove every version but the one that counts and the one that is resumed, and the folder when there is none."""
    folder = cache_dir / name
    if not folder.is_dir():
        return
    try:
        current = read_manifest(name, cache_dir).folder
    except DataError:
        current = None
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name not in (current, scratch):
            shutil.rmtree(entry)
    if not any(folder.iterdir()):
        folder.rmdir()


def _identify(source: ImageSource, image_size: int, source_fingerprint: str) -> str:
    """Return a name for all that decides which bytes are packed, hexadecimal."""
    layout = (source_fingerprint, image_size, count_block_rows(image_size), count_shard_rows(image_size))
    digest = hashlib.sha256(repr(layout).encode())
    for split, content in sorted(source.splits.items()):
        digest.update("\n".join(list_files(split, content)).encode())
        digest.update(_list_labels(content).tobytes())
    return digest.hexdigest()[:16]


class _Journal:
    """The finished shards of a scratch folder, a line for each with the images that were skipped in it.

    What an interrupted process has not finished is removed.
    """

    def __init__(self, scratch: Path) -> None:
        self._file = scratch / _JOURNAL_FILE
        self._file.touch()
        cut_torn_line(self._file)
        self.skipped: dict[str, dict[int, str]] = {}
        for line in self._file.read_bytes().splitlines():
            with suppress(ValueError):  # damaged: its shard is written again
                shard, skipped, crc32 = json.loads(line)
                if crc32 == _checksum(scratch / shard):
                    self.skipped[shard] = {int(position): reason for position, reason in skipped.items()}
        self.size_bytes = 0
        for file in scratch.iterdir():
            if file.name in self.skipped:
                self.size_bytes += file.stat().st_size
            elif file != self._file:
                file.unlink()

    def add(self, shard: str, skipped: dict[int, str]) -> None:
        """Note a shard that is on disk."""
        self.skipped[shard] = skipped
        flush_folder(self._file.parent)
        with self._file.open("ab") as file:
            file.write(json.dumps([shard, skipped, _checksum(self._file.parent / shard)]).encode() + b"\n")
            _flush_file(file)


def _checksum(shard: Path) -> int | None:
    """Return the CRC-32 of a shard; None where all of its images were skipped, and there is no file."""
    return zlib.crc32(shard.read_bytes()) if shard.exists() else None


def _write_split(
    scratch: Path,
    journal: _Journal,
    split: str,
    content: EncodedSplit | PixelSplit,
    *,
    classes: tuple[str, ...],
    image_size: int,
    advance: Callable[[int], None],
    max_bad_fraction: float,
    main_split: str,
) -> _WrittenSplit:
    reasons = _write_images(scratch, journal, split, content, image_size, advance)
    skipped = _judge_skipped(split, content, reasons, max_bad_fraction)
    kept = [position for position in range(len(content)) if position not in reasons]
    labels_N = _list_labels(content)[kept]
    count_per_class = {name: int((labels_N == label).sum()) for label, name in enumerate(classes)}
    emptied = [name for name, count in count_per_class.items() if count == 0]
    if emptied and split == main_split and labels_N.max() >= 0:
        raise FaultyFilesError(
            f"{split}: no images of {name_some(emptied)} can be used; every class needs some",
            [(one.name, one.reason) for one in skipped],
        )
    labels_path = scratch / f"{split}-labels.npy"
    with labels_path.open("wb") as file:
        np.save(file, labels_N, allow_pickle=False)
        _flush_file(file)
    shards, pixels_sha256, hashes = _hash_shards(scratch, split, image_size)
    manifest = SplitManifest(
        count=len(labels_N),
        count_per_class=count_per_class,
        images_bytes=sum(shard.size_bytes for shard in shards),
        labels_bytes=labels_path.stat().st_size,
        shards=tuple(shards),
        block_rows=count_block_rows(image_size),
    )
    files = list_files(split, content)
    names = [classes[label] if label >= 0 else "" for label in labels_N]
    entries = [ImageEntry(split, files[index], *one) for index, *one in zip(kept, names, hashes, strict=True)]
    return _WrittenSplit(manifest, labels_N, pixels_sha256, skipped, entries)


def _list_labels(content: EncodedSplit | PixelSplit) -> npt.NDArray[np.int64]:
    if isinstance(content, EncodedSplit):
        return np.array([image.label for image in content.images], dtype=np.int64)
    return content.labels_N if content.more is None else np.concatenate([content.labels_N, _list_labels(content.more)])


def _write_images(
    scratch: Path,
    journal: _Journal,
    split: str,
    content: EncodedSplit | PixelSplit,
    image_size: int,
    advance: Callable[[int], None],
) -> dict[int, str]:
    """Write the shards of a split that are not finished yet; return the skipped positions of all, and why.

    A shard takes as many positions in turn as it has room for, whatever is skipped of them, and its images come in any
    order. Plain writes, not a writable memory map: on a full disk a map kills the process instead of raising.
    """
    shard_rows = count_shard_rows(image_size)
    names = [f"{split}-images-{number:05}.npy" for number in range(-(-len(content) // shard_rows))]
    ranges = [range(start, min(start + shard_rows, len(content))) for start in range(0, len(content), shard_rows)]
    missing = Counter({name: len(one) for name, one in zip(names, ranges, strict=True) if name not in journal.skipped})
    advance(len(content) - missing.total())
    reasons: dict[int, str] = {}
    for name in names:
        reasons |= journal.skipped.get(name, {})
    todo = [position for name, one in zip(names, ranges, strict=True) if name in missing for position in one]
    for chunk in _iterate_chunks(content, todo, image_size):
        reasons |= {chunk.positions[index]: reason for index, reason in chunk.failures}
        for first, last in _find_runs(chunk.positions, shard_rows):
            position = chunk.positions[first]
            name, row = names[position // shard_rows], position % shard_rows
            _write_rows(scratch / name, row, chunk.images_KHWC[first:last])
            missing[name] -= last - first
            if not missing[name]:
                positions = ranges[position // shard_rows]
                skipped = {one: reasons[one] for one in positions if one in reasons}
                _finish_shard(scratch / name, [one not in skipped for one in positions], image_size)
                journal.add(name, skipped)
        advance(len(chunk.positions))
    return reasons


def _iterate_chunks(content: EncodedSplit | PixelSplit, todo: Sequence[int], image_size: int) -> Iterator[DecodedChunk]:
    """Yield the images at some positions of a split, in any order."""
    if isinstance(content, PixelSplit):
        own = len(content.labels_N)
        pixels, todo = [one for one in todo if one < own], [one for one in todo if one >= own]
        for start in range(0, len(pixels), 1024):
            positions = pixels[start : start + 1024]
            # A slice where it can be: of images that are mapped or drawn only when they are read.
            is_run = positions[-1] - positions[0] == len(positions) - 1
            chosen = slice(positions[0], positions[-1] + 1) if is_run else positions
            yield DecodedChunk(positions, np.ascontiguousarray(content.images_NHWC[chosen]), [])
        if content.more is None:
            return
        content, first = content.more, own
    else:
        first = 0
    images = [content.images[position - first] for position in todo]
    for chunk in decode_images(images, image_size, count_workers(len(images))):
        left_out = [
            (index, "is one of the data set's own images")
            for index, image_HWC in enumerate(chunk.images_KHWC if content.left_out else ())
            if hashlib.sha256(image_HWC).digest() in content.left_out
        ]
        yield DecodedChunk([todo[one] for one in chunk.positions], chunk.images_KHWC, left_out + chunk.failures)


def _find_runs(positions: Sequence[int], shard_rows: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) of consecutive positions in one shard."""
    first = 0
    for last in range(1, len(positions) + 1):
        is_end = last == len(positions) or positions[last] != positions[last - 1] + 1
        if is_end or positions[last] % shard_rows == 0:
            yield first, last
            first = last


def _write_rows(path: Path, row: int, images_KHWC: npt.NDArray[np.uint8]) -> None:
    header_bytes = len(make_header(1, images_KHWC.shape[1]))
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.seek(header_bytes + row * images_KHWC[0].nbytes)
        file.write(images_KHWC.data)


def _finish_shard(path: Path, is_kept: Sequence[bool], image_size: int) -> None:
    """Close the gaps of skipped images, write the header and make the shard durable; remove one without images."""
    header = make_header(sum(is_kept), image_size)
    with path.open("r+b") as file:
        if not all(is_kept):
            file.seek(len(header))
            images_NHWC = np.frombuffer(file.read(), dtype=np.uint8).reshape(len(is_kept), -1)[np.array(is_kept)]
            file.seek(len(header))
            file.write(images_NHWC.data)
            file.truncate()
        file.seek(0)
        file.write(header)
        _flush_file(file)
    if not any(is_kept):
        path.unlink()


def _judge_skipped(
    split: str, content: EncodedSplit | PixelSplit, reasons: dict[int, str], max_bad_fraction: float
) -> list[SkippedImage]:
    """Return the images that are skipped.

    Raises:
        DataError: Images were to be added to others, and none can be.
        FaultyFilesError: They are too many.
    """
    if isinstance(content, EncodedSplit):
        images, own = content.images, 0
    else:
        images, own = content.more.images if content.more else (), len(content.labels_N)
    skipped = [
        SkippedImage(name=escape_bytes(name_image(images[position - own])), reason=reason)
        for position, reason in sorted(reasons.items())
    ]
    if isinstance(content, PixelSplit):
        # Whoever gave them cannot be asked to repair them: any number is skipped.
        if images and len(skipped) == len(images):
            raise DataError(
                f"{len(skipped)} images were to be added and none can be: {skipped[0].name}: {skipped[0].reason}"
            )
    elif skipped and len(skipped) / len(images) > max_bad_fraction:
        share = math.ceil(100 * len(skipped) / len(images))
        way = "" if share == 100 else f", or leave them out with --max-bad {share / 100:g}"
        raise FaultyFilesError(
            f"{len(skipped)} of {len(images)} {split} images do not decode, more than {100 * max_bad_fraction:g} % "
            f"are not skipped: {name_some((one.name for one in skipped), 3)} (the first: {skipped[0].reason}); "
            f"repair or remove them{way}",
            [(one.name, one.reason) for one in skipped],
        )
    return skipped


def _hash_shards(scratch: Path, split: str, image_size: int) -> tuple[list[ShardManifest], str, list[str]]:
    """Return the shards of a split, the SHA-256 of all pixels, and the first digits of that of each image."""
    header_bytes, row_bytes = len(make_header(1, image_size)), 3 * image_size**2
    digest, hashes, shards = hashlib.sha256(), list[str](), []
    for path in sorted(scratch.glob(f"{split}-images-*.npy")):
        first, checksums = len(hashes), []
        with path.open("rb") as file:
            header = file.read(header_bytes)
            while block := file.read(count_block_rows(image_size) * row_bytes):
                checksums.append(f"{zlib.crc32(block, zlib.crc32(header)):08x}")
                header = b""
                digest.update(block)
                images = (block[start : start + row_bytes] for start in range(0, len(block), row_bytes))
                hashes += [hashlib.sha256(image).hexdigest()[:_IMAGE_DIGITS] for image in images]
        shards.append(
            ShardManifest(
                file=path.name, count=len(hashes) - first, size_bytes=path.stat().st_size, crc32="".join(checksums)
            )
        )
    return shards, digest.hexdigest(), hashes


def _flush_file(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
