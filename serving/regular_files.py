"""Regular files that other processes may have written: opened without waiting, read up to a limit, written at once.

A FIFO, a socket or a device under the name of a file would block whoever opens it, or never end.
"""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

# Pointers, manifests, key files.
MAX_TEXT_BYTES = 16_000_000
# Smallest unit of usual file systems, for those that do not tell.
_BLOCK_BYTES = 4096


def open_regular(path: Path) -> BufferedReader:
    """Open an existing regular file for reading; symbolic links are followed.

    Raises:
        OSError: It is missing, cannot be opened, or is not a regular file (EINVAL); a folder is IsADirectoryError.
    """
    # A regular file ignores O_NONBLOCK; a FIFO without a writer opens at once.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, "Is a directory" if number == errno.EISDIR else "Not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Return the content of a regular file.

    Args:
        path: The file; symbolic links are followed.
        max_bytes: Largest content.

    Raises:
        OSError: As `open_regular`, or the file is larger (EFBIG).
    """
    with open_regular(path) as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"More than {max_bytes:,} bytes", str(path))
    return content


@contextmanager
def writing_whole(folder: Path, data: bytes, is_durable: bool = True) -> Iterator[Path]:
    """Yield a new file with this content, to be renamed into place; removed if it was not.

    Its name is random: processes of several containers or machines may have the same number.

    Args:
        folder: Existing folder on the file system of the final place.
        data: Content.
        is_durable: True if it must outlive a power cut.

    Raises:
        OSError: The system refuses to write.
    """
    descriptor, name = tempfile.mkstemp(prefix=".", dir=folder)
    scratch = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            if is_durable:
                stream.flush()
                os.fsync(stream.fileno())
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


def count_disk_bytes(status: os.stat_result) -> int:
    """Return what a file takes on the disk, whole blocks: a thousand files of one byte take megabytes."""
    blocks = -(-status.st_size // _BLOCK_BYTES) * _BLOCK_BYTES
    return max(blocks, status.st_blocks * 512)
