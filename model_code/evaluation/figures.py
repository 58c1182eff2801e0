"""Figures of one run: learning curves, confusion matrix, reliability, and the grid of labelled test images.

Every function returns a matplotlib figure that belongs to nobody else: save it and let it go.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

from serving.bundle.manifest import Reliability, ReliabilityBin

GRID_SIDE = 8
RIGHT_COLOUR, WRONG_COLOUR = "#1a7f37", "#c62828"
BAR_COLOUR = "#4a7fb5"
_LONGEST_NAME = 28


def draw_curves(
    title: str,
    series: Mapping[str, Mapping[str, Mapping[int, float]]],
) -> Figure:
    """Draw one panel for each quantity over the epochs.

    Args:
        title: Above all panels.
        series: Panel title -> curve name -> value by epoch, counted from 1, e.g. {"accuracy": {"train": {1: 0.4}}}.
    """
    figure = Figure(figsize=(4.2 * len(series), 3.4), layout="constrained")
    figure.suptitle(_escape_math(title))
    axes = figure.subplots(1, len(series), squeeze=False)[0]
    for axis, (name, curves) in zip(axes, series.items(), strict=True):
        epochs = sorted({epoch for points in curves.values() for epoch in points})
        for curve, points in curves.items():
            marker = "o" if len(points) < 30 else None
            axis.plot(list(points), list(points.values()), marker=marker, markersize=3, label=curve)
        axis.set_title(name)
        axis.set_xlabel("epoch")
        if len(epochs) <= 10:
            axis.set_xticks(epochs)
        axis.grid(alpha=0.3)
        if name == "learning rate":
            axis.set_yscale("log")
        if len(curves) > 1:
            axis.legend()
    return figure


def draw_confusion(title: str, confusion_KK: npt.NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix; colours show the share of the true class, numbers the counts (up to 30 classes)."""
    names, fonts = name_classes(classes)
    percents_KK = 100 * confusion_KK / np.maximum(confusion_KK.sum(1, keepdims=True), 1)
    side = max(4.5, 0.55 * len(classes) + 2)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(percents_KK, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axis, label="share of the true class, %", shrink=0.8)
    axis.set_title(_escape_math(title))
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_xticks(range(len(classes)), names, rotation=45, ha="right", fontfamily=fonts)
    axis.set_yticks(range(len(classes)), names, fontfamily=fonts)
    if len(classes) <= 30:
        for row, column in np.ndindex(confusion_KK.shape):
            colour = "white" if percents_KK[row, column] > 50 else "black"
            axis.text(
                column,
                row,
                str(confusion_KK[row, column]),
                ha="center",
                va="center",
                color=colour,
                fontsize=7,
            )
    return figure


def draw_prediction_grid(
    images_NHWC: npt.NDArray[np.uint8],
    labels_N: npt.NDArray[np.int64],
    predictions_N: npt.NDArray[np.int64],
    classes: Sequence[str],
) -> Figure:
    """Draw the first 8x8 images titled "predicted (true)", green where right and red where wrong."""
    names, fonts = name_classes(classes)
    figure = Figure(figsize=(12, 13))
    # One for all images: 64 axes take seconds.
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    places = np.ndindex(GRID_SIDE, GRID_SIDE)
    for (row, column), image, label, prediction in zip(places, images_NHWC, labels_N, predictions_N, strict=False):
        axis.imshow(image, extent=(column + 0.03, column + 0.97, row + 0.99, row + 0.12))
        axis.text(
            column + 0.5,
            row + 0.11,
            f"{names[prediction]} ({names[label]})",
            ha="center",
            va="bottom",
            fontsize=8,
            fontfamily=fonts,
            color=RIGHT_COLOUR if prediction == label else WRONG_COLOUR,
        )
    axis.set(xlim=(0, GRID_SIDE), ylim=(GRID_SIDE, 0), aspect="auto")
    return figure


def draw_reliability(reliability: Reliability) -> Figure:
    """Draw how often labels are right against how probable they were said to be, without and with the temperature.

    Only without it where it changes nothing.

    Above, the share of right labels in each bin of the largest probability, drawn over its mean; on the diagonal a
    model can be believed. Red lines are labels less often right than said, green ones more often. Below, the images
    in each bin, on a logarithmic scale, because most images lie in the last bin.
    """
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    figure.suptitle(f"reliability on {reliability.count:,} {reliability.split} images")
    sides = [
        ("without the temperature", reliability.ece_before, reliability.ece_before_interval, reliability.bins_before),
        ("with it", reliability.ece_after, reliability.ece_after_interval, reliability.bins_after),
    ]
    if reliability.bins_before == reliability.bins_after:
        sides = [("no temperature", *sides[0][1:])]
    most_images = max(10, *(2 * found.count for *_, bins in sides for found in bins))
    axes = figure.subplots(2, len(sides), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1))
    for column, (title, error, interval, bins) in enumerate(sides):
        above, below = axes[:, column]
        spread = "" if interval is None else f"\n95 % CI {interval[0]:.4f} to {interval[1]:.4f}"
        above.set_title(f"{title}: ECE {error:.4f}{spread}")
        _draw_bins(above, [found for found in bins if found.count])
        below.bar(
            [found.low for found in bins],
            [found.count for found in bins],
            width=[found.high - found.low for found in bins],
            align="edge",
            color=BAR_COLOUR,
            edgecolor="white",
        )
        below.set_yscale("symlog", linthresh=1)
        below.set_ylim(0, most_images)
        below.grid(alpha=0.3)
        below.set_xlabel("largest probability")
    axes[0, 0].set_ylabel("share of right labels")
    axes[1, 0].set_ylabel("images")
    axes[0, 0].legend(loc="upper left")
    return figure


def draw_shares(title: str, shares: Mapping[str, float]) -> Figure:
    """Draw shares of a whole as one bar each, the first one on top."""
    figure = Figure(figsize=(6, 1 + 0.4 * len(shares)), layout="constrained")
    axis = figure.subplots()
    bars = axis.barh(list(shares), list(shares.values()), color=BAR_COLOUR)
    axis.bar_label(bars, [f"{share:.0%}" for share in shares.values()], padding=3)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.1)
    axis.set_title(_escape_math(title))
    return figure


def _draw_bins(axis: Axes, bins: Sequence[ReliabilityBin]) -> None:
    """Draw accuracy over confidence of the bins that have images."""
    axis.bar(
        [found.low for found in bins],
        [found.accuracy for found in bins],
        width=[found.high - found.low for found in bins],
        align="edge",
        color=BAR_COLOUR,
        edgecolor="white",
        alpha=0.45,
    )
    for label, colour, some in (
        ("less right than said", WRONG_COLOUR, [found for found in bins if found.accuracy < found.confidence]),
        ("more right than said", RIGHT_COLOUR, [found for found in bins if found.accuracy >= found.confidence]),
    ):
        confidences = [found.confidence for found in some]
        accuracies = [found.accuracy for found in some]
        axis.vlines(confidences, accuracies, confidences, colors=colour, linewidth=1.5, label=label)
        axis.plot(confidences, accuracies, "o", color=colour, markersize=4)
    axis.plot([0, 1], [0, 1], linestyle="--", color="black", linewidth=1, label="as right as said")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.03)
    axis.grid(alpha=0.3)


def name_classes(classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of classes as figures show them, and the font families that draw them.

    Where no installed font has a name's characters, the class is called by its number, from 0 in the order of labels.
    Long names are shortened, unless two of them would become the same.
    """
    shortened = [_shorten(name) for name in classes]
    if len(set(shortened)) == len(classes):
        classes = shortened
    default = FontProperties()
    known = get_font(findfont(default)).get_charmap().keys()
    missing = [{ord(char) for char in name if char.isprintable()} - known for name in classes]
    families = dict.fromkeys(default.get_family())
    others = dict(_list_fonts()) if any(missing) else {}
    names = []
    for label, (name, characters) in enumerate(zip(classes, missing, strict=True)):
        font = next((family for family, drawn in others.items() if characters <= drawn), None) if characters else ""
        if font:
            families[font] = None
        names.append(f"class {label}" if font is None else _escape_math(name))
    return names, list(families)


def _shorten(name: str) -> str:
    """Return a long name without its middle: names often differ at their ends."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 9]}…{name[-8:]}"


def _list_fonts() -> Iterator[tuple[str, set[int]]]:
    """Yield the installed families that are drawn from outlines, with their characters, those without serifs first."""
    files = {font.name: font.fname for font in fontManager.ttflist if not font.name.startswith("Last Resort")}
    for family in sorted(files, key=lambda name: ("Sans" not in name, name)):
        with suppress(OSError, RuntimeError):  # a damaged font, or one that is gone
            font = get_font(files[family])
            if font.scalable:
                yield family, set(font.get_charmap())


def _escape_math(text: str) -> str:
    """Keep matplotlib from reading what stands between two dollar signs as a formula."""
    return text.replace("$", r"\$")
