"""Registered versions of a model, in MLflow: each holds its whole bundle."""

import logging
import re
import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
import mlflow.onnx
import numpy as np
import onnx
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from pydantic import ValidationError

from model_code.disk import writing_to
from model_code.errors import ReleaseError
from model_code.release.registered import RegisteredVersion, format_time
from model_code.release.verdict import Verdict
from serving.bundle.manifest import FILE_NAME, Manifest
from serving.bundle.store import (
    BUNDLE_TAG,
    CHALLENGER,
    CHAMPION,
    MANIFEST_FILE,
    MANIFEST_TAG,
    MODEL_FILE,
    SHARE_TAG,
    hash_file,
    read_bundle,
    write_bundle,
)
from serving.errors import BundleError

_log = logging.getLogger(__name__)

VERDICT_FILE = "verdict.json"  # of versions of older homes also the name of a tag that holds it
ACCURACY_TAG = "accuracy"
MAX_NAMES = 1000
LOGGED_MODELS = "models:/"  # in front of the id of a logged model, the source of a version
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def register_version(client: MlflowClient, bundle: Path, manifest: Manifest) -> str:
    """Enter a bundle into the registry and return its version number as text.

    The same bundle is entered once: a repeated release gets the version that is there.

    Args:
        client: Client of the store.
        bundle: Folder with the bundle.
        manifest: Manifest of that bundle.
    """
    create_name(client, manifest.name)
    manifest_sha256 = hash_file(bundle / MANIFEST_FILE)
    for version in list_versions(client, manifest.name):
        if version.tags.get(MANIFEST_TAG) == manifest_sha256:
            return str(version.version)
    others = [name for name in manifest.files if name != MODEL_FILE]
    logged = mlflow.onnx.log_model(
        onnx.load(str(bundle / MODEL_FILE)),
        name=manifest.name,
        signature=_signature(manifest),
        save_as_external_data=False,
        pip_requirements=[f"onnxruntime-gpu=={manifest.versions['onnxruntime-gpu']}"],
        extra_files=[str(bundle / name) for name in (MANIFEST_FILE, *others)],
    )
    client.log_outputs(manifest.run_id, [LoggedModelOutput(logged.model_id, step=0)])
    version = client.create_model_version(
        manifest.name,
        source=logged.model_uri,
        run_id=manifest.run_id,
        model_id=logged.model_id,
        tags=_tag(manifest) | {BUNDLE_TAG: bundle.name, MANIFEST_TAG: manifest_sha256},
    )
    return str(version.version)


def write_verdict(client: MlflowClient, name: str, number: str, verdict: Verdict, description: str) -> None:
    """Write the gate's verdict on a version, in words as tag and in numbers as file of its run, and its short card."""
    version = get_version(client, name, number)
    client.log_text(
        str(version.run_id), verdict.model_dump_json(indent=2), f"{name_folder(name, number)}/{VERDICT_FILE}"
    )
    for key, value in {"verdict": verdict.summary, ACCURACY_TAG: repr(verdict.challenger_accuracy)}.items():
        client.set_model_version_tag(name, number, key, value)
    if VERDICT_FILE in version.tags:  # the verdict before, written by an older release
        client.delete_model_version_tag(name, number, VERDICT_FILE)
    client.update_model_version(name, number, description)


def read_verdict(version: ModelVersion) -> Verdict | None:
    """Return the gate's verdict on a version; None without a readable one. In older homes it is in a tag."""
    folder = name_folder(version.name, str(version.version))
    try:
        text = mlflow.artifacts.load_text(f"runs:/{version.run_id}/{folder}/{VERDICT_FILE}")
    except (MlflowException, OSError):
        text = version.tags.get(VERDICT_FILE, "")
    try:
        return Verdict.model_validate_json(text)
    except ValidationError:
        return None


def name_folder(name: str, number: str) -> str:
    """Return the place of a version's verdict and card among the files of its run."""
    return f"release/{name}-version-{number}"


def create_name(client: MlflowClient, name: str) -> None:
    """Make a registered name; nothing happens if it is there."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def list_versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """Return all versions of a name, the oldest first; none if there is no such name."""
    versions: list[ModelVersion] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        versions += page
        token = page.token
        if not token:
            return sorted(versions, key=lambda version: int(version.version))


def list_all_versions(client: MlflowClient, name: str | None = None) -> tuple[RegisteredVersion, ...]:
    """Return the versions of one name or of all, oldest first, with their aliases."""
    found = []
    for model in client.search_registered_models(max_results=MAX_NAMES):
        if name in (None, model.name):
            for version in list_versions(client, model.name):
                number = str(version.version)
                aliases = tuple(sorted(alias for alias, of in model.aliases.items() if str(of) == number))
                at = format_time(version.creation_timestamp)
                found.append(
                    RegisteredVersion(model.name, number, at, version.run_id or "", dict(version.tags), aliases)
                )
    return tuple(found)


def find_model_folder(client: MlflowClient, name: str, number: str) -> Path | None:
    """Return the folder of a version's files in MLflow's store where it is on this machine."""
    address = client.get_model_version_download_uri(name, number)
    return Path(unquote(urlsplit(address).path)) if address.startswith("file://") else None


def delete_version(client: MlflowClient, name: str, number: str) -> None:
    """Delete a version and the model that was logged for it; their files stay."""
    version = get_version(client, name, number)
    client.delete_model_version(name, number)
    # MLflow's SQL store gives no version its `model_id` back.
    if (model_id := str(version.source).removeprefix(LOGGED_MODELS)) != version.source:
        try:
            client.delete_logged_model(model_id)
        except MlflowException as error:
            if error.error_code not in _MISSING:
                raise


def get_version(client: MlflowClient, name: str, number: str) -> ModelVersion:
    """Return one version.

    Raises:
        ReleaseError: There is none of that number.
    """
    try:
        return client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        known = ", ".join(str(version.version) for version in list_versions(client, name)) or "none"
        raise ReleaseError(f"{name} has no version {number}; registered: {known}") from error


def get_champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """Return the version that has the alias `champion`, or None."""
    return _get_by_alias(client, name, CHAMPION)


def get_challenger(client: MlflowClient, name: str) -> ModelVersion | None:
    """Return the version that has the alias `challenger`, or None."""
    return _get_by_alias(client, name, CHALLENGER)


def _get_by_alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        return None


def set_challenger(client: MlflowClient, name: str, version: str | None, share: float = 0.0) -> None:
    """Give a version the alias `challenger`, and the tag with its share of the requests; None takes both away."""
    for before in list_versions(client, name):
        if SHARE_TAG in before.tags and not (share and str(before.version) == version):
            client.delete_model_version_tag(name, str(before.version), SHARE_TAG)
    if version is None:
        client.delete_registered_model_alias(name, CHALLENGER)
        return
    if share:
        # Before the alias: who follows it reads the share then.
        client.set_model_version_tag(name, version, SHARE_TAG, f"{share:g}")
    client.set_registered_model_alias(name, CHALLENGER, version)


def find_bundle_version(client: MlflowClient, name: str, bundle: str) -> ModelVersion | None:
    """Return the newest version whose bundle has that folder name, or None."""
    return next((one for one in reversed(list_versions(client, name)) if one.tags.get(BUNDLE_TAG) == bundle), None)


def fetch_bundle(client: MlflowClient, bundles_dir: Path, version: ModelVersion) -> Path:
    """Return the folder of a version's bundle: the one that is here and intact, or a copy out of the registry.

    The caller holds the lock of the name.

    Args:
        client: Client of the registry.
        bundles_dir: Folder of the bundles.
        version: A registered version.

    Raises:
        ReleaseError: The version has no bundle of this format, or the registry's copy is damaged as well.
    """
    what = f"version {version.version} of {version.name}"
    name, manifest_sha256 = version.tags.get(BUNDLE_TAG, ""), version.tags.get(MANIFEST_TAG, "")
    if not (re.fullmatch(FILE_NAME, name) and manifest_sha256):
        raise ReleaseError(f"{what} was not registered by this version of Darkroom; release its run again")
    folder = bundles_dir / version.name / name
    try:
        read_bundle(folder, manifest_sha256)
    except BundleError as problem:
        _log.warning("%s is fetched from the registry: %s", what, problem)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                _download(client, version, Path(scratch))
                manifest = read_bundle(Path(scratch), manifest_sha256)
                if manifest.name != version.name:
                    raise BundleError(f"its manifest is that of {manifest.name}")
            except (BundleError, MlflowException, OSError) as error:
                raise ReleaseError(f"{what} cannot be verified: {problem}; in the registry: {error}") from error
            with writing_to(bundles_dir, 0, f"fetching {what}"):
                return write_bundle(bundles_dir, Path(scratch), {manifest_sha256}, name)
    return folder


def _download(client: MlflowClient, version: ModelVersion, folder: Path) -> None:
    """Copy the files of a version into one folder, without the folders that MLflow keeps them in."""
    with tempfile.TemporaryDirectory() as scratch:
        address = client.get_model_version_download_uri(version.name, version.version)
        downloaded = Path(mlflow.artifacts.download_artifacts(address, dst_path=scratch))
        for file in downloaded.rglob("*"):
            if file.is_file():
                shutil.move(file, folder / file.name)


def _tag(manifest: Manifest) -> dict[str, str]:
    """Return what a version's page shows of its bundle; the proof of each variant is in the manifest."""
    return {
        "sha256": manifest.fp32.sha256,
        "recipe": manifest.recipe,
        "precisions": ", ".join(variant.precision for variant in manifest.offered),
    }


def _signature(manifest: Manifest) -> mlflow.models.ModelSignature:
    side = manifest.image_size
    return infer_signature(
        np.zeros((2, side, side, 3), dtype=np.uint8), np.zeros((2, len(manifest.classes)), dtype=np.float32)
    )
