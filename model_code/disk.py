"""Disk access of every stage: free space, atomic writes, durability, locks between processes."""

import errno
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_code.errors import BusyError, DataError, DiskFullError
from model_code.settings import load_settings

REMOVED_PREFIX = ".removed-"  # hidden: no command takes such a folder for a run or a data set
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_log = logging.getLogger(__name__)


def format_size(size_bytes: int) -> str:
    """Return a size as people read it, in powers of 1000: `153.6 MB`."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    size = float(size_bytes)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def count_free_bytes(folder: Path) -> int:
    """Return the bytes that an ordinary user can still write on the disk of an existing `folder`."""
    return shutil.disk_usage(folder).free


def check_free_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Refuse to start what cannot fit.

    Args:
        folder: An existing folder on the disk in question.
        needed_bytes: Size of what is about to be written.
        purpose: Work that needs it, for the message: `packing cifar10`.

    Raises:
        DiskFullError: Less is free; the message gives both sizes.
    """
    free_bytes = count_free_bytes(folder)
    if free_bytes < needed_bytes:
        raise _disk_full(folder, needed_bytes, free_bytes, purpose)


def check_writable(folder: Path, purpose: str) -> None:
    """Refuse a folder in which nothing can be written, or which cannot be made; leave nothing behind.

    Raises:
        DiskFullError: The disk or the quota is full.
        DataError: The system refuses it for another reason, such as a read-only disk.
    """
    with writing_to(folder, 0, purpose):
        tempfile.TemporaryFile(dir=_find_existing(folder)).close()


@contextmanager
def writing_to(folder: Path, needed_bytes: int, purpose: str) -> Iterator[None]:
    """Turn the system's errors about writing below `folder` into one line each.

    Raises:
        DiskFullError: The disk or the quota is full.
        DataError: Anything else that the system refuses, such as a read-only disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise _disk_full(folder, needed_bytes, count_free_bytes(_find_existing(folder)), purpose) from error
        raise DataError(
            f"{purpose}: cannot write below {folder}: {error.strerror or error}; make the folder writable, "
            f"or {_change_place(folder)} another one"
        ) from error


def _find_existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def write_atomically(file: Path, content: bytes) -> None:
    """Replace `file` by one with this content, or leave the old one untouched.

    Raises:
        DiskFullError: There is no room; the old file is still there.
        DataError: The system refuses to write for another reason.
    """
    with writing_to(file.parent, len(content), f"saving {file.name}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            Path(scratch).chmod(0o644)
            Path(scratch).replace(file)
        finally:
            Path(scratch).unlink(missing_ok=True)


def cut_torn_line(file: Path) -> None:
    """Remove what a killed process left of the last line of a file of lines."""
    with file.open("r+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - 1, 0))
        if size and stream.read() != b"\n":
            stream.truncate(file.read_bytes().rfind(b"\n") + 1)


def flush_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a rename is safe from a power cut only after this."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def hold_lock(path: Path, purpose: str) -> Iterator[None]:
    """Hold an exclusive lock between processes, waiting for it as long as it takes.

    The kernel frees it when the holder dies, however it dies, so there is no stale lock.

    Args:
        path: Lock file; made when missing, together with its folder, and left in place.
        purpose: Work that waits, for the log line.
    """
    descriptor = _open_lock(path, purpose)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("%s: waiting for another process that does the same", purpose)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def take_lock(path: Path, busy: str, *, is_shared: bool = False) -> Iterator[None]:
    """Hold a lock between processes, or refuse at once; the kernel frees it like `hold_lock`'s.

    Args:
        path: Lock file; made when missing, together with its folder, and left in place.
        busy: Message when another process holds it.
        is_shared: True for a lock that several hold at once, and nobody beside an exclusive one.

    Raises:
        BusyError: Another process holds it.
    """
    descriptor = _open_lock(path, "taking a lock")
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(busy) from error
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Return True if a process holds a lock at this moment; the lock file is not made."""
    try:
        # Some file systems lock only what may be written.
        descriptor = os.open(path, (os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY) | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _open_lock(path: Path, purpose: str) -> int:
    with writing_to(path.parent, 0, purpose):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _disk_full(folder: Path, needed_bytes: int, free_bytes: int, purpose: str) -> DiskFullError:
    return DiskFullError(
        f"the disk of {folder} is full: {purpose} needs {format_size(needed_bytes)}, {format_size(free_bytes)} is "
        f"free; nothing that was there is lost: free some space, or {_change_place(folder)} a folder on another disk"
    )


def _change_place(folder: Path) -> str:
    return "set DARKROOM_HOME to" if folder.absolute().is_relative_to(load_settings().home) else "choose"
