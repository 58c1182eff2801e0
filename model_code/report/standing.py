"""The best recipe so far on each data set."""

from model_code.release.names import RELEASED_KINDS
from model_code.report.collection import Collection, Group, average
from model_code.report.comparison import mark_budget, summarise
from model_code.report.document import Cell, Paragraph, Section, Table

CHOOSING = "validation/best_accuracy"


def build_standing(collection: Collection) -> Section:
    """Return the section with the best recipe of each data set."""
    explanation = (
        "The best recipe is chosen by validation accuracy, mean over its seeds, among full runs only: shorter ones say "
        "little about which is best. The test images do not choose. A backbone that SimSiam pretrained counts by its "
        "kNN accuracy on the validation images, and by that of its linear layer on the test images."
    )
    return Section("Best recipes", "best", (Paragraph(explanation), _build_best(collection)))


def choose_best(collection: Collection) -> dict[str, Group]:
    """Return for each data set the group of full runs with the highest mean validation accuracy."""
    best: dict[str, Group] = {}
    for group in (group for kind in RELEASED_KINDS for group in collection.list_best(kind)):
        dataset, score = group.latest.dataset, _score(group)
        if group.is_full and score is not None and (dataset not in best or score > (_score(best[dataset]) or 0)):
            best[dataset] = group
    return best


def _score(group: Group) -> float | None:
    values = [run.metrics[CHOOSING] for run in group.runs if CHOOSING in run.metrics]
    return average(values)[0] if values else None


def _build_best(collection: Collection) -> Table:
    rows = tuple(_build_row(dataset, group) for dataset, group in sorted(choose_best(collection).items()))
    columns = ("data set", "recipe", CHOOSING, "test/accuracy", "test/top5_accuracy", "seeds", "budget", "runs")
    return Table(
        "Best recipe of each data set", columns, rows or ((Cell("no full run yet"), *(Cell() for _ in range(7))),)
    )


def _build_row(dataset: str, group: Group) -> tuple[Cell, ...]:
    layer = "linear_" if group.latest.kind == "simsiam" else ""
    return (
        Cell(dataset, is_code=True),
        Cell(group.recipe, is_code=True),
        summarise(group, CHOOSING),
        summarise(group, f"test/{layer}accuracy"),
        summarise(group, f"test/{layer}top5_accuracy"),
        Cell(str(len(group.runs))),
        Cell(mark_budget(group), is_caution=not group.is_full),
        Cell(run_ids=tuple(run.run_id for run in group.runs)),
    )
