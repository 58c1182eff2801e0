"""Provenance of a run: code version, library versions, machine."""

import hashlib
import platform
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from model_code.settings import read_image_sha

LIBRARIES = (
    "darkroom",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "mlflow",
    "prefect",
    "onnx",
    "onnxruntime-gpu",
)


@cache
def read_git_sha() -> str:
    """Return the commit of the running code, `-dirty` added when files differ from it; `unknown` outside git.

    In a container it is the commit that the image was built from.
    """
    if sha := read_image_sha():
        return sha
    root = Path(__file__).resolve().parents[2]
    try:
        sha = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{sha}-dirty" if changed else sha


def read_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on; absent ones are left out."""
    return {"python": platform.python_version()} | find_versions(LIBRARIES)


def find_versions(libraries: Iterable[str]) -> dict[str, str]:
    """Return the versions of some libraries; absent ones are left out."""
    versions = {}
    for library in libraries:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions


def hash_code() -> str:
    """Return the SHA-256 of the code that results depend on, with the versions of the libraries under it."""
    return _hash_sources(repr(sorted(read_versions().items())))


def hash_sources() -> str:
    """Return the SHA-256 of the code that results depend on, whatever libraries are under it."""
    return _hash_sources("")


@cache
def _hash_sources(prefix: str) -> str:
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256(prefix.encode())
    for folder in ("data", "models", "training", "evaluation"):
        for file in sorted((root / folder).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
