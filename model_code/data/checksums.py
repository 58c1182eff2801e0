"""Checksums of files that others publish."""

import hashlib
from pathlib import Path

from model_code.errors import ChecksumError, DataError


def compute_md5(path: Path) -> str:
    """Return the MD5 of a file, hexadecimal: what the publishers of data sets give.

    Raises:
        DataError: The file is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give a file that exists") from error


def check_md5(path: Path, expected_md5: str) -> None:
    """Compare a file with its published MD5.

    Raises:
        ChecksumError: It differs; the message gives both.
        DataError: The file is missing or cannot be read.
    """
    found_md5 = compute_md5(path)
    if found_md5 != expected_md5:
        raise ChecksumError(format_mismatch(path, found_md5, expected_md5))


def format_mismatch(path: Path, found_md5: str, expected_md5: str) -> str:
    """Return the one line that says that a file is not the published one."""
    return (
        f"{path} has md5 {found_md5}, the published file has {expected_md5}: it is truncated, damaged or "
        "another file; copy or download it again"
    )
