"""Learning curves of supervised runs, beside published ones, and what watches over SimSiam's."""

import math
from collections.abc import Mapping, Sequence

from model_code.report.amounts import format_share
from model_code.report.collection import FULL, Collection, Group, History, average
from model_code.report.comparison import NOT_RUN, describe_budget, mark_budget, summarise
from model_code.report.document import Block, Cell, Folded, Image, ImageGroup, Paragraph, Section, Table, compact
from model_code.report.figures import draw_seeds, list_histories, render
from model_code.report.published import PUBLISHED_CURVES

BACKBONE_FIGURES = {
    "knn": "kNN",
    "knn_top5": "kNN, top 5",
    "linear": "linear",
    "linear_top5": "linear, top 5",
    "augmented_linear": "linear, augmented",
    "augmented_linear_top5": "linear, augmented, top 5",
}
_PERCENT = 100
UNTRAINED_KNN = "validation/untrained_knn_accuracy"
# Metric of a supervised run -> title of its panel, and what its values are multiplied by.
_PANELS: dict[str, tuple[str, float]] = {
    "train/loss": ("training loss", 1),
    "train/accuracy": ("training accuracy, %", _PERCENT),
    "validation/loss": ("validation loss", 1),
    "validation/accuracy": ("validation accuracy, %", _PERCENT),
}


def build_learning_curves(collection: Collection) -> Section:
    """Return the section with the curves of every supervised recipe, and published curves also of one not run."""
    groups = collection.list_best("supervised")
    blocks: list[Block] = []
    for group in groups:
        if group.recipe not in PUBLISHED_CURVES or not group.is_full:
            panels = [_draw(group, metric, *_PANELS[metric]) for metric in ("validation/accuracy", "validation/loss")]
            blocks += _assemble(group, panels, "Validation accuracy and loss")
    if not any(list_histories(group, "validation/accuracy") for group in groups):
        found = "none has two epochs" if groups else NOT_RUN
        blocks.append(Paragraph(f"No curve of a supervised run yet: {found}."))
    for recipe, curves in PUBLISHED_CURVES.items():
        blocks.append(_build_beside_published(recipe, collection.get_group(recipe, FULL), curves))
    return Section("Learning curves", "curves", tuple(blocks))


def _build_beside_published(recipe: str, group: Group | None, curves: Mapping[str, Sequence[float]]) -> Block:
    """Return every published curve of a recipe beside ours; alone and folded where ours was not run."""
    panels = []
    for metric, values in curves.items():
        title, scale = _PANELS[metric]
        published = tuple(enumerate(values, start=1))
        histories = list_histories(group, metric) if group else []
        name = f"{recipe}-published-{metric.replace('/', '-')}"
        alt = f"{recipe}: {title} over the epochs. {_describe_ends('published', [published], scale)}"
        if histories:
            alt += f"; {_describe_ends('ours', histories, scale)}"
        panels.append(render(name, draw_seeds(title, histories, scale, published=published), alt))
    held_out = [tuple(enumerate(curves["validation/accuracy"], start=1))]
    caption = f"Validation accuracy: {_describe_ends('published', held_out, _PERCENT)}"
    if group and (ours := list_histories(group, "validation/accuracy")):
        caption += f"; {_describe_ends('ours', ours, _PERCENT)}"
    caption += ". The article's are the test images, ours are held out of the training images."
    if group is None:
        title = f"{recipe}: the published run"
        return Folded(f"{title}; no full run of ours", ImageGroup(title, tuple(panels), caption, ()))
    title = f"{recipe} ({mark_budget(group)}), beside the published run"
    return ImageGroup(title, tuple(panels), caption, tuple(run.run_id for run in group.runs))


def _describe_ends(whose: str, histories: Sequence[History], scale: float) -> str:
    """Return the highest and the last value of each history."""
    ends = [(max(history, key=lambda point: point[1]), history[-1]) for history in histories]
    return ", ".join(
        f"{whose} highest {_format(highest, scale)} after epoch {epoch}, last {_format(last, scale)} after epoch {end}"
        for (epoch, highest), (end, last) in ends
    )


def _format(value: float, scale: float) -> str:
    return format_share(value) if scale == _PERCENT else f"{value * scale:.4g}"


def build_simsiam_curves(collection: Collection) -> Section:
    """Return the section with kNN accuracy, spread of the projections and loss of every SimSiam recipe."""
    title, groups = "SimSiam: kNN while it learns", collection.list_best("simsiam")
    blocks: list[Block] = []
    for group in groups:
        untrained = [run.metrics[UNTRAINED_KNN] for run in group.runs if UNTRAINED_KNN in run.metrics]
        lines = [(average(untrained)[0], "before the first epoch")] if untrained else []
        widths = _list_widths(group)
        spreads = [(0.0, "collapsed: 0"), *((1 / math.sqrt(width), f"1/sqrt({width})") for width in widths)]
        panels = [
            _draw(group, "validation/knn_accuracy", "kNN accuracy, %", _PERCENT, lines),
            _draw(group, "train/feature_std", "spread of the projections", 1, spreads),
            _draw(group, "train/loss", "training loss", 1),
        ]
        blocks += _assemble(group, panels, "kNN accuracy at the monitored epochs, spread of the projections, loss")
    explanation = (
        "The kNN classifier looks at the backbone's features. The spread is that of the normalised projections: 0 "
        "means that every image gets the same one (collapse), 1/sqrt(width of the projections) that they point "
        "everywhere."
    )
    if not groups:
        return Section(title, "simsiam", (Paragraph("No SimSiam run yet: not run."),))
    return Section(title, "simsiam", (Paragraph(explanation), _build_backbones(groups), *blocks))


def _build_backbones(groups: Sequence[Group]) -> Table:
    """Return the table of the accuracies on the test images, or without any on the validation images."""
    rows = []
    for group in groups:
        split = "test" if "test/knn_accuracy" in group.latest.metrics else "validation"
        # The curve of the monitored epochs has that name; the figure is its best point.
        names = {"validation/knn_accuracy": "validation/best_accuracy"}
        metrics = [f"{split}/{name}_accuracy" for name in BACKBONE_FIGURES]
        rows.append(
            (
                Cell(group.recipe, is_code=True, detail=f"{split} images"),
                *(summarise(group, names.get(metric, metric)) for metric in metrics),
                Cell(str(len(group.runs))),
                describe_budget(group),
                Cell(run_ids=tuple(run.run_id for run in group.runs)),
            )
        )
    columns = ("recipe", *BACKBONE_FIGURES.values(), "seeds", "budget", "runs")
    return compact(Table("Accuracy of kNN and of linear layers on the backbones", columns, tuple(rows)))


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
    ends = ", ".join(_format(history[-1][1], scale) for history in histories)
    beside = "".join(f"; line at {_format(value, scale)} ({label})" for value, label in lines or ())
    seeds = f"{len(histories)} seed{'s' * (len(histories) > 1)}"
    alt = f"{group.name}: {title} over the epochs, {seeds}, last values {ends}{beside}"
    name = f"{group.name.replace(' ', '-')}-{metric.replace('/', '-')}"
    return render(name, draw_seeds(title, histories, scale, lines or ()), alt)


def _assemble(group: Group, panels: list[Image | None], what: str) -> list[Block]:
    images = tuple(panel for panel in panels if panel is not None)
    if not images:
        return []
    count = len(group.runs)
    seeds = f"{count} seeds, thin, and their mean" if count > 1 else "1 seed"
    title = f"{group.name} ({mark_budget(group)})"
    return [ImageGroup(title, images, f"{what}: {seeds}.", tuple(run.run_id for run in group.runs))]
