"""Files that machines without a common disk exchange: in S3, another object store, or a folder, below one address."""

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from model_code.errors import StorageError, UsageError, first_line
from serving.bundle.store import hash_file

MANIFEST_FILE = "manifest.json"  # names the other files of a folder; written last
_CHUNK_BYTES = 8_000_000
_UNFINISHED = ".unfinished-"
_Model = TypeVar("_Model", bound=BaseModel)
# Path of a file below a folder.
PlainPath = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w-]*(\.[\w-]+)*(/[A-Za-z0-9][\w-]*(\.[\w-]+)*)*$")]


class StoredFile(BaseModel):
    """A file in a storage; it is never changed.

    Attributes:
        stored_as: Its name there.
        sha256: SHA-256 of its content, hexadecimal.
        size_bytes: Its size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stored_as: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(ge=0)]


class Storage:
    """Files below an address; names have slashes between their parts, and a killed process leaves no part of a file.

    Credentials, region and, for a server of one's own, AWS_ENDPOINT_URL come from the environment, as with every client
    of S3.

    Args:
        address: `s3://BUCKET/FOLDER`, or another that pyarrow knows: `gs://...`, `file:///FOLDER`.

    Raises:
        UsageError: Nothing can be stored at such an address.
    """

    def __init__(self, address: str) -> None:
        from pyarrow import fs  # takes a while, and most homes have no storage

        self.address = address.rstrip("/")
        try:
            if urlsplit(address).password is not None:
                raise UsageError("DARKROOM_STORAGE has credentials in its address; keep them in the environment")
            self._files, self._root = fs.FileSystem.from_uri(address)
            if not self._root.strip("/"):
                raise ValueError("no bucket and no folder")
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(
                f"DARKROOM_STORAGE={address}: {first_line(error)}; give s3://BUCKET/FOLDER, or file:///FOLDER on a "
                "disk that all machines mount"
            ) from error
        except OSError as error:
            raise StorageError(f"{address}: {first_line(error)}") from error
        self._is_folder = isinstance(self._files, fs.LocalFileSystem)
        self._selector, self._types = fs.FileSelector, fs.FileType

    def check(self) -> None:
        """Write a file, read it and remove it.

        Raises:
            StorageError: One of these is refused.
        """
        name = f"check-{uuid.uuid4().hex}"
        self.write(name, b"darkroom")
        if self.read(name) != b"darkroom":
            raise StorageError(f"{self.address} does not give back what was written")
        self.remove(name)

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None where it is not there."""
        with self._naming(f"reading {name}"):
            try:
                stream = self._files.open_input_stream(self._place(name))
            except FileNotFoundError:
                return None
            with stream:
                return bytes(stream.read())

    def read_json(self, name: str, kind: type[_Model]) -> _Model | None:
        """Return the content of a JSON file; None where it is not there.

        Raises:
            ValidationError: It has another content.
        """
        content = self.read(name)
        return None if content is None else kind.model_validate_json(content)

    def write(self, name: str, content: bytes) -> None:
        """Write a file, or replace it."""
        self._write(name, lambda write: write(content))

    def store(self, file: Path, folder: str, advance: Callable[[int], None] = lambda _: None) -> StoredFile:
        """Copy a file of this machine into a folder of the storage, under a new name.

        Args:
            file: The file, which nobody writes to.
            folder: The folder.
            advance: Called with the number of bytes sent since its last call.
        """
        stored = StoredFile(stored_as=uuid.uuid4().hex, sha256=hash_file(file), size_bytes=file.stat().st_size)

        def send(write: Callable[[bytes], object]) -> None:
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    write(chunk)
                    advance(len(chunk))

        self._write(f"{folder}/{stored.stored_as}", send)
        return stored

    def fetch(self, folder: str, files: Mapping[str, StoredFile], target: Path, advance: Callable[[int], None]) -> None:
        """Copy stored files to this machine.

        Args:
            folder: Their folder in the storage.
            files: Wanted files by their paths in `target`.
            target: A folder of this machine; made when missing.
            advance: Called with the number of bytes received since its last call.

        Raises:
            StorageError: A file is not there, cannot be read or is not what was stored.
            OSError: This machine cannot write.
        """
        for name, stored in files.items():
            place = f"{folder}/{stored.stored_as}"
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with (target / name).open("wb") as stream:
                for chunk in self._read_chunks(place):
                    stream.write(chunk)
                    advance(len(chunk))
                stream.flush()
                os.fsync(stream.fileno())
            if hash_file(target / name) != stored.sha256:
                raise StorageError(f"{self.address}/{place} ({name}) is not what was stored; remove {folder} there")

    def list_folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder, sorted; none where it is not there."""
        with self._naming(f"listing {folder}"):
            found = self._files.get_file_info(self._selector(self._place(folder), allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == self._types.Directory)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing happens where there is none."""
        place = self._place(name)
        with self._naming(f"removing {name}"), suppress(FileNotFoundError):  # another machine was faster
            kind = self._files.get_file_info(place).type
            if kind == self._types.File:
                self._files.delete_file(place)
            elif kind == self._types.Directory:
                self._files.delete_dir(place)

    def _read_chunks(self, name: str) -> Iterator[bytes]:
        with self._naming(f"reading {name}"):
            stream = self._files.open_input_stream(self._place(name))
        with stream:
            while True:
                with self._naming(f"reading {name}"):
                    chunk = stream.read(_CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk

    def _write(self, name: str, send: Callable[[Callable[[bytes], object]], object]) -> None:
        place = self._place(name)
        with self._naming(f"writing {name}"):
            if not self._is_folder:  # an object appears as a whole, at the end
                with self._files.open_output_stream(place) as stream:
                    send(stream.write)
                return
            folder, _, last = place.rpartition("/")
            unfinished = f"{folder}/{_UNFINISHED}{uuid.uuid4().hex}-{last}"
            self._files.create_dir(folder, recursive=True)
            with self._files.open_output_stream(unfinished) as stream:
                send(stream.write)
            self._files.move(unfinished, place)

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _naming(self, action: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.address}: {action}: {first_line(error)}") from error
