"""Packs: complete offline runs as files that can be carried, cut into parts of a size.

<run>.pack.json             the manifest, written last: what is in it, with sizes and SHA-256
<run>.001-of-004.part ...   the files of the run's folder, one after another
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_code.disk import write_atomically, writing_to
from model_code.errors import ChecksumError, DataError, UsageError

MANIFEST_SUFFIX, PART_SUFFIX = ".pack.json", ".part"
ANSWERS_FILE = "answers.json"
SMALLEST_PART, LARGEST_PART = 4096, 2**31
_UNITS = {"": 1, "B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_CHUNK = 2**20
# What a run's folder holds; nothing else is written on the other side.
_NAME = r"^(run\.json|result\.json|journal\.jsonl|answers\.json|[\w-]+\.safetensors|artifacts(/[\w-][\w.-]*)+)$"

Weights = Literal["best", "all", "none"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Piece(_Frozen):
    """A part of a pack, or a file in it.

    Attributes:
        name: File name; of a file in the pack its path in the run's folder.
        size_bytes: Its size.
        sha256: Of its content.
    """

    name: str
    size_bytes: int = Field(ge=0)
    sha256: Sha256


class PackedFile(Piece):
    """A file of the run's folder."""

    name: Annotated[str, Field(pattern=_NAME)]


class Pack(_Frozen):
    """Manifest of a pack.

    Attributes:
        format: Of the manifest.
        run_id: The run, by its name where it was trained.
        config_sha256: Of its config.
        data_checksum: Of its packed images.
        sources_sha256: SHA-256 of the code that trained it; None if the code was changed between training and packing.
        starts_from: Run whose weights it started from; None for none.
        weights: What of the weights is in it.
        files: Files of the run's folder, in order.
        parts: Parts, in order.
    """

    format: Literal[1] = 1
    run_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    config_sha256: Sha256
    data_checksum: str
    sources_sha256: Sha256 | None
    starts_from: str | None = None
    weights: Weights
    files: tuple[PackedFile, ...] = ()
    parts: tuple[Piece, ...] = ()

    def seal(self) -> bytes:
        """Return the manifest's file: it and its own SHA-256."""
        body = self.model_dump_json()
        return f'{{"sha256":"{hashlib.sha256(body.encode()).hexdigest()}","pack":{body}}}\n'.encode()


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `15MiB` or `60MB`.

    Raises:
        UsageError: It is no size, or no part can have it.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMG]?i?B|)", text)
    if found is None or found[2] not in _UNITS:
        raise UsageError(f"--part-size {text}: give a number and one of {', '.join(filter(None, _UNITS))}: 15MiB")
    size = int(float(found[1]) * _UNITS[found[2]])
    if not SMALLEST_PART <= size <= LARGEST_PART:
        raise UsageError(f"--part-size {text}: a part has {SMALLEST_PART} to {LARGEST_PART} bytes")
    return size


def write_pack(pack: Pack, files: Mapping[str, Path], out: Path, part_bytes: int) -> Pack:
    """Write a run's files in parts, and last the manifest; an older pack of the run is replaced.

    Args:
        pack: Manifest without files and parts.
        files: Path in the pack -> file.
        out: Folder of the pack.
        part_bytes: Size of each part but the last.

    Returns:
        The whole manifest.
    """
    manifest = out / f"{pack.run_id}{MANIFEST_SUFFIX}"
    with writing_to(out, 0, f"packing run {pack.run_id}"):
        manifest.unlink(missing_ok=True)
    total = sum(file.stat().st_size for file in files.values())
    count = max(1, -(-total // part_bytes))
    packed: list[PackedFile] = []
    parts: list[Piece] = []
    buffer = bytearray()

    def write_part(content: bytes) -> None:
        name = f"{pack.run_id}.{len(parts) + 1:03}-of-{count:03}{PART_SUFFIX}"
        write_atomically(out / name, content)
        parts.append(Piece(name=name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()))

    for name, file in files.items():
        digest, size = hashlib.sha256(), 0
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                buffer += chunk
                while len(buffer) > part_bytes:
                    write_part(bytes(buffer[:part_bytes]))
                    del buffer[:part_bytes]
        packed.append(PackedFile(name=name, size_bytes=size, sha256=digest.hexdigest()))
    write_part(bytes(buffer))
    for old in set(out.glob(f"{pack.run_id}.*{PART_SUFFIX}")) - {out / part.name for part in parts}:
        old.unlink()
    whole = pack.model_copy(update={"files": tuple(packed), "parts": tuple(parts)})
    write_atomically(manifest, whole.seal())
    return whole


def find_packs(paths: Iterable[Path]) -> tuple[list[Pack], list[str], dict[str, list[Path]]]:
    """Return the packs in folders and files, what is wrong with others, and every copy of each part by its name.

    The parts of a pack may be in several of the places, or beside its manifest.

    Raises:
        UsageError: A path does not exist, or there is nothing of a pack in any.
    """
    files: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"no such file or folder: {path}; give what `darkroom runs pack` wrote")
        run = path.name.removesuffix(MANIFEST_SUFFIX)
        beside = path.parent.glob(f"{run}.*{PART_SUFFIX}") if run != path.name else ()
        files |= dict.fromkeys(sorted(path.iterdir()) if path.is_dir() else [path, *beside])
    parts: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        if file.name.endswith(PART_SUFFIX):
            parts[file.name].append(file)
    packs: dict[str, Pack] = {}
    problems = []
    for file in (file for file in files if file.name.endswith(MANIFEST_SUFFIX)):
        try:
            pack = _read_manifest(file)
        except DataError as error:
            problems.append(str(error))
        else:
            packs[pack.run_id] = pack
    named = {file.name.removesuffix(MANIFEST_SUFFIX) for file in files}
    problems += [
        f"the parts of run {run_id} came without {run_id}{MANIFEST_SUFFIX}: bring it too, and repeat the command"
        for run_id in sorted({name.partition(".")[0] for name in parts} - named)
    ]
    if not packs and not problems:
        raise UsageError(f"no pack in {', '.join(map(str, paths))}; give what `darkroom runs pack` wrote")
    return list(packs.values()), problems, parts


def unpack(pack: Pack, parts: Mapping[str, Sequence[Path]], folder: Path) -> None:
    """Write the files of a pack into an empty folder; every part and every file is verified.

    Of several copies of a part one has to be right.

    Raises:
        DataError: Parts are missing.
        ChecksumError: A part is damaged, or of another pack.
    """
    if missing := [part.name for part in pack.parts if part.name not in parts]:
        are = "is" if len(missing) == 1 else "are"
        raise DataError(
            f"run {pack.run_id}: {len(missing)} of {len(pack.parts)} parts {are} missing ({_name_some(missing)}); "
            "bring them from the machine that packed it, and repeat the command"
        )
    content = _Content(_read_parts(pack, parts))
    for file in pack.files:
        target = folder / file.name
        with writing_to(folder, file.size_bytes, f"unpacking run {pack.run_id}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            with target.open("wb") as stream:
                for chunk in content.take(file.size_bytes):
                    digest.update(chunk)
                    stream.write(chunk)
        if digest.hexdigest() != file.sha256:
            raise ChecksumError(f"run {pack.run_id}: {file.name} is not what was packed; pack the run again")


class _Content:
    """The parts as one stream of bytes."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def take(self, size: int) -> Iterator[bytes]:
        """Yield the next bytes; fewer if there are no more."""
        while size > 0 and (chunk := self._rest or next(self._chunks, b"")):
            yield chunk[:size]
            self._rest = chunk[size:]
            size -= len(chunk[:size])


def _read_parts(pack: Pack, parts: Mapping[str, Sequence[Path]]) -> Iterator[bytes]:
    for part in pack.parts:
        for file in parts[part.name]:
            content = file.read_bytes()
            if hashlib.sha256(content).hexdigest() == part.sha256:
                yield content
                break
        else:
            size = "" if len(content) == part.size_bytes else f" ({len(content)} bytes, not {part.size_bytes})"
            raise ChecksumError(
                f"run {pack.run_id}: {file} is damaged or of another pack{size}; bring it again from the machine that "
                "packed the run, and repeat the command"
            )


def _read_manifest(file: Path) -> Pack:
    damaged = f"{file} is damaged or of another version: bring it again, or pack the run again"
    found = re.fullmatch(rb'\{"sha256":"([0-9a-f]{64})","pack":(.*)\}\n', file.read_bytes(), re.DOTALL)
    if found is None or hashlib.sha256(found[2]).hexdigest() != found[1].decode():
        raise ChecksumError(damaged)
    try:
        return Pack.model_validate_json(found[2])
    except ValidationError as error:
        raise DataError(damaged) from error


def _name_some(names: Collection[str]) -> str:
    shown = list(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
