"""Pretrained weights of a run: a file, torchvision's download, or the best run of another recipe."""

from dataclasses import dataclass

from model_code.data.cache import FEEDBACK_SUFFIX, PackedDataset
from model_code.errors import DarkroomError, TrainingError
from model_code.recipes.catalog import get_recipe
from model_code.settings import Settings
from model_code.tracking.finished_runs import find_finished_runs
from model_code.tracking.store import open_store
from model_code.training.checkpoints import hash_pretrained
from model_code.training.config import RECIPE_PREFIX, TrainingConfig
from model_code.training.run_folder import AnyConfig, RunFolder, open_run_folder
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
    weights = config.pretrained_weights if isinstance(config, TrainingConfig) else None
    return weights.removeprefix(RECIPE_PREFIX) if weights and weights.startswith(RECIPE_PREFIX) else None


def find_pretrained(config: AnyConfig, dataset: PackedDataset, settings: Settings) -> Pretrained | None:
    """Return what a config starts from; None when it starts from nothing.

    `recipe:NAME` is the run of that recipe with the best validation accuracy among those that have the same network,
    learned from the same images (with feedback or without), held the same ones out, and whose weights are here and
    intact. A full run starts only from a full one and a smoke run only from a smoke run.

    Raises:
        TrainingError: There is no such file, or no such run.
        UsageError: There is no such recipe.
    """
    if not isinstance(config, TrainingConfig) or config.pretrained_weights is None:
        return None
    start = name_start(config)
    if start is None:
        return Pretrained(config.pretrained_weights, hash_pretrained(config.pretrained_weights))
    name = get_recipe(start).name
    # What is held out is the same with feedback and without.
    checksums = {dataset.checksum} if dataset.base is None else {dataset.checksum, dataset.base.checksum}
    runs = find_finished_runs(open_store(settings), name, config.dataset.removesuffix(FEEDBACK_SUFFIX))
    allowed = ALLOWED_PROFILES[config.profile]
    for profile in allowed:
        for run in runs:
            found = _open(settings, run.run_id) if run.profile == profile else None
            if found is not None and _fits(found, config, checksums):
                result = found.result
                assert result is not None, "_fits looked at it"
                return Pretrained(str(found.path / str(result.best_weights)), result.weights_sha256, run.run_id)
    raise TrainingError(
        f"{config.recipe} starts from {name}, which has no finished {' or '.join(allowed)} run of {config.network} on "
        f"these {config.dataset} images with its weights here; train it first: darkroom train {name}"
        + (" --profile smoke" if config.profile == "smoke" else "")
        + (f" --data {config.dataset}" if config.dataset != get_recipe(name).build().dataset else "")
    )


def _open(settings: Settings, run_id: str) -> RunFolder | None:
    try:
        return open_run_folder(settings.checkpoints_dir, run_id)
    except TrainingError:
        return None


def _fits(folder: RunFolder, config: TrainingConfig, checksums: set[str]) -> bool:
    """Whether a run's weights can be started from without seeing what is held out now."""
    record = folder.record
    same = ("network", "split_seed", "validation_fraction")
    if record.data_checksum not in checksums or any(
        getattr(record.config, one, None) != getattr(config, one) for one in same
    ):
        return False
    try:
        result = folder.result
    except DarkroomError:
        return False
    if result is None or result.best_weights is None:
        return False
    weights = folder.path / result.best_weights
    return weights.is_file() and hash_file(weights) == result.weights_sha256
