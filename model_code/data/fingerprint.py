"""Fingerprints of sources, which show changes since packing without reading an image."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from model_code.errors import DataError


def fingerprint_paths(paths: Sequence[Path], *settings: str | int) -> str:
    """Return what changes whenever a file below one of the paths is added, removed, renamed or written.

    Args:
        paths: Files and folders, any order.
        settings: Whatever else the packed result depends on.

    Returns:
        SHA-256 over every path's size and time of last change (ns), hexadecimal.

    Raises:
        DataError: A path is missing or cannot be read.
    """
    digest = hashlib.sha256(repr(settings).encode())
    for path in sorted(path.resolve() for path in paths):
        try:
            for line in _describe(path, set()):
                digest.update(os.fsencode(line) + b"\n")
        except FileNotFoundError as error:
            raise DataError(f"no such file or folder: {path}; give a folder, a zip or a tar that exists") from error
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; change its permissions") from error
    return digest.hexdigest()


def _describe(path: Path, seen: set[Path]) -> Iterator[str]:
    """Yield a line for each file; links are followed, but to no folder that was `seen`."""
    status = path.stat()
    if not path.is_dir():
        yield f"{path} {status.st_size} {status.st_mtime_ns}"
        return
    yield str(path)
    seen.add(path.resolve())
    with os.scandir(path) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        # What is gone since it was listed is a change like any other.
        with suppress(FileNotFoundError):
            if entry.is_symlink():
                yield f"{entry.path} -> {Path(entry.path).readlink()}"
                if not Path(entry.path).exists():
                    continue
            if entry.is_dir():
                if not entry.is_symlink() or Path(entry.path).resolve() not in seen:
                    yield from _describe(Path(entry.path), seen)
            else:
                status = entry.stat()
                yield f"{entry.path} {status.st_size} {status.st_mtime_ns}"
