"""API keys: who may call the service, where not everybody may."""

import hashlib
import hmac
import logging
from pathlib import Path

from starlette.datastructures import Headers

from serving.errors import StartError, UnauthorizedError

MIN_KEY_CHARACTERS = 16

logger = logging.getLogger(__name__)


class ApiKeys:
    """The keys of a file: one per line, blank lines and those that start with # do not count.

    The file is read anew when it changes. While it cannot be read the keys stay as they were; one without a good key
    lets nobody in: who takes keys away must not find that they still work.
    """

    def __init__(self, file: Path) -> None:
        """Read the keys.

        Raises:
            StartError: The file cannot be read, has no key, or one that is too short to be a secret.
        """
        self._file = file
        self._signature = self._read_signature()
        try:
            self._hashes = _hash_keys(self._file, self._read_lines())
        except OSError as error:
            raise StartError(f"the API keys in {self._file} cannot be read: {error}") from error

    def check(self, headers: Headers) -> None:
        """Look for a key in `Authorization: Bearer KEY` or `X-API-Key: KEY`.

        How long the comparison takes does not depend on how much of a key is right.

        Raises:
            UnauthorizedError: There is none, or it is not one of the file's.
        """
        self._refresh()
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (credentials.strip() if scheme.lower() == "bearer" else "")
        if not given:
            raise UnauthorizedError("this service wants a key: send `Authorization: Bearer KEY`")
        given_hash = _hash(given)
        if not sum(hmac.compare_digest(given_hash, known) for known in self._hashes):
            raise UnauthorizedError("the key is not one of this service's; ask who runs it for one")

    def _refresh(self) -> None:
        signature = self._read_signature()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._hashes = _hash_keys(self._file, self._read_lines())
            logger.info("%s: %d keys", self._file, len(self._hashes))
        except OSError as error:
            logger.warning("the API keys stay as they were: %s cannot be read: %s", self._file, error)
        except StartError as error:
            self._hashes = ()
            logger.warning("no request is answered until this is mended: %s", error)

    def _read_signature(self) -> tuple[int, int]:
        try:
            status = self._file.stat()
        except OSError:
            return (0, 0)
        return (status.st_mtime_ns, status.st_ino)

    def _read_lines(self) -> list[str]:
        return self._file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()


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
