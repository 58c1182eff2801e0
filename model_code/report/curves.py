"""Learning curves of supervised runs, and what watches over SimSiam's."""

import math

from model_code.report.collection import Collection, Group, average
from model_code.report.comparison import mark_budget
from model_code.report.document import Block, Image, ImageGroup, Paragraph, Section
from model_code.report.figures import draw_seeds, list_histories, render

UNTRAINED_KNN = "validation/untrained_knn_accuracy"


def build_learning_curves(collection: Collection) -> Section:
    """Return the section with the curves of every supervised recipe."""
    blocks: list[Block] = []
    for group in collection.list_best("supervised"):
        panels = [
            _draw(group, "validation/accuracy", "validation accuracy, %", 100),
            _draw(group, "validation/loss", "validation loss", 1),
        ]
        blocks += _assemble(group, panels, "Validation accuracy and loss")
    return Section("Learning curves", "curves", tuple(blocks) or (Paragraph("No supervised run yet: not run."),))


def build_simsiam_curves(collection: Collection) -> Section:
    """Return the section with kNN accuracy, spread of the projections and loss of every SimSiam recipe."""
    blocks: list[Block] = []
    for group in collection.list_best("simsiam"):
        untrained = [run.metrics[UNTRAINED_KNN] for run in group.runs if UNTRAINED_KNN in run.metrics]
        lines = [(average(untrained)[0], "untrained network")] if untrained else []
        widths = _list_widths(group)
        spreads = [(0.0, "collapsed: 0"), *((1 / math.sqrt(width), f"1/sqrt({width})") for width in widths)]
        panels = [
            _draw(group, "validation/knn_accuracy", "kNN accuracy, %", 100, lines),
            _draw(group, "train/feature_std", "spread of the projections", 1, spreads),
            _draw(group, "train/loss", "training loss", 1),
        ]
        blocks += _assemble(group, panels, "kNN accuracy at the monitored epochs, spread of the projections, loss")
    explanation = (
        "The kNN classifier looks at the backbone's features. The spread is that of the normalised projections: 0 "
        "means that every image gets the same one (collapse), 1/sqrt(width of the projections) that they point "
        "everywhere."
    )
    return Section(
        "SimSiam: kNN while it learns",
        "simsiam",
        (Paragraph(explanation), *blocks) if blocks else (Paragraph("No SimSiam run yet: not run."),),
    )


def _list_widths(group: Group) -> list[int]:
    """Return the widths of the projections; values of normalised vectors that point everywhere spread 1/sqrt(width)."""
    texts = {run.params.get("embedding_width", "") for run in group.runs}
    return sorted(int(text) for text in texts if text.isdecimal() and int(text))


def _draw(
    group: Group, metric: str, title: str, scale: float, lines: list[tuple[float, str]] | None = None
) -> Image | None:
    histories = list_histories(group, metric)
    if not histories:
        return None
    ends = ", ".join(f"{history[-1][1] * scale:.4g}" for history in histories)
    beside = "".join(f"; line at {value * scale:.4g} ({label})" for value, label in lines or ())
    alt = f"{group.recipe}: {title} over the epochs, {len(histories)} seeds, last values {ends}{beside}"
    name = f"{group.recipe}-{metric.replace('/', '-')}"
    return render(name, draw_seeds(title, histories, scale, lines or ()), alt)


def _assemble(group: Group, panels: list[Image | None], what: str) -> list[Block]:
    images = tuple(panel for panel in panels if panel is not None)
    if not images:
        return []
    count = len(group.runs)
    seeds = f"{count} seeds, thin, and their mean" if count > 1 else "1 seed"
    title = f"{group.recipe} ({mark_budget(group)})"
    return [ImageGroup(title, images, f"{what}: {seeds}.", tuple(run.run_id for run in group.runs))]
