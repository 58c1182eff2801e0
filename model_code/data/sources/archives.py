"""Folders, zip and tar archives read alike: in place, nothing extracted, nothing outside them reached.

A name that leaves the archive (absolute, `..`) or appears twice, encryption and unknown compressions are refused by
name. Links in folders are followed; links to nothing, links in archives and devices are collected as problems. Hidden
files (names that begin with a dot, __MACOSX, Thumbs.db, desktop.ini) are passed over; hidden folders are listed.
"""

import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from model_code.errors import DataError

MAX_MEMBER_BYTES = 256 * 2**20
_HIDDEN_NAMES = {"__macosx", "thumbs.db", "desktop.ini"}
_TAR_BLOCK_BYTES = 512
# What the standard library raises on archives that are cut, damaged, encrypted or of a kind it does not know.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


# Methods that the standard library does not read, by their number in a zip.
_ZIP_METHODS = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd", 99: "AES encryption"}
_READ_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
_OTHER_ARCHIVES = {b"Rar!": "RAR", b"7z\xbc\xaf\x27\x1c": "7z", b"\x28\xb5\x2f\xfd": "Zstandard"}
_ENCRYPTED, _IS_UTF8 = 0x1, 0x800
_UNICODE_PATH = 0x7075
_UNKNOWN_ENCODING = "name in an encoding that the archive does not state (extract it and give the folder)"


@dataclass(frozen=True)
class Problem:
    """Something wrong in a source.

    Attributes:
        kind: Description of the fault, the same for all of a kind.
        name: The file or folder.
        can_skip: True if the source can be used without it.
    """

    kind: str
    name: str
    can_skip: bool = True


class Archive(ABC):
    """Files below one folder or inside one archive.

    Attributes:
        path: The folder or archive.
        files: Relative names with forward slashes, in the order in which reading them is fastest.
        folders: Names of the folders, those without a file too.
        problems: Members that cannot be read, and are left out of `files`.
        hidden: Names of the folders that begin with a dot, whose files are left out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: tuple[str, ...] = ()
        self.folders: frozenset[str] = frozenset()
        self.problems: list[Problem] = []
        self.hidden: set[str] = set()
        self._open_files = ExitStack()

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the bytes of one of `files`.

        Raises:
            DataError: The file is damaged, too large or cannot be read; the message names it.
        """

    def close(self) -> None:
        """Release the archive's file."""
        self._open_files.close()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _set_members(self, files: Mapping[str, object], folders: set[str]) -> None:
        parents = {name[: match.start()] for name in files for match in re.finditer("/", name)}
        self.files = tuple(files)
        self.folders = frozenset(folders | parents)

    def _is_passed_over(self, name: str, *, is_folder: bool) -> bool:
        """Return whether a member is hidden, and note the outermost hidden folder that it lies in."""
        parts = name.split("/")
        hidden = next((depth for depth, part in enumerate(parts) if _is_hidden(part)), None)
        if hidden is None:
            return False
        if parts[hidden].startswith(".") and (is_folder or hidden < len(parts) - 1):
            self.hidden.add("/".join(parts[: hidden + 1]))
        return True

    def _note(self, kind: str, name: str) -> None:
        self.problems.append(Problem(kind, f"{self.path.name}/{name}"))

    def _check_size(self, name: str, size_bytes: int) -> None:
        if size_bytes > MAX_MEMBER_BYTES:
            raise DataError(f"{self.path}: {name} has {size_bytes} bytes; at most {MAX_MEMBER_BYTES} are read per file")


def open_archive(path: Path) -> Archive:
    """Open a folder, zip or tar (plain, gz, bz2 or xz) and list what is in it.

    Raises:
        DataError: It is missing, damaged, none of these, or holds a name or a kind of file that is refused.
    """
    if not path.exists():
        raise DataError(f"no such file or folder: {path}; give a folder, a zip or a tar that exists")
    if path.is_dir():
        return FolderArchive(path)
    with naming_damage(path), path.open("rb") as file:
        magic = file.read(265)
    if magic.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return ZipArchive(path)
    if magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")) or magic[257:262] == b"ustar":
        return TarArchive(path)
    if kind := next((kind for start, kind in _OTHER_ARCHIVES.items() if magic.startswith(start)), None):
        raise DataError(f"{path} is a {kind} archive, which is not read; extract it and give the folder")
    if magic.startswith(b"PAR1"):
        raise DataError(f"{path} is a Parquet file; give the folder that holds it")
    if path.suffix.lower() in (".zip", ".tar", ".tgz", ".gz"):
        raise _damaged(path, "it does not begin like one")
    raise DataError(f"{path} is neither a folder nor a zip nor a tar archive; give one of these")


class FolderArchive(Archive):
    """A folder on disk. Links are followed, those to folders last: one that leads to a folder read already is not."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        files: dict[str, None] = {}
        folders: set[str] = set()
        self._linked: deque[tuple[Path, str]] = deque()
        self._seen: set[tuple[int, int]] = set()
        with naming_damage(path):
            self._walk(path, "", files, folders)
            while self._linked:
                folder, name = self._linked.popleft()
                folders.add(name)
                self._walk(folder, f"{name}/", files, folders)
        self._set_members(files, folders)

    def _walk(self, folder: Path, prefix: str, files: dict[str, None], folders: set[str]) -> None:
        status = folder.stat()
        place = status.st_dev, status.st_ino
        if place in self._seen:
            self._note("folder that was read already, under another name", prefix.rstrip("/"))
            folders.discard(prefix.rstrip("/"))
            return
        self._seen.add(place)
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        for entry in entries:
            name = prefix + entry.name
            if self._is_passed_over(name, is_folder=entry.is_dir(follow_symlinks=False)):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.add(name)
                self._walk(Path(entry.path), f"{name}/", files, folders)
            elif entry.is_symlink() and not Path(entry.path).exists():
                self._note("link whose target is missing", name)
            elif entry.is_dir():
                self._linked.append((Path(entry.path), name))
            elif entry.is_file():
                files[name] = None
            else:
                self._note("device or pipe", name)

    def read(self, name: str) -> bytes:
        """Return the bytes of one file."""
        file = self.path / name
        with naming_damage(file):
            self._check_size(name, file.stat().st_size)
            return file.read_bytes()


class ZipArchive(Archive):
    """A zip archive."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._infos: dict[str, zipfile.ZipInfo] = {}
        folders: set[str] = set()
        with naming_damage(path), ExitStack() as stack:
            self._zip = stack.enter_context(zipfile.ZipFile(path))
            for info in sorted(self._zip.infolist(), key=lambda info: info.header_offset):
                self._add(info, folders)
            self._open_files = stack.pop_all()
        self._set_members(self._infos, folders)

    def _add(self, info: zipfile.ZipInfo, folders: set[str]) -> None:
        decoded = _decode_name(info)
        if decoded is None:
            self._note(_UNKNOWN_ENCODING, _get_raw_name(info).decode(errors="backslashreplace"))
            return
        name = _check_name(self.path, decoded)
        if not name or self._is_passed_over(name, is_folder=info.is_dir()):
            return
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            self._note("link or device in an archive", name)
            return
        if info.flag_bits & _ENCRYPTED:
            raise _unreadable(self.path, name, "is encrypted")
        if info.compress_type not in _READ_METHODS:
            method = _ZIP_METHODS.get(info.compress_type, "another method than Deflate")
            raise _unreadable(self.path, name, f"is compressed with {method} ({info.compress_type})")
        if info.is_dir():
            folders.add(name)
        elif name in self._infos:
            raise _refused(self.path, name, "there twice")
        else:
            self._infos[name] = info

    def read(self, name: str) -> bytes:
        """Return the bytes of one member; its CRC is checked."""
        self._check_size(name, self._infos[name].file_size)
        with naming_damage(self.path, name):
            return self._zip.read(self._infos[name])


class TarArchive(Archive):
    """A tar archive; read members in the order of `files`, since a compressed one only runs forward."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._infos: dict[str, tarfile.TarInfo] = {}
        folders: set[str] = set()
        with naming_damage(path), ExitStack() as stack:
            self._tar = stack.enter_context(tarfile.open(path, "r:*"))
            for info in self._tar:
                self._add(info, folders)
            self._check_end()
            self._open_files = stack.pop_all()
        self._set_members(self._infos, folders)

    def _add(self, info: tarfile.TarInfo, folders: set[str]) -> None:
        name = _check_name(self.path, info.name)
        if not name or self._is_passed_over(name, is_folder=info.isdir()):
            return
        if not (info.isreg() or info.isdir()):
            self._note("link or device in an archive", name)
            return
        if info.isdir():
            folders.add(name)
        elif name in self._infos:
            raise _refused(self.path, name, "there twice")
        else:
            self._infos[name] = info

    def _check_end(self) -> None:
        """Find the block of zeros that closes a tar; the standard library misses a cut before a header."""
        file = self._tar.fileobj
        if file is None:
            raise _damaged(self.path, "it has no content")
        file.seek(self._tar.offset)
        if file.read(_TAR_BLOCK_BYTES) != bytes(_TAR_BLOCK_BYTES):
            raise _damaged(self.path, "its end is missing")
        while file.read(2**20):  # the checksum of a compressed tar stands behind its last byte
            pass

    def read(self, name: str) -> bytes:
        """Return the bytes of one member."""
        self._check_size(name, self._infos[name].size)
        with naming_damage(self.path, name):
            file = self._tar.extractfile(self._infos[name])
            if file is None:
                raise _refused(self.path, name, "not a plain file")
            return file.read()


def _decode_name(info: zipfile.ZipInfo) -> str | None:
    """Return a member's name; None where its folder is not in UTF-8 and the archive does not say in what.

    Without the flag that says UTF-8 the library takes it for code page 437, whatever the computer used that wrote it.
    A file's own name names no class: its bytes are kept.
    """
    if info.flag_bits & _IS_UTF8:
        return info.filename
    raw = _get_raw_name(info)
    if (stated := _read_unicode_path(info.extra, raw)) is not None:
        return stated
    try:
        raw.rpartition(b"/")[0].decode()
    except UnicodeDecodeError:
        return None
    return raw.decode(errors="surrogateescape")


def _get_raw_name(info: zipfile.ZipInfo) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & _IS_UTF8 else "cp437")


def _read_unicode_path(extra: bytes, raw: bytes) -> str | None:
    """Return the name in Info-ZIP's Unicode Path Extra Field, if there is one for these bytes."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == _UNICODE_PATH and size > 5 and extra[4:9] == struct.pack("<BI", 1, zlib.crc32(raw)):
            with suppress(UnicodeDecodeError):
                return extra[9 : 4 + size].decode()
        extra = extra[4 + size :]
    return None


def _unreadable(path: Path, name: str, why: str) -> DataError:
    return DataError(f"{path}: {name!r} {why}, which is not read; extract the archive and give the folder")


def _check_name(path: Path, raw_name: str) -> str:
    name = raw_name.replace("\\", "/")
    parts = name.split("/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in parts or "\0" in name:
        raise _refused(path, raw_name, "outside of the archive")
    return "/".join(part for part in parts if part not in ("", "."))


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part.lower() in _HIDDEN_NAMES


def _refused(path: Path, name: str, why: str) -> DataError:
    return DataError(
        f"{path}: {name!r} is {why}; only plain files and folders with names inside of it are read: remove it"
    )


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is truncated or damaged ({why}); copy or download it again")


@contextmanager
def naming_damage(path: Path, member: str = "") -> Iterator[None]:
    """Turn what reading a damaged or forbidden file raises into a DataError that names the file."""
    try:
        yield
    except PermissionError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; change its permissions") from error
    except _DAMAGE as error:
        where = f"{member}: " if member else ""
        raise _damaged(path, f"{where}{error or type(error).__name__}") from error
