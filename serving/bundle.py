"""A bundle: one folder with model.onnx and manifest.json, and the pointer that says which bundle is served.

    bundles/<name>/<16 digits of model.onnx's sha256>-<8 of the run's id>/model.onnx, manifest.json
    bundles/<name>/champion.json        {"version": "3", "bundle": "<folder>"}

The export side writes bundles, the service reads them; both use this file only. Every write is atomic: a
folder is renamed into place when complete, and the pointer is replaced in one step.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.errors import BundleError

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
POINTER_FILE = "champion.json"


class Manifest(BaseModel):
    """What a served model is, where it came from, and the proof that it equals what was trained.

    Attributes:
        name: Registered name, e.g. `cifar10`.
        classes: Labels in the order of the network's outputs.
        image_size: Height and width that the network reads, pixels.
        resize_size: Short side before the centre crop, pixels.
        precision: `fp32`, later `fp16` or `int8`.
        opset: ONNX operator set.
        sha256: Of model.onnx, lower-case hexadecimal.
        size_bytes: Of model.onnx.
        recipe: Recipe that trained it.
        run_id: MLflow run that trained it.
        accuracy_fraction: Test accuracy of the trained network, in [0, 1]; None if it had no test pictures.
        parity: Measured difference between onnxruntime and PyTorch (see `model_code/export/parity.py`).
        versions: Library versions that made it.
        created: ISO 8601 time in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    name: str
    classes: tuple[str, ...]
    image_size: int
    resize_size: int
    precision: str
    opset: int
    sha256: str
    size_bytes: int
    recipe: str
    run_id: str
    accuracy_fraction: float | None
    parity: dict[str, Any]
    versions: dict[str, str]
    created: str


class Pointer(BaseModel):
    """Which bundle of a name is served.

    Attributes:
        version: Version in the registry, e.g. `3`.
        bundle: Name of the folder beside the pointer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    bundle: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")


def hash_file(path: Path) -> str:
    """Return the sha256 of a file, lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bundle(bundles_dir: Path, model_file: Path, manifest: Manifest) -> Path:
    """Copy a model and its manifest into `bundles_dir/<name>/` and return the bundle's folder.

    A bundle of the same model that is there and intact is kept as it is. One process at a time may write bundles of a
    name; what a killed one left behind is removed.

    Raises:
        BundleError: `model_file` is not the file that the manifest describes.
        OSError: The disk is full or not writable; no half-written bundle stays.
    """
    if hash_file(model_file) != manifest.sha256:
        raise BundleError(f"{model_file} does not have the sha256 of its manifest ({manifest.sha256[:12]}…)")
    parent = bundles_dir / manifest.name
    parent.mkdir(parents=True, exist_ok=True)
    for stale in parent.glob(".new-*"):
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    folder = parent / f"{manifest.sha256[:16]}-{manifest.run_id[:8]}"
    if _is_intact(folder, manifest):
        return folder
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
    try:
        shutil.copyfile(model_file, scratch / MODEL_FILE)
        (scratch / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        scratch.chmod(0o755)
        for file in (scratch / MODEL_FILE, scratch / MANIFEST_FILE):
            _sync(file)
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _is_intact(folder: Path, manifest: Manifest) -> bool:
    """Whether a folder holds the same model of the same run; it may be served at this moment, so it is not touched."""
    try:
        found = read_bundle(folder)
    except BundleError:
        return False
    return (found.sha256, found.run_id) == (manifest.sha256, manifest.run_id)


def read_bundle(folder: Path) -> Manifest:
    """Read a bundle's manifest and check model.onnx against it.

    Raises:
        BundleError: A file is missing, the manifest is not valid, or size or sha256 differ.
    """
    model_file, manifest_file = folder / MODEL_FILE, folder / MANIFEST_FILE
    for file in (model_file, manifest_file):
        if not file.is_file():
            raise BundleError(f"{folder} is not a bundle: {file.name} is missing; release the model again")
    try:
        manifest = Manifest.model_validate_json(manifest_file.read_bytes())
    except ValidationError as error:
        raise BundleError(f"{manifest_file} is not a manifest: {error.errors()[0]['msg']}") from error
    sha256 = hash_file(model_file)
    if sha256 != manifest.sha256:
        raise BundleError(
            f"{model_file} was changed after its release: sha256 {sha256[:12]}…, "
            f"manifest {manifest.sha256[:12]}…; release the model again"
        )
    return manifest


def read_pointer(bundles_dir: Path, name: str) -> Pointer:
    """Read which bundle of `name` is served.

    Raises:
        BundleError: Nothing is released under that name, or the pointer is damaged.
    """
    file = bundles_dir / name / POINTER_FILE
    try:
        return Pointer.model_validate_json(file.read_bytes())
    except FileNotFoundError as error:
        raise BundleError(f"no model is released as {name}; run `darkroom release RECIPE --as {name}`") from error
    except ValidationError as error:
        raise BundleError(f"{file} is damaged; run `darkroom release RECIPE --as {name}`") from error


def write_pointer(bundles_dir: Path, name: str, pointer: Pointer) -> None:
    """Point `name` at a bundle, in one atomic step."""
    file = bundles_dir / name / POINTER_FILE
    descriptor, scratch = tempfile.mkstemp(prefix=".new-", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(pointer.model_dump(), stream)
        Path(scratch).chmod(0o644)
        _sync(Path(scratch))
        Path(scratch).replace(file)
    finally:
        Path(scratch).unlink(missing_ok=True)


def list_released(bundles_dir: Path) -> list[str]:
    """Return the names that have a pointer, sorted."""
    return sorted(file.parent.name for file in bundles_dir.glob(f"*/{POINTER_FILE}"))


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
