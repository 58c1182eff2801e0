"""API keys: who may call the service, where not everybody may."""

import hashlib
import hmac
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from starlette.datastructures import Headers

from serving.errors import StartError, UnauthorizedError
from serving.regular_files import open_regular

MIN_KEY_CHARACTERS = 16
MAX_FILE_BYTES = 1_000_000
# A change this soon after the one that was read may have the same time stamps: the file is read again.
_SETTLING_S = 2.0
# As long as a file that looks the same may have changed, or cannot be read, it is read this often at most.
_REREAD_S = 0.1
_Signature = tuple[int, int, int, int, int]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Reading:
    """Outcome of one attempt to read the file.

    Attributes:
        hashes: SHA-256 of each key; empty after a failure.
        signature: Status of the file that was read; None if it could not even be looked at.
        is_settled: True if a file of the same status has the same content.
        problem: Why no key is accepted; empty if keys are.
        read_s: Time of the attempt, `time.monotonic`.
    """

    hashes: tuple[bytes, ...] = ()
    signature: _Signature | None = None
    is_settled: bool = False
    problem: str = ""
    read_s: float = field(default_factory=time.monotonic)


class ApiKeys:
    """The keys of a file: one per line, except blank lines and those that start with #.

    The file is read again when its status changes, and ten times a second as long as the last attempt failed or the
    file was just written. A key is accepted only if it is in the file as it is now: without a readable file, or with a
    bad key in it, nobody enters.
    """

    def __init__(self, file: Path) -> None:
        """Read the keys.

        Raises:
            StartError: The file cannot be read, has no key, or one that is too short to be a secret.
        """
        self._file = file
        # One assignment replaces it: several threads may ask.
        self._reading = self._read()
        if self._reading.problem:
            raise StartError(self._reading.problem)

    @property
    def problem(self) -> str:
        """Why nobody enters at this moment; empty if somebody does."""
        return self._refresh().problem

    def check(self, headers: Headers) -> None:
        """Look for a key in `Authorization: Bearer KEY` or `X-API-Key: KEY`.

        How long the comparison takes does not depend on how much of a key is right.

        Raises:
            UnauthorizedError: The key is missing, is not in the file, or the file cannot be read.
        """
        reading = self._refresh()
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (credentials.strip() if scheme.lower() == "bearer" else "")
        if not given:
            raise UnauthorizedError("this service wants a key: send `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        if reading.problem:
            raise UnauthorizedError("no key is accepted at the moment; who runs the service must mend its file of keys")
        given_hash = _hash(given)
        if not sum(hmac.compare_digest(given_hash, known) for known in reading.hashes):
            raise UnauthorizedError("the key is not one of this service's; ask who runs it for one")

    def _refresh(self) -> _Reading:
        before = self._reading
        is_recent = time.monotonic() - before.read_s < _REREAD_S
        if (before.is_settled or is_recent) and before.signature == self._find_signature():
            return before
        reading = self._read()
        if reading.problem and reading.problem != before.problem:
            logger.warning("no API key is accepted until this is mended: %s", reading.problem)
        elif not reading.problem and (before.problem or reading.hashes != before.hashes):
            logger.info("%s: keys that are accepted: %d", self._file, len(reading.hashes))
        self._reading = reading
        return reading

    def _find_signature(self) -> _Signature | None:
        try:
            return _sign(self._file.stat())
        except OSError:
            return None

    def _read(self) -> _Reading:
        try:
            with open_regular(self._file) as stream:
                status = os.fstat(stream.fileno())
                content = stream.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            problem = f"the API keys in {self._file} cannot be read: {error.strerror or error}"
            return _Reading(signature=self._find_signature(), problem=problem)
        # Only the kernel sets this time; one in the future is of a clock that was put back, and is not given again.
        signature, is_settled = _sign(status), abs(time.time() - status.st_ctime) > _SETTLING_S
        if len(content) > MAX_FILE_BYTES:
            problem = f"{self._file} has more than {MAX_FILE_BYTES:,} bytes; give a file of API keys"
            return _Reading((), signature, is_settled, problem)
        try:
            hashes = _hash_keys(self._file, content.decode("utf-8", "surrogateescape").splitlines())
        except StartError as error:
            return _Reading((), signature, is_settled, str(error))
        return _Reading(hashes, signature, is_settled)


def _sign(status: os.stat_result) -> _Signature:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _hash_keys(file: Path, lines: list[str]) -> tuple[bytes, ...]:
    keys = [key for line in lines if (key := line.strip()) and not key.startswith("#")]
    if not keys:
        raise StartError(f"{file} has no API key; write one per line, e.g. from `openssl rand -hex 32`")
    for number, key in enumerate(keys, start=1):
        if len(key) < MIN_KEY_CHARACTERS or not (key.isascii() and key.isprintable()) or " " in key:
            raise StartError(
                f"key {number} of {file} is not {MIN_KEY_CHARACTERS} or more letters, digits and signs without spaces; "
                "write one per line, e.g. from `openssl rand -hex 32`"
            )
    return tuple(_hash(key) for key in keys)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
