"""The whole study: missing images -> every recipe -> best run of each data set -> champion -> report."""

import statistics
from collections.abc import Sequence
from itertools import groupby

from flows.operations.release import RELEASED_KINDS, release
from flows.printing.releases import print_release
from flows.printing.summaries import Choice, Outcome
from flows.printing.tables import print_added
from model_code.data.add import add_dataset
from model_code.data.cache import format_remedy, is_added
from model_code.data.sources.detect import get_known
from model_code.errors import DarkroomError
from model_code.release.names import RELEASE_NAMES
from model_code.settings import load_settings
from model_code.tracking.finished_runs import is_dataset_taken
from model_code.training.run_folder import AnyConfig, RunResult
from serving.errors import ServingError

# Of the runs on one data set only those of the first profile here that it has compete.
PROFILES = ("full", "custom", "smoke")


def fetch_missing(configs: Sequence[AnyConfig]) -> None:
    """Add each data set that is not there: download or draw it where that can be done, else say how to get it."""
    settings = load_settings()
    for name in dict.fromkeys(config.dataset for config in configs):
        if is_added(name, settings.cache_dir):
            continue
        known = get_known(name)
        if known.fetch is None and known.draw is None:
            print(f"{name} is not here and cannot be downloaded: {format_remedy(name)}", flush=True)
            continue
        try:
            has_archive = known.fetch is not None
            added = add_dataset(name, cache_dir=settings.cache_dir, data_dir=settings.data_dir, download=has_archive)
        except DarkroomError as error:
            print(f"{name} was not added: {error}", flush=True)
        else:
            print_added(added)


def choose_best(outcomes: Sequence[Outcome]) -> list[Choice]:
    """Return the best run of each data set whose models have a registered name.

    Recipes compete by the mean validation accuracy of their seeds; of the best recipe the best seed is taken. Smoke and
    custom runs compete only where there are no full ones.
    """
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    trained = [result for result in results if result.kind in RELEASED_KINDS]
    choices = []
    for dataset, of_dataset in groupby(sorted(trained, key=_get_dataset), key=_get_dataset):
        name = next((name for name, pattern in RELEASE_NAMES.items() if is_dataset_taken(dataset, pattern)), None)
        if name is None:
            continue
        runs = list(of_dataset)
        profile = next(one for one in PROFILES if any(run.profile == one for run in runs))
        recipes: dict[str, list[RunResult]] = {}
        for run in runs:
            if run.profile == profile:
                recipes.setdefault(run.recipe, []).append(run)
        seeds = max(recipes.values(), key=lambda runs: statistics.mean(map(_get_validation, runs)))
        choices.append(
            Choice(
                name=name,
                run=max(seeds, key=_get_validation),
                validation_accuracy=statistics.mean(map(_get_validation, seeds)),
                seeds=len(seeds),
                recipes=len(recipes),
            )
        )
    return choices


def release_best(outcomes: Sequence[Outcome]) -> list[Choice]:
    """Release the best run of each data set through the gate; one that fails does not stop the others."""
    released = []
    for choice in choose_best(outcomes):
        print(f"{choice.name}  {choice.run.recipe}, best of {choice.recipes} recipes by validation", flush=True)
        try:
            summary = release(choice.run.run_id, choice.name, why="darkroom train-all --release")
        except (DarkroomError, ServingError) as error:
            print(f"{choice.name}  not released: {error}", flush=True)
            released.append(choice.model_copy(update={"error": str(error).splitlines()[0]}))
        else:
            print_release(summary)
            released.append(choice.model_copy(update={"released": summary}))
    return released


def _get_dataset(run: RunResult) -> str:
    return run.dataset


def _get_validation(run: RunResult) -> float:
    return run.metrics["validation/best_accuracy"]
