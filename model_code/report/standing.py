"""The best recipe so far on each data set."""

from model_code.release.names import RELEASED_KINDS
from model_code.report.collection import Collection, Group, average
from model_code.report.comparison import describe_budget, summarise
from model_code.report.document import Block, Cell, Paragraph, Section, Table, compact

CHOOSING = "validation/best_accuracy"


def build_standing(collection: Collection) -> Section:
    """Return the section with the best recipe of each data set."""
    explanation = (
        "The best recipe of a data set is chosen by validation accuracy, mean over its seeds, among the runs of the "
        "longest budget there: full ones; else those of a recipe for other images with otherwise its documented "
        "settings; else the custom ones of most epochs. Smoke runs do not count. The test images do not choose. A "
        "backbone that SimSiam pretrained counts by its kNN accuracy on the validation images, and by that of its "
        "linear layer on the test images."
    )
    return Section("Best recipes", "best", (Paragraph(explanation), _build_best(collection)))


def choose_best(collection: Collection) -> dict[str, Group]:
    """Return for each data set the group of the longest budget with the highest mean validation accuracy."""
    found: dict[str, list[tuple[tuple[int, int, float], Group]]] = {}
    for group in (group for _, groups in sorted(collection.groups.items()) for group in groups):
        score = _score(group)
        if group.latest.kind in RELEASED_KINDS and not group.is_smoke and score is not None:
            found.setdefault(group.latest.dataset, []).append(((*_measure_budget(group), score), group))
    return {dataset: max(ranked, key=lambda one: one[0])[1] for dataset, ranked in found.items()}


def _measure_budget(group: Group) -> tuple[int, int]:
    """Return a sort key; of documented runs the recipes' epochs differ and do not count."""
    if group.is_full or group.is_full_elsewhere:
        return 2 if group.is_full else 1, 0
    return 0, group.latest.epochs or 0


def _score(group: Group) -> float | None:
    values = [run.metrics[CHOOSING] for run in group.runs if CHOOSING in run.metrics]
    return average(values)[0] if values else None


def _build_best(collection: Collection) -> Block:
    rows = tuple(_build_row(dataset, group) for dataset, group in sorted(choose_best(collection).items()))
    if not rows:
        return Paragraph("No full or custom run of a classifier or a backbone yet.")
    figures = ("validation accuracy", "test accuracy", "macro-F1", "top-5 accuracy")
    columns = ("data set", "recipe", *figures, "seeds", "budget", "runs")
    return compact(Table("Best recipe of each data set", columns, rows))


def _build_row(dataset: str, group: Group) -> tuple[Cell, ...]:
    layer = "linear_" if group.latest.kind == "simsiam" else ""
    return (
        Cell(dataset, is_code=True),
        Cell(group.recipe, is_code=True),
        summarise(group, CHOOSING),
        summarise(group, f"test/{layer}accuracy"),
        summarise(group, "test/macro_f1"),
        summarise(group, f"test/{layer}top5_accuracy"),
        Cell(str(len(group.runs))),
        describe_budget(group),
        Cell(run_ids=tuple(run.run_id for run in group.runs)),
    )
