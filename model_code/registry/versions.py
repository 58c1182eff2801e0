"""Registered versions of a model and the `champion` alias, in MLflow."""

from pathlib import Path

import mlflow
import mlflow.onnx
import onnx
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature

from model_code.errors import UsageError
from serving.bundle import MANIFEST_FILE, MODEL_FILE, Manifest

CHAMPION = "champion"
# What a released name may be -> the data sets (a shell pattern) whose runs it takes.
RELEASE_NAMES = {"cifar10": "cifar10", "food": "food*", "shapes": "shapes"}


def register_version(client: MlflowClient, bundle: Path, manifest: Manifest) -> str:
    """Enter a bundle into the registry and return its version number as text.

    The same model of the same run is entered once: a repeated release gets the version that is there.

    Args:
        client: Of the store.
        bundle: Folder with model.onnx and manifest.json.
        manifest: Of that bundle.
    """
    _create_name(client, manifest.name)
    for version in client.search_model_versions(f"name = '{manifest.name}'"):
        if version.tags.get("sha256") == manifest.sha256 and version.run_id == manifest.run_id:
            return str(version.version)
    logged = mlflow.onnx.log_model(
        onnx.load(str(bundle / MODEL_FILE)),
        name=manifest.name,
        signature=_signature(manifest),
        save_as_external_data=False,
        pip_requirements=[f"onnxruntime-gpu=={manifest.versions['onnxruntime-gpu']}"],
        extra_files=[str(bundle / MANIFEST_FILE)],
    )
    version = client.create_model_version(
        manifest.name,
        source=logged.model_uri,
        run_id=manifest.run_id,
        model_id=logged.model_id,
        description=describe(manifest),
        tags={"sha256": manifest.sha256, "recipe": manifest.recipe, "precision": manifest.precision},
    )
    return str(version.version)


def describe(manifest: Manifest) -> str:
    """Return one sentence about a model for the registry's page."""
    accuracy = "not tested" if manifest.accuracy_fraction is None else f"test accuracy {manifest.accuracy_fraction:.4f}"
    worst = max(batch["max_difference"] for batch in manifest.parity["batches"].values())
    return f"{manifest.recipe}, {accuracy}, {manifest.precision}, ONNX differs from PyTorch by at most {worst:.1e}"


def set_champion(client: MlflowClient, name: str, version: str) -> str | None:
    """Point the alias `champion` at a version; return the version that had it before, or None."""
    before = get_champion(client, name)
    client.set_registered_model_alias(name, CHAMPION, version)
    return None if before is None else str(before.version)


def get_champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """Return the version that has the alias `champion`, or None."""
    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def check_release_name(name: str) -> str:
    """Return the pattern of the data set names that `name` takes.

    Raises:
        UsageError: No model has that name.
    """
    if name not in RELEASE_NAMES:
        raise UsageError(f"--as {name!r}: choose one of {', '.join(RELEASE_NAMES)}")
    return RELEASE_NAMES[name]


def _create_name(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _signature(manifest: Manifest) -> mlflow.models.ModelSignature:
    import numpy as np

    side = manifest.image_size
    return infer_signature(
        np.zeros((2, side, side, 3), dtype=np.uint8), np.zeros((2, len(manifest.classes)), dtype=np.float32)
    )
