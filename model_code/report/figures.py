"""The report's drawings: forest plots, learning curves over seeds, SimSiam's monitor.

Every function returns a matplotlib figure that belongs to nobody else; `render` makes a PNG of it.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from model_code.report.collection import Group, History
from model_code.report.document import Image
from model_code.report.verdicts import Verdict

SHOWN_DPI = 100
SHARPNESS = 1.5
PANEL_INCHES, OVERLAY_INCHES = (3.7, 2.6), (6.2, 3.6)
MEAN_COLOUR, SEED_COLOUR, CAUTION_COLOUR, PUBLISHED_COLOUR = "#1f4e79", "#8fb4d9", "#8a8a8a", "#b3541e"
FEW_EPOCHS = 15
PALETTE_COLOURS = 128


def render(name: str, figure: Figure, alt: str, shown_dpi: int = SHOWN_DPI) -> Image:
    """Return a figure as PNG of one and a half times the pixels that it is shown at; equal figures give equal bytes."""
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=SHARPNESS * shown_dpi)
    # A palette makes the file a third as large.
    PIL.Image.open(drawn).convert("RGB").quantize(PALETTE_COLOURS).save(packed, "PNG", optimize=True)
    return Image(name, packed.getvalue(), round(figure.get_figwidth() * shown_dpi), alt)


def draw_forest(verdicts: Sequence[Verdict]) -> Figure:
    """Draw one line for each verdict with pairs: its mean difference in points and, if it has one, the interval."""
    labels = ["\n".join(textwrap.wrap(verdict.contrast.label, 34)) for verdict in verdicts]
    inches = 0.9 + sum(0.2 + 0.16 * (1 + label.count("\n")) for label in labels)
    figure = Figure(figsize=(6.2, inches), layout="constrained")
    axis = figure.subplots()
    for row, verdict in enumerate(verdicts):
        colour = MEAN_COLOUR if verdict.is_full else CAUTION_COLOUR
        is_decided = verdict.interval is not None and not verdict.is_smoke and not verdict.is_descriptive
        if verdict.interval is not None and not verdict.is_smoke:
            low, high = verdict.interval
            axis.plot([low * 100, high * 100], [row, row], color=colour, linewidth=1.5, marker="|", markersize=7)
        axis.plot(verdict.mean * 100, row, "o", color=colour, markerfacecolor=colour if is_decided else "white")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.margins(x=0.1)
    axis.set_xlabel("points", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", alpha=0.3)
    return figure


@dataclass(frozen=True)
class Dot:
    """One row of the chart of published accuracies and ours; fractions.

    Attributes:
        label: Recipe.
        published: Accuracy in the article.
        ours: Mean over the seeds; None for what was not run.
        interval: 95 % interval of ours; None where there is none.
        is_comparable: True if ours may stand beside the published figure.
    """

    label: str
    published: float
    ours: float | None
    interval: tuple[float, float] | None
    is_comparable: bool


def draw_published(dots: Sequence[Dot], ends: tuple[float, float]) -> Figure:
    """Draw a line for each recipe: a diamond for the article, a dot with its interval for ours, a ring for not run.

    Args:
        dots: One for each recipe.
        ends: Lowest and highest accuracy of the axis, which charts side by side share.
    """
    # Names stand above their lines: on a phone, a column of names would leave no room for the dots.
    figure = Figure(figsize=(4.6, 0.7 + 0.4 * len(dots)), layout="constrained")
    axis = figure.subplots()
    for row, dot in enumerate(dots):
        axis.text(0.01, row - 0.27, dot.label, fontsize=8, transform=axis.get_yaxis_transform())
        axis.plot(dot.published * 100, row, "D", color=PUBLISHED_COLOUR, markersize=4)
        if dot.ours is None:
            axis.plot(dot.published * 100, row, "o", color=CAUTION_COLOUR, markerfacecolor="none", markersize=9)
            continue
        colour = MEAN_COLOUR if dot.is_comparable else CAUTION_COLOUR
        if dot.interval is not None:
            axis.plot([100 * end for end in dot.interval], [row, row], color=colour, linewidth=1.5, marker="|")
        axis.plot(dot.ours * 100, row, "o", color=colour, markersize=5)
    axis.set_yticks(range(len(dots)), [""] * len(dots))
    axis.set_ylim(len(dots) - 0.4, -0.9)
    axis.update_datalim([(100 * end, 0) for end in ends])
    axis.margins(x=0.05)
    axis.set_xlabel("accuracy, %", fontsize=9)
    axis.tick_params(axis="x", labelsize=9)
    axis.tick_params(axis="y", length=0)
    axis.grid(alpha=0.3)
    return figure


def draw_seeds(
    title: str,
    histories: Sequence[History],
    scale: float = 1,
    lines: Sequence[tuple[float, str]] = (),
    published: History = (),
) -> Figure:
    """Draw one quantity over the epochs: a thin line for each seed and their mean where all of them have a value.

    Args:
        title: Above the panel; says quantity and unit.
        histories: One for each seed.
        scale: Factor of values and lines: 100 for percent.
        lines: (value, label) of horizontal lines to compare with.
        published: Curve of an article for this quantity; empty for none.
    """
    figure = Figure(figsize=PANEL_INCHES, layout="constrained")
    axis = figure.subplots()
    longest = max((len(history) for history in histories), default=0)
    marker: dict[str, Any] = {"marker": "o", "markersize": 3} if longest <= FEW_EPOCHS else {}
    is_single = len(histories) == 1
    for history in histories:
        steps, values = zip(*history, strict=True)
        colour, width = (MEAN_COLOUR, 1.6) if is_single else (SEED_COLOUR, 0.9)
        axis.plot(steps, np.multiply(values, scale), color=colour, linewidth=width, **(marker if is_single else {}))
    if len(histories) > 1:
        common_steps, means = _average(histories)
        axis.plot(common_steps, np.multiply(means, scale), color=MEAN_COLOUR, linewidth=1.6, label="mean", **marker)
    for (value, label), style in zip(lines, ("--", ":", "-."), strict=False):
        axis.axhline(value * scale, color=PUBLISHED_COLOUR, linestyle=style, linewidth=1.2, label=label)
    if published:
        steps, values = zip(*published, strict=True)
        axis.plot(steps, np.multiply(values, scale), color=PUBLISHED_COLOUR, linestyle="--", label="published")
    _finish(axis, title)
    return figure


def _finish(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("epoch", fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7)


def draw_arms(title: str, arms: Mapping[str, Sequence[History]], scale: float = 1) -> Figure:
    """Draw one quantity over the epochs for several recipes: the mean of each one's seeds, and thin lines for them.

    Args:
        title: Above the panel; says quantity and unit.
        arms: Label -> one history for each seed.
        scale: Factor of the values: 100 for percent.
    """
    figure = Figure(figsize=OVERLAY_INCHES, layout="constrained")
    axis = figure.subplots()
    longest = max(len(history) for histories in arms.values() for history in histories)
    marker: dict[str, Any] = {"marker": "o", "markersize": 3} if longest <= FEW_EPOCHS else {}
    for number, (label, histories) in enumerate(arms.items()):
        colour, style = f"C{number % 10}", ("-", "--", ":")[number // 10 % 3]
        if len(histories) > 1:
            for history in histories:
                steps, values = zip(*history, strict=True)
                axis.plot(steps, np.multiply(values, scale), color=colour, linewidth=0.5, alpha=0.5, linestyle=style)
        common_steps, means = _average(histories)
        axis.plot(
            common_steps, np.multiply(means, scale), color=colour, linewidth=1.6, linestyle=style, label=label, **marker
        )
    _finish(axis, title)
    return figure


def list_histories(group: Group, metric: str) -> list[History]:
    """Return the curves of a metric that the runs of a group have, by seed; a single point is no curve."""
    return [history for run in group.runs if len(history := run.histories.get(metric, ())) > 1]


def _average(histories: Sequence[History]) -> tuple[list[int], list[float]]:
    by_step = [dict(history) for history in histories]
    steps = sorted(set.intersection(*(set(values) for values in by_step)))
    return steps, [float(np.mean([values[step] for values in by_step])) for step in steps]
