"""Accuracy class by class, and which classes are taken for which."""

from collections.abc import Sequence

from model_code.evaluation.figures import draw_confusion, name_classes
from model_code.report.amounts import format_share
from model_code.report.collection import ClassReport, Collection, Group, Run
from model_code.report.comparison import mark_budget
from model_code.report.document import Block, Cell, ImageGroup, Paragraph, Section, Table
from model_code.report.figures import render
from model_code.report.published import get_published_classes

CONFUSION_DPI = 70
MOST_CLASSES = 30


def build_classes(collection: Collection) -> Section:
    """Return the section with per-class tables, one for each set of classes, and a confusion matrix for each recipe."""
    shown = [
        (group, run, run.report)
        for group in collection.list_best("supervised")
        for run in (group.latest,)
        if run.report is not None
    ]
    if not shown:
        return Section("Class by class", "classes", (Paragraph("No supervised run with a report yet: not run."),))
    explanation = (
        "Of the latest run of each recipe at its best budget on each data set, on the test images where there are any."
    )
    by_classes: dict[tuple[str, ...], list[tuple[Group, Run, ClassReport]]] = {}
    for group, run, report in shown:
        by_classes.setdefault(tuple(report.per_class), []).append((group, run, report))
    tables: list[Block] = [_build_table(classes, rows) for classes, rows in by_classes.items()]
    images = [_draw(group, run, report) for group, run, report in shown if len(report.per_class) <= MOST_CLASSES]
    return Section("Class by class", "classes", (Paragraph(explanation), *tables, *images))


def _build_table(classes: tuple[str, ...], rows: Sequence[tuple[Group, Run, ClassReport]]) -> Table:
    cells: list[tuple[Cell, ...]] = []
    for group, run, report in rows:
        is_caution = not group.is_full
        cells.append(
            (
                Cell(
                    group.recipe,
                    is_code=True,
                    detail=f"{mark_budget(group)}; seed {run.seed}, {report.split}",
                    run_ids=(run.run_id,),
                ),
                Cell(_percent(report.accuracy), is_caution=is_caution),
                *(Cell(_percent(report.per_class[name]), is_caution=is_caution) for name in classes),
            )
        )
        published = get_published_classes(group.recipe)
        if published and not group.is_elsewhere:
            beside = [Cell(_percent(published.get(name))) for name in classes]
            cells.append((Cell(group.recipe, is_code=True, detail="published"), Cell(), *beside))
    datasets = ", ".join(sorted({run.dataset for _, run, _ in rows}))
    return Table(f"Accuracy of each class of {datasets}, %", ("recipe", "all", *classes), tuple(cells))


def _draw(group: Group, run: Run, report: ClassReport) -> ImageGroup:
    right = f"{format_share(report.accuracy)} right"
    title = f"{group.name}\n{report.split}, seed {run.seed}, {right}"
    classes = tuple(report.per_class)
    figure = draw_confusion(title, report.confusion_KK, classes)
    alt = f"Confusion matrix of {group.name}, {report.split}: {right}; {_name_worst(report)}"
    image = render(f"{group.name.replace(' ', '-')}-confusion", figure, alt, CONFUSION_DPI)
    caption = f"{report.split} images, seed {run.seed}: {_name_worst(report)}."
    shown = name_classes(classes)[0]
    numbered = [
        f"{number} is {name}"
        for label, name in enumerate(classes)
        if (number := f"class {label}") == shown[label] and number != name
    ]
    if numbered:
        caption += f" No font here has the characters of some names: {', '.join(numbered)}."
    return ImageGroup(f"{group.name} ({mark_budget(group)})", (image,), caption, (run.run_id,))


def _name_worst(report: ClassReport) -> str:
    """Return the most frequent mistake in words."""
    mistakes_KK = report.confusion_KK.copy()
    for index in range(len(mistakes_KK)):
        mistakes_KK[index, index] = 0
    if not mistakes_KK.any():
        return "no mistakes"
    names = tuple(report.per_class)
    true, predicted = divmod(int(mistakes_KK.argmax()), mistakes_KK.shape[1])
    return f"most often {names[true]} is taken for {names[predicted]}, {mistakes_KK[true, predicted]:,} times"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else format_share(fraction).removesuffix(" %")
