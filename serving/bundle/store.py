"""A bundle: one folder with a model and its manifest, and the pointer that says which bundle is served.

    bundles/<name>/<16 digits of the models' sha256>-<8 of the run's id>[-<other precisions>]/
        manifest.json       what it is, with the sha256 of every other file (serving/bundle/manifest.py)
        model.onnx          fp32; model.fp16.onnx and model.int8.onnx where they are offered
        golden.npz          images_NHWC uint8, and the answers of each variant at its release: float32 [N, classes]
    bundles/<name>/champion.json        which bundle is served, its manifest's sha256, and the change that made it so
    bundles/<name>/challenger.json      which bundle gets shadow traffic, if one does

The export side writes bundles, the service reads them; both use this file only. Every write is atomic: a
folder is renamed into place when complete, and the pointer is replaced in one step.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.bundle.manifest import FILE_NAME, GOLDEN_FILE, Manifest
from serving.errors import BundleError
from serving.regular_files import open_regular, read_regular

if TYPE_CHECKING:  # `darkroom models` does not wait for numpy
    import numpy.typing as npt

MODEL_FILE = "model.onnx"  # of fp32
MANIFEST_FILE = "manifest.json"
_PIECE_BYTES = 1 << 20
POINTER_FILE = "champion.json"
CHALLENGER_FILE = "challenger.json"
# Aliases and tags of a registered version.
CHAMPION, CHALLENGER = "champion", "challenger"
# Of a challenger: the share of the requests that it answers.
SHARE_TAG = "canary_share"
BUNDLE_TAG, MANIFEST_TAG = "bundle", "manifest_sha256"


class Change(BaseModel):
    """One move of the alias `champion`, as the ledger keeps it.

    Attributes:
        number: Counted from 1 for each registered name.
        action: `promote` after a release, `rollback` to a version before.
        from_version: Champion before; None at the first release.
        to_version: Champion after.
        at: ISO 8601 time in UTC.
        by: User and host.
        why: Reason in a person's or the program's words, at most 1,000 characters.
        verdict: Of the gate, or what was checked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    action: Literal["promote", "rollback"]
    from_version: str | None
    to_version: str
    at: str
    by: str
    why: str = Field(max_length=1000)
    verdict: str


class BundleReference(BaseModel):
    """A bundle of a name, as it was registered.

    Attributes:
        version: Version in the registry, e.g. `3`.
        bundle: Name of the folder beside the pointer.
        manifest_sha256: SHA-256 of the bundle's manifest.json.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    bundle: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    manifest_sha256: str


class ChallengerReference(BundleReference):
    """Which bundle of a name gets shadow traffic and, as a canary, answers some requests.

    Attributes:
        share: Share of the requests that it answers in the champion's place, in [0, 1]; 0 for shadow traffic only.
        since: Begin with this share, ISO 8601 time in UTC; empty for shadow traffic only.
    """

    share: float = Field(0.0, ge=0, le=1)
    since: str = ""


class Pointer(BundleReference):
    """Which bundle of a name is served.

    Attributes:
        change: Change that made it the champion.
    """

    change: Change


def hash_file(path: Path, on_progress: Callable[[], None] = lambda: None) -> str:
    """Return the sha256 of a file, lower-case hexadecimal.

    Args:
        path: The file.
        on_progress: Called after each piece that was read.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            on_progress()
    return digest.hexdigest()


def name_file(precision: str) -> str:
    """Return the name of a variant's file in a bundle."""
    return MODEL_FILE if precision == "fp32" else f"model.{precision}.onnx"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json beside the files that it describes."""
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def write_bundle(
    bundles_dir: Path, source: Path, trusted: Collection[str] = (), folder_name: str | None = None
) -> Path:
    """Copy a bundle from `source` into `bundles_dir/<name>/` and return its folder.

    A bundle of the same model of the same run with the same variants that is there is kept if it is intact and its
    manifest is trusted; else it is replaced. One process at a time may write bundles of a name; what a killed one left
    behind is removed.

    Args:
        bundles_dir: Folder of the bundles.
        source: Folder with manifest.json and the files that it names.
        trusted: sha256 of manifests that are known from outside of the folder.
        folder_name: Of a bundle that was registered under it; `name_bundle` of its manifest when None.

    Raises:
        BundleError: A file of `source` is not the one that the manifest describes.
        OSError: The disk is full or not writable; no half-written bundle stays.
    """
    manifest = read_bundle(source)
    parent = bundles_dir / manifest.name
    parent.mkdir(parents=True, exist_ok=True)
    for stale in parent.glob(".new-*"):
        shutil.rmtree(stale)
    folder = parent / (folder_name or name_bundle(manifest))
    if _is_intact(folder, trusted):
        return folder
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
    try:
        for name in (MANIFEST_FILE, *manifest.files):
            shutil.copyfile(source / name, scratch / name)
        scratch.chmod(0o755)
        for file in scratch.iterdir():
            flush(file)
        flush(scratch)
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
        flush(parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def name_bundle(manifest: Manifest) -> str:
    """Return the name of a manifest's folder: the same for the same models of the same run, whatever was measured."""
    others = [variant.precision for variant in manifest.offered if variant.precision != "fp32"]
    models = "".join(variant.sha256 for variant in manifest.offered)
    sha256 = hashlib.sha256(models.encode()).hexdigest() if others else models
    return "-".join([sha256[:16], manifest.run_id[:8], *others])


def _is_intact(folder: Path, trusted: Collection[str]) -> bool:
    """Whether a folder holds what was registered; it may be served at this moment, so it is not touched."""
    try:
        return hash_file(folder / MANIFEST_FILE) in trusted and bool(read_bundle(folder))
    except (BundleError, OSError):
        return False


def read_bundle(
    folder: Path, manifest_sha256: str | None = None, on_progress: Callable[[], None] = lambda: None
) -> Manifest:
    """Read a bundle's manifest and check every file against it.

    Args:
        folder: The bundle.
        manifest_sha256: What manifest.json must have, where it is known from outside of the folder.
        on_progress: Called after each piece that was read.

    Raises:
        BundleError: A file is missing, the manifest is not valid, or a sha256 differs.
    """
    manifest_file = folder / MANIFEST_FILE
    try:
        text = read_regular(manifest_file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{folder} is not a bundle: {MANIFEST_FILE} is missing; release the model again") from error
    except OSError as error:
        raise BundleError(f"{manifest_file} cannot be read: {error.strerror or error}") from error
    found_sha256 = hashlib.sha256(text).hexdigest()
    if manifest_sha256 not in (None, found_sha256):
        raise _changed(manifest_file, found_sha256, str(manifest_sha256), "registered")
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(
            f"{manifest_file} is not a manifest of this version: {where} {first['msg']}; release the model again: "
            f"`darkroom release RECIPE --as {folder.parent.name}`"
        ) from error
    for name, sha256 in manifest.files.items():
        if not (folder / name).is_file():
            raise BundleError(f"{folder} is not a bundle: {name} is missing; release the model again")
        try:
            found = hash_file(folder / name, on_progress)
        except OSError as error:
            raise BundleError(f"{folder / name} cannot be read: {error.strerror or error}") from error
        if found != sha256:
            raise _changed(folder / name, found, sha256, "manifest")
    return manifest


def _changed(file: Path, found: str, expected: str, where: str) -> BundleError:
    return BundleError(
        f"{file} was changed after its release: sha256 {found[:12]}…, {where} {expected[:12]}…; "
        "`darkroom rollback NAME --to VERSION` fetches it from the registry"
    )


def read_golden(folder: Path, manifest: Manifest) -> "dict[str, npt.NDArray[Any]]":
    """Return `images_NHWC`, uint8, and each variant's answers by its precision; nothing for a bundle without them.

    Raises:
        BundleError: Images, or the answers of a variant that is offered, are missing.
    """
    import numpy as np

    if manifest.golden_sha256 is None:
        return {}
    file = folder / GOLDEN_FILE
    try:
        with open_regular(file) as stream, np.load(stream, allow_pickle=False) as arrays:
            golden = dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BundleError(f"{file} cannot be read: {error}; release the model again") from error
    missing = {"images_NHWC", *(variant.precision for variant in manifest.offered)}.difference(golden)
    if missing:
        raise BundleError(f"{file} lacks {', '.join(sorted(missing))}; release the model again")
    return golden


def read_champion(bundles_dir: Path, name: str) -> tuple[Pointer, Path, Manifest]:
    """Read the pointer of `name` and check the bundle that it means; its folder comes back between the two.

    Raises:
        BundleError: Nothing is released under that name, or pointer or bundle are damaged.
    """
    pointer = read_pointer(bundles_dir, name)
    folder = bundles_dir / name / pointer.bundle
    return pointer, folder, read_bundle(folder, pointer.manifest_sha256)


def read_pointer(bundles_dir: Path, name: str) -> Pointer:
    """Read which bundle of `name` is served.

    Raises:
        BundleError: Nothing is released under that name, or the pointer is damaged.
    """
    file, again = bundles_dir / name / POINTER_FILE, f"`darkroom release RECIPE --as {name}`"
    text = _read_reference(file, f"no model is released as {name}; run {again}")
    try:
        return Pointer.model_validate_json(text)
    except ValidationError as error:
        if _is_reference(text):
            # Its champion cannot be compared with, and no registry knows the change that it lacks.
            forced = f"{again[:-1]} --mode forced --why REASON`"
            raise BundleError(f"{file} was written by an earlier version; {forced} releases a model anew") from error
        raise BundleError(f"{file} is damaged; `darkroom history {name}` writes it anew") from error


def read_challenger(bundles_dir: Path, name: str) -> ChallengerReference:
    """Read which bundle of `name` gets shadow traffic, and the share of the requests that it answers.

    Raises:
        BundleError: There is none, or its pointer is damaged.
    """
    file, again = bundles_dir / name / CHALLENGER_FILE, f"`darkroom challenge {name} VERSION`"
    canary = f"`darkroom canary {name} VERSION --share 0.1` sets one that answers requests"
    text = _read_reference(file, f"{name} has no challenger; {again} sets one, {canary}")
    try:
        return ChallengerReference.model_validate_json(text)
    except ValidationError as error:
        raise BundleError(f"{file} is damaged; {again} writes it anew") from error


def _read_reference(file: Path, missing: str) -> bytes:
    try:
        return read_regular(file)
    except FileNotFoundError as error:
        raise BundleError(missing) from error
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror or error}; remove or mend it") from error


def _is_reference(text: bytes) -> bool:
    """Whether a pointer names a bundle, in any version's way."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, dict) and isinstance(found.get("bundle"), str) and "change" not in found


def write_pointer(bundles_dir: Path, name: str, pointer: Pointer) -> None:
    """Point `name` at a bundle, in one atomic step."""
    _write_json(bundles_dir / name / POINTER_FILE, pointer)


def write_challenger(bundles_dir: Path, name: str, challenger: ChallengerReference | None) -> None:
    """Set which bundle gets shadow traffic, in one atomic step; None for no one."""
    file = bundles_dir / name / CHALLENGER_FILE
    if challenger is None:
        file.unlink(missing_ok=True)
    else:
        _write_json(file, challenger)


def _write_json(file: Path, content: BaseModel) -> None:
    descriptor, scratch = tempfile.mkstemp(prefix=".pointer-", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            # Services of earlier versions refuse fields that they do not know.
            json.dump(content.model_dump(exclude_defaults=True), stream)
        Path(scratch).chmod(0o644)
        flush(Path(scratch))
        Path(scratch).replace(file)
        flush(file.parent)
    finally:
        Path(scratch).unlink(missing_ok=True)


def list_released(bundles_dir: Path) -> list[str]:
    """Return the names that have a pointer, sorted; a folder that no release can have made is passed over."""
    names = (file.parent.name for file in bundles_dir.glob(f"*/{POINTER_FILE}"))
    return sorted(name for name in names if re.fullmatch(FILE_NAME, name))


def flush(file: Path) -> None:
    """Make a file's content, or the names in a folder, durable."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
