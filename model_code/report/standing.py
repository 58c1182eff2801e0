"""The best recipe so far on each data set, and the champions that are served."""

from mlflow import MlflowClient

from model_code.release.names import RELEASE_NAMES
from model_code.release.versions import get_champion
from model_code.report.collection import Collection, Group, average
from model_code.report.comparison import mark_budget, summarise
from model_code.report.document import Cell, Paragraph, Section, Table

CHOOSING = "validation/best_accuracy"


def build_standing(collection: Collection, client: MlflowClient) -> Section:
    """Return the section with the best recipe of each data set and the champion of each registered name."""
    explanation = (
        "The best recipe is chosen by validation accuracy, mean over its seeds, among full runs only: shorter ones say "
        "little about which is best. The test images do not choose."
    )
    return Section(
        "Best recipe and champion", "best", (Paragraph(explanation), _build_best(collection), _build_champions(client))
    )


def choose_best(collection: Collection) -> dict[str, Group]:
    """Return for each data set the group of full runs with the highest mean validation accuracy."""
    best: dict[str, Group] = {}
    for group in collection.list_best("supervised"):
        dataset, score = group.latest.dataset, _score(group)
        if group.is_full and score is not None and (dataset not in best or score > (_score(best[dataset]) or 0)):
            best[dataset] = group
    return best


def _score(group: Group) -> float | None:
    values = [run.metrics[CHOOSING] for run in group.runs if CHOOSING in run.metrics]
    return average(values)[0] if values else None


def _build_best(collection: Collection) -> Table:
    rows = tuple(
        (
            Cell(dataset, is_code=True),
            Cell(group.recipe, is_code=True),
            summarise(group, CHOOSING),
            summarise(group, "test/accuracy"),
            Cell(str(len(group.runs))),
            Cell(mark_budget(group), is_caution=not group.is_full),
            Cell(run_ids=tuple(run.run_id for run in group.runs)),
        )
        for dataset, group in sorted(choose_best(collection).items())
    )
    columns = ("data set", "recipe", CHOOSING, "test/accuracy", "seeds", "budget", "runs")
    return Table(
        "Best recipe of each data set", columns, rows or ((Cell("no full run yet"), *(Cell() for _ in range(6))),)
    )


def _build_champions(client: MlflowClient) -> Table:
    rows = []
    for name in sorted({*RELEASE_NAMES, *(model.name for model in client.search_registered_models())}):
        version = get_champion(client, name)
        if version is None:
            rows.append((Cell(name, is_code=True), Cell("nothing released"), Cell(), Cell()))
            continue
        runs = (str(version.run_id),) if version.run_id else ()
        rows.append(
            (
                Cell(name, is_code=True),
                Cell(f"version {version.version}"),
                Cell(version.description or ""),
                Cell(run_ids=runs),
            )
        )
    return Table("Champion of each registered name", ("name", "champion", "what it is", "run"), tuple(rows))
