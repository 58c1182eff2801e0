"""Source of a release, a recipe or a run, checked against the run folders before any framework is imported."""

from model_code.data.cache import FEEDBACK_SUFFIX, is_dataset_taken
from model_code.errors import ReleaseError, UsageError
from model_code.recipes.catalog import get_recipe
from model_code.release.names import RELEASED_KINDS, check_release_name, is_taken
from model_code.settings import Settings
from model_code.training.run_folder import RunFolder, is_run_id, list_finished, open_run_folder, resolve_run_id


def check_source(source: str, name: str, settings: Settings) -> list[RunFolder]:
    """Return the finished runs that `source` may mean for a released name, the newest first.

    Args:
        source: Recipe, run id, or the first 8 digits or more of one.
        name: Registered name.
        settings: Places of the home.

    Raises:
        UsageError: Source or name mean nothing.
        ReleaseError: There is no such run, it is not finished, on other images, or leaves no classifier.
        TrainingError: There is no run of that id.
    """
    pattern = check_release_name(name)
    if not is_run_id(source):
        return _list_runs(source, name, pattern, settings)
    run_id = resolve_run_id(settings.checkpoints_dir, source)
    folder = open_run_folder(settings.checkpoints_dir, run_id)
    config = folder.record.config
    _check_is_classifier(f"run {run_id} of {config.recipe}", config.kind)
    if not is_taken(config.dataset, name):
        raise ReleaseError(f"run {run_id} was trained on {config.dataset}; --as {name} takes runs on {pattern} images")
    if folder.is_offline:
        raise ReleaseError(f"run {run_id} is offline; bring it to MLflow first: `darkroom runs pack`, `runs sync`")
    if folder.result is None:
        raise ReleaseError(f"run {run_id} is not a finished training; repeat its train command first")
    if not (folder.path / str(folder.result.best_weights)).is_file():
        raise ReleaseError(
            f"run {run_id} has no weights here (pruned, or packed without them); train it again and release the new run"
        )
    return [folder]


def _list_runs(recipe: str, name: str, pattern: str, settings: Settings) -> list[RunFolder]:
    try:
        kind = get_recipe(recipe).build().kind
    except UsageError as error:
        raise UsageError(f"{error}; or give a run id (8 to 32 hexadecimal digits: `darkroom runs list`)") from error
    _check_is_classifier(recipe, kind)
    finished = [one for one in list_finished(settings.checkpoints_dir) if one.record.config.recipe == recipe]
    runs = [one for one in finished if is_taken(one.record.config.dataset, name)]
    if pattern == "*":  # a data set of the released name goes first
        runs = [one for one in runs if is_dataset_taken(one.record.config.dataset, name)] or runs
    datasets = sorted({one.record.config.dataset.removesuffix(FEEDBACK_SUFFIX) for one in runs})
    if len(datasets) > 1:
        raise ReleaseError(f"{recipe} has runs on {', '.join(datasets)}; give the id of the run for {name}")
    if not runs:
        elsewhere = ", ".join(sorted({one.record.config.dataset for one in finished}))
        why = "it has no finished run"
        if elsewhere:
            why = f"its finished runs are on {elsewhere} and not on {pattern} images"
        raise ReleaseError(f"{recipe} cannot be released as {name}: {why}; train it first: darkroom train {recipe}")
    return runs


def _check_is_classifier(what: str, kind: str) -> None:
    if kind not in RELEASED_KINDS:
        raise ReleaseError(
            f"{what} leaves figures, not a classifier; release a supervised or SimSiam recipe: `darkroom recipes`"
        )
