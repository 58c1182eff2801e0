"""Which weights a run starts from: a file, torchvision's download, or the best run of another recipe."""

from pathlib import Path

from model_code.errors import DarkroomError, TrainingError
from model_code.recipes.catalog import get_recipe
from model_code.settings import Settings
from model_code.tracking.finished_runs import find_finished_runs
from model_code.tracking.store import open_store
from model_code.training.config import TrainingConfig
from model_code.training.run_folder import AnyConfig, open_run_folder

RECIPE_PREFIX = "recipe:"


def find_pretrained(config: AnyConfig, settings: Settings) -> str | None:
    """Return the file, or the word `torchvision`, that a config starts from; None when it starts from nothing.

    `recipe:NAME` is the run of that recipe, on the same data set, with the best validation accuracy; a full run starts
    only from a full one and a smoke run only from a smoke run.

    Raises:
        TrainingError: There is no such run with its weights on this machine.
        UsageError: There is no such recipe.
    """
    source = config.pretrained_weights if isinstance(config, TrainingConfig) else None
    if source is None or not source.startswith(RECIPE_PREFIX):
        return source
    name = get_recipe(source.removeprefix(RECIPE_PREFIX)).name
    allowed = {"full", "smoke", "custom"} if config.profile == "custom" else {config.profile}
    runs = [run for run in find_finished_runs(open_store(settings), name, config.dataset) if run.profile in allowed]
    for run in runs:
        weights = _find_weights(settings, run.run_id)
        if weights is not None:
            return str(weights)
    raise TrainingError(
        f"{config.recipe} starts from {name}, which has no finished {' or '.join(sorted(allowed))} run on "
        f"{config.dataset} with its weights here; train it first: darkroom train {name}"
        + (" --profile smoke" if config.profile == "smoke" else "")
    )


def _find_weights(settings: Settings, run_id: str) -> Path | None:
    try:
        folder = open_run_folder(settings.checkpoints_dir, run_id)
        result = folder.result
    except DarkroomError:
        return None
    if result is None or result.best_weights is None:
        return None
    weights = folder.path / result.best_weights
    return weights if weights.is_file() else None
