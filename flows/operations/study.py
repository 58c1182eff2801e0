"""The whole study: missing images -> every recipe -> best run of each data set -> champion -> report."""

import statistics
from collections.abc import Sequence

from flows.operations.release import release
from flows.printing.datasets import print_added
from flows.printing.lines import print_line
from flows.printing.releases import print_release
from flows.printing.summaries import Choice, Outcome
from model_code.data.add import add_dataset
from model_code.data.cache import FEEDBACK_SUFFIX, format_remedy, is_added, is_dataset_taken
from model_code.data.sources.detect import get_known
from model_code.errors import DarkroomError, ExportError, TrainingError
from model_code.release.names import RELEASE_NAMES, RELEASED_KINDS
from model_code.settings import load_settings
from model_code.training.run_folder import AnyConfig, RunResult
from serving.bundle.store import read_champion
from serving.errors import BundleError, ServingError

# Of the runs on one data set only those of the first profile here that it has compete.
PROFILES = ("full", "custom", "smoke")


def fetch_missing(configs: Sequence[AnyConfig]) -> list[str]:
    """Add each data set that is not there: download or draw it where that can be done, else say how to get it.

    Returns:
        Why data sets that can be fetched were not.
    """
    settings = load_settings()
    failures = []
    for name in dict.fromkeys(config.dataset for config in configs):
        if is_added(name, settings.cache_dir):
            continue
        known = get_known(name)
        if not known.is_fetchable:
            print_line(f"{name} is not here and cannot be downloaded: {format_remedy(name)}")
            continue
        try:
            has_archive = known.fetch is not None
            added = add_dataset(name, cache_dir=settings.cache_dir, data_dir=settings.data_dir, download=has_archive)
        except DarkroomError as error:
            failures.append(f"{name} was not added: {error}")
            print_line(failures[-1])
        else:
            print_added(added)
    return failures


def rank_recipes(outcomes: Sequence[Outcome]) -> dict[str, dict[str, list[Choice]]]:
    """Return registered name -> data set, without its feedback -> the best run of each recipe, the best recipe first.

    Recipes compete by the mean validation accuracy of their seeds; of a recipe the best seed is taken. Smoke and custom
    runs compete only where there are no full ones. A data set without a registered name has its own.
    """
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    by_dataset: dict[str, list[RunResult]] = {}
    for result in results:
        if result.kind in RELEASED_KINDS:
            by_dataset.setdefault(result.dataset.removesuffix(FEEDBACK_SUFFIX), []).append(result)
    ranked: dict[str, dict[str, list[Choice]]] = {}
    for dataset, runs in by_dataset.items():
        name = next((name for name, pattern in RELEASE_NAMES.items() if is_dataset_taken(dataset, pattern)), dataset)
        ranked.setdefault(name, {})[dataset] = _rank_runs(name, runs)
    return ranked


def _rank_runs(name: str, runs: Sequence[RunResult]) -> list[Choice]:
    profile = next(one for one in PROFILES if any(run.profile == one for run in runs))
    recipes: dict[str, list[RunResult]] = {}
    for run in runs:
        if run.profile == profile:
            recipes.setdefault(run.recipe, []).append(run)
    choices = [
        Choice(
            name=name,
            run=max(seeds, key=_get_validation),
            validation_accuracy=statistics.mean(map(_get_validation, seeds)),
            seeds=len(seeds),
        )
        for seeds in recipes.values()
    ]
    return sorted(choices, key=lambda choice: choice.validation_accuracy, reverse=True)


def release_best(outcomes: Sequence[Outcome]) -> list[Choice]:
    """Release the best run under each name through the gate; of a run that cannot be exported, the next recipe's.

    Of several data sets under one name the champion's takes part, or the first one if there is no champion.
    """
    released = []
    for name, ranked in rank_recipes(outcomes).items():
        dataset = _choose_dataset(name, list(ranked))
        for other in ranked:
            if other != dataset:
                print_line(f"{name}  no run on {other} is released: the models of {name} are those of {dataset}")
        if dataset in ranked:
            released.append(_release_first(ranked[dataset]))
        else:
            best = next(iter(ranked.values()))[0]
            released.append(best.model_copy(update={"error": f"the models of {name} are those of {dataset}"}))
    return released


def _choose_dataset(name: str, datasets: Sequence[str]) -> str:
    try:
        _, _, champion = read_champion(load_settings().bundles_dir, name)
    except BundleError:
        return datasets[0]
    return champion.dataset.removesuffix(FEEDBACK_SUFFIX)


def _release_first(choices: Sequence[Choice]) -> Choice:
    """Release the first run that can be exported; return it, or with its reason the run whose release failed.

    What another recipe would meet as well, such as a full disk or a damaged champion, ends the search.
    """
    errors = []
    for choice in choices:
        print_line(f"{choice.name}  {choice.run.recipe}, best of {len(choices)} recipes by validation")
        try:
            summary = release(choice.run.run_id, choice.name, why="darkroom train-all --release")
        except (DarkroomError, ServingError) as error:
            print_line(f"{choice.name}  {choice.run.recipe} is not released: {error}")
            reason = str(error).splitlines()[0]
            if not isinstance(error, (ExportError, TrainingError)):
                return choice.model_copy(update={"error": reason})
            errors.append(reason)
        else:
            print_release(summary)
            return choice.model_copy(update={"released": summary})
    return choices[0].model_copy(update={"error": errors[0]})


def _get_validation(run: RunResult) -> float:
    return run.metrics["validation/best_accuracy"]
