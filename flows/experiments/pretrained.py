"""Pretrained weights of a run: a file, torchvision's download, or the best run of another recipe."""

from contextlib import suppress
from dataclasses import dataclass

from model_code.data.cache import PackedDataset
from model_code.errors import DownloadError, TrainingError
from model_code.recipes.catalog import get_recipe
from model_code.settings import Settings
from model_code.training.checkpoints import find_torchvision_download, hash_pretrained
from model_code.training.config import RECIPE_PREFIX, TORCHVISION, TrainingConfig
from model_code.training.exchange import fetch_complete
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.run_folder import AnyConfig, RunFolder, RunResult, list_finished
from serving.bundle.store import hash_file

# A documented run starts from a documented one; a custom run takes the best that there is.
ALLOWED_PROFILES = {"full": ("full",), "smoke": ("smoke",), "custom": ("full", "custom", "smoke")}


@dataclass(frozen=True)
class Pretrained:
    """Where a run's first weights come from.

    Attributes:
        source: A file, or the word `torchvision`.
        sha256: SHA-256 of the file; None for torchvision's, whose download has its own check.
        run_id: MLflow run that trained them; None for weights from elsewhere.
    """

    source: str
    sha256: str | None
    run_id: str | None = None


def name_start(config: AnyConfig) -> str | None:
    """Return the recipe whose weights a run starts from; None without one."""
    weights = _get_weights(config)
    return weights.removeprefix(RECIPE_PREFIX) if weights and weights.startswith(RECIPE_PREFIX) else None


def fetch_start(config: AnyConfig) -> None:
    """Copy the complete runs of the recipe whose weights a run starts from into the home, from DARKROOM_STORAGE."""
    if (start := name_start(config)) is not None:
        fetch_complete(get_recipe(start).name)


def find_pretrained(
    config: AnyConfig, dataset: PackedDataset, settings: Settings, *, is_offline: bool = False
) -> Pretrained | None:
    """Return what a config starts from; None when it starts from nothing.

    `recipe:NAME` is the run of that recipe with the best validation accuracy among those that have the same network,
    learned from the same images (with feedback or without), held the same ones out, and whose weights are here and
    intact. A full run starts only from a full one and a smoke run only from a smoke run. An offline run is started from
    only offline, since MLflow does not know it.

    Raises:
        DownloadError: An offline run would have to download torchvision's weights.
        TrainingError: There is no such file, or no such run.
        UsageError: There is no such recipe.
    """
    weights = _get_weights(config)
    if weights is None:
        return None
    start = name_start(config)
    if start is None:
        if is_offline and weights == TORCHVISION and not (place := find_torchvision_download()).is_file():
            raise DownloadError(
                f"torchvision's ImageNet weights are not downloaded with --offline; bring the file to {place}, or give "
                "it with --set pretrained_weights=PATH"
            )
        return Pretrained(weights, hash_pretrained(weights))
    name = get_recipe(start).name
    # What is held out is the same with feedback and without.
    checksums = {dataset.checksum} if dataset.base is None else {dataset.checksum, dataset.base.checksum}
    runs = [
        (folder, result)
        for folder in list_finished(settings.checkpoints_dir)
        if folder.is_offline <= is_offline
        and (result := _find_result(folder, name, config, dataset, checksums)) is not None
    ]
    runs.sort(key=lambda run: run[1].metrics["validation/best_accuracy"], reverse=True)
    allowed = ALLOWED_PROFILES[config.profile]
    for profile in allowed:
        for folder, result in runs:
            file = folder.path / str(result.best_weights)
            if result.profile == profile and file.is_file() and hash_file(file) == result.weights_sha256:
                return Pretrained(str(file), result.weights_sha256, result.run_id)
    raise TrainingError(
        f"{config.recipe} starts from {name}, which has no finished run ({' or '.join(allowed)}) of {config.network} "
        f"on these {config.dataset} images with its weights here; train it first: darkroom train {name}"
        + (" --profile smoke" if config.profile == "smoke" else "")
        + (f" --data {config.dataset}" if config.dataset != get_recipe(name).build().dataset else "")
    )


def _get_weights(config: AnyConfig) -> str | None:
    return config.pretrained_weights if isinstance(config, TrainingConfig | SimSiamConfig) else None


def _find_result(
    folder: RunFolder, recipe: str, config: AnyConfig, dataset: PackedDataset, checksums: set[str]
) -> RunResult | None:
    """Return a run's result if its weights have not seen what is held out now, else None."""
    record = folder.record
    same = ["network", "split_seed", "validation_fraction"]
    if "validation" not in dataset.splits:  # what is held out is a share of these images
        same.append("limit_train")
    # The whole network predicts, on inputs as in its training.
    if getattr(config, "pseudo_label_confidence", None) is not None:
        same += ["image_size", "mean", "std"]
    if (
        record.config.recipe != recipe
        or record.data_checksum not in checksums
        or any(getattr(record.config, one, None) != getattr(config, one) for one in same)
    ):
        return None
    with suppress(TrainingError):
        result = folder.result
        return result if result is not None and result.best_weights is not None else None
    return None
