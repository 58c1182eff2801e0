"""Sources on the command line -> image bytes: files, folders and zip archives of images, http(s) addresses.

Addresses are fetched here, on the person's own machine; the service never fetches anything.
"""

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import httpx

from serving.bundle.image_structure import SUFFIXES
from serving.limits import MAX_IMAGE_BYTES

FETCH_TIMEOUT_S = 10.0
MAX_REDIRECTS = 5


@dataclass(frozen=True)
class SourceImage:
    """One image, read.

    Attributes:
        source: The person's name for it, or its path inside a named folder.
        data: The encoded file.
    """

    source: str
    data: bytes


@dataclass(frozen=True)
class SourceProblem:
    """Why one source gave no prediction; `message` is one line with the remedy."""

    source: str
    message: str


def read_sources(sources: Iterable[str]) -> Iterator[SourceImage | SourceProblem]:
    """Yield the images of all sources in order, read one at a time; a problem in place of each that fails.

    A folder or a zip archive stands for the images in it and below it, sorted by path.
    """
    with httpx.Client(
        timeout=FETCH_TIMEOUT_S,
        follow_redirects=True,
        max_redirects=MAX_REDIRECTS,
        headers={"Accept": "image/*"},
    ) as client:
        for source in sources:
            if "://" in source:
                yield _fetch(client, source)
                continue
            path = Path(source)
            if path.suffix.lower() == ".zip":
                yield from _read_archive(path)
                continue
            if not _is_folder(path):
                yield _read(path)
                continue
            files = _list_images(path)
            if not files:
                yield SourceProblem(source, f"no image in the folder; looked for {' '.join(sorted(SUFFIXES))}")
            yield from map(_read, files)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, say: reading it tells
        return False


def _list_images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _read_archive(path: Path) -> Iterator[SourceImage | SourceProblem]:
    try:
        with zipfile.ZipFile(path) as archive:
            # Beside each file an archiver of macOS puts one of the same suffix, whose name begins with a dot.
            names = [PurePath(name) for name in archive.namelist()]
            images = sorted(name for name in names if name.suffix.lower() in SUFFIXES and name.name[0] != ".")
            if not images:
                yield SourceProblem(str(path), f"no image in the archive; looked for {' '.join(sorted(SUFFIXES))}")
            for name in images:
                yield _read_member(archive, path / name, str(name))
    except (OSError, zipfile.BadZipFile) as error:
        yield SourceProblem(str(path), f"cannot be read: {getattr(error, 'strerror', None) or error}")


def _read_member(archive: zipfile.ZipFile, path: Path, name: str) -> SourceImage | SourceProblem:
    try:
        with archive.open(name) as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # the last one of a password
        return SourceProblem(str(path), f"cannot be read: {error}")
    return _check(str(path), data)


def _read(path: Path) -> SourceImage | SourceProblem:
    source = str(path)
    try:
        with path.open("rb") as file:
            # Not the size on disk: a pipe or a device has none.
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        return SourceProblem(source, f"cannot be read: {error.strerror or error}")
    return _check(source, data)


def _fetch(client: httpx.Client, url: str) -> SourceImage | SourceProblem:
    if not url.lower().startswith(("http://", "https://")):
        return SourceProblem(url, "only http:// and https:// addresses are fetched")
    data = bytearray()
    try:
        with client.stream("GET", url) as response:
            if response.status_code != httpx.codes.OK:
                return SourceProblem(url, f"the address answered {response.status_code} {response.reason_phrase}")
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > MAX_IMAGE_BYTES:
                    break
    except httpx.TimeoutException:
        return SourceProblem(url, f"no answer within {FETCH_TIMEOUT_S:g} seconds")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return SourceProblem(url, f"cannot be fetched: {error}")
    return _check(url, bytes(data))


def _check(source: str, data: bytes) -> SourceImage | SourceProblem:
    if len(data) > MAX_IMAGE_BYTES:
        return SourceProblem(source, f"more than {MAX_IMAGE_BYTES:,} bytes; send a smaller image")
    if not data:
        return SourceProblem(source, "empty")
    return SourceImage(source, data)
