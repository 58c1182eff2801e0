import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.font_manager import fontManager
from PIL import Image

from model_code.evaluation.figures import (
    GRID_SIDE,
    RIGHT_COLOUR,
    WRONG_COLOUR,
    draw_confusion,
    draw_curves,
    draw_prediction_grid,
    draw_reliability,
)
from serving.bundle.manifest import Reliability, ReliabilityBin


def save(figure):
    """Return the size of the figure as a PNG, and how many colours it has."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    with Image.open(file) as image:
        assert image.format == "PNG"
        return image.size, len(image.convert("RGB").getcolors(maxcolors=2**24))


def name_classes(count):
    return [f"class {index}" for index in range(count)]


def test_curves_have_a_panel_for_each_quantity():
    figure = draw_curves(
        "three epochs",
        {
            "loss": {"train": {1: 3.0, 2: 2.0, 3: 1.0}, "validation": {1: 3.0, 2: 2.5, 3: 2.6}},
            "learning rate": {"lr": {1: 0.1, 3: 0.01}},
        },
    )
    loss, rate = figure.axes
    assert figure.get_suptitle() == "three epochs"
    assert [axis.get_title() for axis in (loss, rate)] == ["loss", "learning rate"]
    assert [axis.get_xlabel() for axis in (loss, rate)] == ["epoch", "epoch"]
    assert [line.get_label() for line in loss.lines] == ["train", "validation"]
    assert [list(line.get_ydata()) for line in loss.lines] == [[3.0, 2.0, 1.0], [3.0, 2.5, 2.6]]
    assert list(rate.lines[0].get_xdata()) == [1, 3]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train", "validation"]
    assert rate.get_legend() is None
    (width, height), _ = save(figure)
    assert (width, height) == (420, 170)


@pytest.mark.parametrize("epochs", [2, 100])
def test_curves_of_any_length(epochs):
    figure = draw_curves("t", {"loss": {"train": dict(enumerate(np.linspace(2, 1, epochs), start=1))}})
    save(figure)
    ticks = figure.axes[0].get_xticks()
    assert all(tick == int(tick) for tick in ticks)


@pytest.mark.parametrize("names", [("$", "$$", "$$$"), ("$x^$", "a$b$c", r"\$")])
def test_names_between_dollar_signs_are_no_formulas(names):
    labels_N = np.array([0, 1, 2, 1])
    save(draw_confusion(f"test of {names[0]} and {names[0]}", np.eye(3, dtype=np.int64), names))
    save(draw_prediction_grid(np.zeros((4, 8, 8, 3), np.uint8), labels_N, labels_N[::-1], names))
    save(draw_curves("$ and $$", {"accuracy": {"train": {1: 0.4}}}))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("has_fonts", [True, False])
def test_names_that_no_font_draws_become_numbers(monkeypatch, has_fonts):
    names = ["チーズ", "हिन्दी", "é, ß and я"]
    if not has_fonts:
        own = [font for font in fontManager.ttflist if font.name == "DejaVu Sans"]
        monkeypatch.setattr(fontManager, "ttflist", own)
    figure = draw_confusion("test", np.eye(3, dtype=np.int64), names)
    save(figure)
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown == [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert shown[2] == names[2]
    if not has_fonts:
        assert shown[:2] == ["class 0", "class 1"]
    labels_N = np.array([0, 1])
    grid = draw_prediction_grid(np.zeros((2, 8, 8, 3), np.uint8), labels_N, labels_N[::-1], names)
    save(grid)
    assert grid.axes[0].texts[0].get_text() == f"{shown[1]} ({shown[0]})"


def test_confusion_shows_counts_and_shares_of_the_true_class():
    confusion_KK = np.array([[8, 2, 0], [0, 0, 0], [1, 0, 4]])
    figure = draw_confusion("2 classes, one empty", confusion_KK, ["ant", "bee", "cat"])
    axis = figure.axes[0]
    assert axis.get_title() == "2 classes, one empty"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted", "true")
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["ant", "bee", "cat"]
    assert np.allclose(axis.images[0].get_array(), [[80, 20, 0], [0, 0, 0], [20, 0, 80]])
    assert axis.images[0].get_clim() == (0, 100)
    numbers = {text.get_position(): (text.get_text(), text.get_color()) for text in axis.texts}
    assert len(numbers) == 9
    assert numbers[0, 0] == ("8", "white")
    assert numbers[1, 0] == ("2", "black")
    assert numbers[0, 2] == ("1", "black")
    assert figure.axes[1].get_ylabel() == "share of the true class, %"
    save(figure)


@pytest.mark.parametrize(("classes", "numbers"), [(2, 4), (30, 900), (31, 0), (101, 0)])
def test_numbers_are_left_out_where_they_would_not_be_read(classes, numbers):
    figure = draw_confusion("t", np.eye(classes, dtype=np.int64), name_classes(classes))
    assert len(figure.axes[0].texts) == numbers
    assert len(figure.axes[0].get_yticklabels()) == classes


def test_the_figure_grows_with_the_classes():
    widths = [draw_confusion("t", np.eye(n, dtype=np.int64), name_classes(n)).get_figwidth() for n in (3, 10, 40)]
    assert widths == sorted(set(widths))
    figure = draw_confusion("t", np.eye(40, dtype=np.int64), name_classes(40))
    (width, height), _ = save(figure)
    assert width > height > 1000


def draw_grid(count):
    """Image n is grey n; predictions run ahead of labels at every third image."""
    images_NHWC = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 4, 3))
    labels_N = np.arange(count) % 3
    predictions_N = np.where(np.arange(count) % 3 == 2, 0, labels_N)
    return draw_prediction_grid(images_NHWC, labels_N, predictions_N, ["ant", "bee", "cat"])


def test_grid_titles_are_green_where_right_and_red_where_wrong():
    [axis] = draw_grid(100).axes
    assert len(axis.images) == len(axis.texts) == GRID_SIDE**2 == 64
    assert not axis.axison
    expected = [("ant (ant)", RIGHT_COLOUR), ("bee (bee)", RIGHT_COLOUR), ("ant (cat)", WRONG_COLOUR)]
    for index, (image, title) in enumerate(zip(axis.images, axis.texts, strict=True)):
        text, colour = expected[index % 3]
        assert title.get_text() == text
        assert to_hex(title.get_color()) == colour
        assert image.get_array()[0, 0].tolist() == [index] * 3
        left, right, bottom, top = image.get_extent()
        assert bottom > top, "upright: rows are counted from the top"
        assert (left // 1, top // 1) == (index % GRID_SIDE, index // GRID_SIDE) == (right // 1, bottom // 1)
        assert (title.get_position()[0], title.get_position()[1] // 1) == ((left + right) / 2, top // 1)
    green, red = (tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5)) for colour in (RIGHT_COLOUR, WRONG_COLOUR))
    assert green[1] > max(green[0], green[2])
    assert red[0] > max(red[1], red[2])


@pytest.mark.parametrize("count", [0, 63])
def test_a_grid_of_few_images_leaves_places_empty(count):
    [axis] = draw_grid(count).axes
    assert len(axis.images) == len(axis.texts) == count
    assert not axis.axison
    assert (axis.get_xlim(), axis.get_ylim()) == ((0, GRID_SIDE), (GRID_SIDE, 0))


def test_the_grid_can_be_saved():
    size, colours = save(draw_grid(64))
    assert size == (600, 650)
    assert colours > 64


def test_figures_belong_to_nobody_else():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    draw_grid(1)
    draw_curves("t", {"loss": {"train": {1: 1.0}}})
    assert pyplot.get_fignums() == before


def make_bins(*found):
    """Four bins; each given as (count, confidence, accuracy)."""
    return tuple(
        ReliabilityBin(low=index / 4, high=(index + 1) / 4, count=count, confidence=confidence, accuracy=accuracy)
        for index, (count, confidence, accuracy) in enumerate(found)
    )


def test_reliability_has_a_panel_before_and_one_after():
    before = make_bins((0, 0, 0), (10, 0.45, 0.3), (90, 0.7, 0.5), (1900, 0.97, 1.0))
    after = make_bins((5, 0.2, 0.2), (20, 0.4, 0.45), (100, 0.6, 0.55), (1875, 0.95, 0.94))
    reliability = Reliability(
        split="test", count=2000, ece_before=0.0321, ece_after=0.0123, bins_before=before, bins_after=after
    )
    figure = draw_reliability(reliability)
    assert figure.get_suptitle() == "reliability on 2,000 test images"
    left, right, left_counts, right_counts = figure.axes
    assert [axis.get_title() for axis in (left, right)] == [
        "without the temperature: ECE 0.0321",
        "with it: ECE 0.0123",
    ]
    # A bin without images has no accuracy, so none is drawn.
    assert [bar.get_height() for bar in left.patches] == [0.3, 0.5, 1.0]
    assert [bar.get_x() for bar in left.patches] == [0.25, 0.5, 0.75]
    assert [bar.get_height() for bar in right.patches] == [0.2, 0.45, 0.55, 0.94]
    assert [bar.get_height() for bar in left_counts.patches] == [0, 10, 90, 1900]
    assert [bar.get_height() for bar in right_counts.patches] == [5, 20, 100, 1875]
    short, fair, diagonal = left.lines
    assert list(zip(short.get_xdata(), short.get_ydata(), strict=True)) == [(0.45, 0.3), (0.7, 0.5)]
    assert list(zip(fair.get_xdata(), fair.get_ydata(), strict=True)) == [(0.97, 1.0)]
    assert (to_hex(short.get_color()), to_hex(fair.get_color())) == (WRONG_COLOUR, RIGHT_COLOUR)
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    size, colours = save(figure)
    assert size == (420, 260)
    assert colours > 64


def test_reliability_has_one_panel_where_there_is_no_temperature():
    bins = make_bins((0, 0, 0), (10, 0.45, 0.3), (90, 0.7, 0.5), (1900, 0.97, 1.0))
    reliability = Reliability(
        split="test",
        count=2000,
        ece_before=0.0321,
        ece_after=0.0321,
        bins_before=bins,
        bins_after=bins,
        ece_before_interval=(0.0123, 0.0456),
        ece_after_interval=(0.0123, 0.0456),
    )
    figure = draw_reliability(reliability)
    above, below = figure.axes
    assert above.get_title() == "no temperature: ECE 0.0321\n95 % CI 0.0123 to 0.0456"
    assert [bar.get_height() for bar in below.patches] == [0, 10, 90, 1900]
    save(figure)


def test_reliability_without_images_can_be_drawn():
    empty = make_bins(*[(0, 0, 0)] * 4)
    nothing = Reliability(split="validation", count=0, ece_before=0, ece_after=0, bins_before=empty, bins_after=empty)
    figure = draw_reliability(nothing)
    assert not figure.axes[0].patches
    save(figure)
