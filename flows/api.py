"""Darkroom from Python: add images, train, release, predict. Neither the command nor Prefect is needed.

What they raise is in `model_code/errors.py` and `serving/errors.py`, each one line with the remedy.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.experiments.device_lock import lock_device
from flows.experiments.training import train as train_inputs
from flows.jobs.data import AddData
from flows.jobs.releases import Release
from flows.jobs.training import Profile, Train
from flows.operations import release as releases
from flows.printing.summaries import ReleaseSummary
from model_code.data.add import AddedDataset
from model_code.errors import UsageError
from model_code.release.gate_rules import GateRules
from model_code.settings import load_settings
from model_code.tracking.mlflow_log import MlflowTracking
from model_code.training.run_folder import RunResult
from serving.bundle.store import read_champion
from serving.errors import NotAnImageError, ServingError
from serving.models.classifier import Classifier
from serving.models.predictions import Prediction, rank_classes


def add_data(name: str, *sources: Path | str, **options: Any) -> AddedDataset:  # noqa: ANN401 - as the command's
    """Pack images, or return what is packed if their source did not change.

    Args:
        name: `shapes`, which is drawn, or any other name of `darkroom data add`.
        sources: Folders, zips or tars.
        options: Options of the command by name: `download`, `image_size`, `skip`, `max_bad`.
    """
    return AddData.make(name=name, sources=sources, **options).add()


def train(
    recipe: str,
    *,
    data: str | None = None,
    profile: Profile = "full",
    seed: int | None = None,
    epochs: int | None = None,
    limit_train: int | None = None,
    settings: Mapping[str, object] | None = None,
) -> RunResult:
    """Train one recipe and record the run in MLflow; an interrupted run of the same arguments is continued.

    Args:
        recipe: Name of a recipe.
        data: Packed data set; the recipe's own if None.
        profile: `full`, the documented budget, or `smoke`.
        seed: Seed of the run; the recipe's own if None.
        epochs: Epochs; the recipe's own if None.
        limit_train: Number of training images, before the validation split; all if None.
        settings: Other settings by name, as `darkroom recipes NAME` lists them.

    Returns:
        The run's id and figures: `metrics["test/accuracy"]`.
    """
    assignments = tuple(f"{key}={json.dumps(value)}" for key, value in (settings or {}).items())
    given = {"seed": seed, "epochs": epochs, "limit_train": limit_train}
    job = Train.make(recipe=recipe, dataset=data, profile=profile, settings=assignments, **given)
    job.check()
    return train_inputs(job.inputs, MlflowTracking(load_settings()), lock_device)


def release(
    source: str, name: str, *, mode: releases.Mode = "enabled", why: str = "", rules: GateRules | None = None
) -> ReleaseSummary:
    """Export and certify a run, and make it champion if it is better than the one before.

    Args:
        source: Run id, or a recipe for its best run.
        name: Registered name.
        mode: `dry_run` changes nothing; `forced` promotes whatever the verdict is, and needs a reason.
        why: Reason for the ledger.
        rules: Rules of the gate.

    Returns:
        `is_champion`, `version`, the gate's `verdict` and the bundle's `manifest`.
    """
    Release.make(source=source, name=name, mode=mode, why=why).check()
    return releases.release(source, name, mode, why, rules)


class Champion:
    """The champion of a registered name, loaded from its bundle; safe to use from several threads."""

    def __init__(self, name: str) -> None:
        """Load and verify the bundle.

        Args:
            name: Registered name.

        Raises:
            BundleError: Nothing is released under that name, or the bundle is damaged.
        """
        pointer, folder, _ = read_champion(load_settings().bundles_dir, name)
        self._classifier = Classifier(folder, pointer.version, manifest_sha256=pointer.manifest_sha256)

    def predict(self, image: Path | str | bytes, top_k: int = 1) -> Prediction:
        """Return what the service would answer for an image: `label`, `probability`, `is_confident`, `top`.

        Args:
            image: Path of an image file, or its content.
            top_k: Number of classes in `top`, at least 1 and at most all.

        Raises:
            UsageError: There are not so many classes.
            NotAnImageError: It is not an image, or no file that can be read.
            TooLargeError: It has too many pixels.
        """
        classes = len(self._classifier.manifest.classes)
        if not 1 <= top_k <= classes:
            raise UsageError(f"top_k is {top_k}; it must be a whole number from 1 to {classes}")
        filename = None if isinstance(image, bytes) else Path(image).name
        try:
            data = image if isinstance(image, bytes) else Path(image).read_bytes()
        except OSError as error:
            raise NotAnImageError(f"{error.filename}: {error.strerror}") from error
        try:
            pixels_HWC = self._classifier.decode(data)
        except ServingError as error:
            if not isinstance(image, bytes):
                error.args = (f"{image}: {error}",)
            raise
        [probabilities_K] = self._classifier.classify(pixels_HWC[None])
        return rank_classes(probabilities_K, self._classifier.manifest, top_k, filename)
