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

    The file is read anew when it changes; what cannot be read leaves the keys as they were.
    """

    def __init__(self, file: Path) -> None:
        """Read the keys.

        Raises:
            StartError: The file cannot be read, has no key, or one that is too short to be a secret.
        """
        self._file = file
        self._signature = self._read_signature()
        self._hashes = self._read_hashes()

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
            self._hashes = self._read_hashes()
            logger.info("%s: %d keys", self._file, len(self._hashes))
        except StartError as error:
            logger.warning("the API keys stay as they were: %s", error)

    def _read_signature(self) -> tuple[int, int]:
        try:
            status = self._file.stat()
        except OSError:
            return (0, 0)
        return (status.st_mtime_ns, status.st_ino)

    def _read_hashes(self) -> tuple[bytes, ...]:
        try:
            lines = [line.strip() for line in self._file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise StartError(f"the API keys in {self._file} cannot be read: {error}") from error
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise StartError(f"{self._file} has no API key; write one per line, e.g. from `openssl rand -hex 32`")
        short = [number for number, key in enumerate(keys, start=1) if len(key) < MIN_KEY_CHARACTERS]
        if short:
            raise StartError(
                f"key {short[0]} of {self._file} has fewer than {MIN_KEY_CHARACTERS} characters; "
                "write one per line, e.g. from `openssl rand -hex 32`"
            )
        return tuple(_hash(key) for key in keys)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
