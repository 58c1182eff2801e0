from dataclasses import replace

import pytest

from model_code.report.collection import ClassReport
from model_code.report.comparison import build_comparison, compare, summarise
from model_code.report.document import Folded, Table
from model_code.report.published import ARTICLES, SECONDS_PER_EPOCH, PublishedFigure
from tests.unit.report.synthetic_runs import make_collection, make_run

FIGURE = PublishedFigure("row", "net", "validation/best_accuracy", 0.8)


def make_runs(*values, budget="full", metric="validation/best_accuracy", more=None, **settings):
    return [
        make_run("net", seed, budget, metrics={metric: value, **(more or {})}, **settings)
        for seed, value in enumerate(values)
    ]


def test_full_runs_get_a_difference():
    row = compare(make_collection(make_runs(0.81, 0.83)), FIGURE)
    assert row.is_comparable
    assert row.difference == pytest.approx(0.02)


@pytest.mark.parametrize("budget", ["smoke", "custom: epochs=5"])
def test_other_runs_get_none(budget):
    row = compare(make_collection(make_runs(0.81, 0.83, budget=budget)), FIGURE)
    assert (row.is_comparable, row.difference, len(row.values)) == (False, None, 2)


def test_runs_without_the_figure():
    row = compare(make_collection(make_runs(0.5, metric="other")), FIGURE)
    assert (row.values, row.difference) == ((), None)
    assert compare(make_collection(), FIGURE).group is None


def test_a_figure_of_one_epoch():
    figure = PublishedFigure("row", "net", "train/accuracy", 0.4, epoch=2)
    run = make_run("net", histories={"train/accuracy": ((1, 0.3), (2, 0.45))})
    assert compare(make_collection([run]), figure).difference == pytest.approx(0.05)


def test_a_figure_of_one_class():
    figure = PublishedFigure("row", "net", "test/accuracy", 0.4, class_name="cat")
    reports = [ClassReport(split, 0.5, {"cat": 0.6}, None) for split in ("test", "validation")]
    runs = [make_run("net", seed, report=report) for seed, report in enumerate((*reports, None))]
    assert compare(make_collection(runs), figure).values == (0.6,)


def test_seconds_of_an_epoch_are_the_mean_of_those_logged():
    figure = PublishedFigure("row", "net", SECONDS_PER_EPOCH, 95, "seconds")
    seconds = {"train/seconds": ((1, 60.0), (2, 20.0), (3, 10.0))}
    runs = [
        make_run("net", 0, seconds=400.0, epochs=3, histories=seconds, metrics={"train/seconds": 10.0}),
        make_run("net", 1, seconds=400.0, epochs=3, metrics={"train/seconds": 10.0}),
    ]
    assert compare(make_collection(runs), figure).values == (30.0,)


def test_without_seconds_of_the_epochs_there_is_no_value():
    run = make_run("swin_cifar10_published", seconds=400.0, epochs=20)
    _, rows = read_table(make_collection([run]), "Swin")
    ours = rows["time of an epoch"][2]
    assert (ours.text, ours.detail, ours.is_caution) == ("no value", "no train/seconds", True)


@pytest.mark.parametrize(("value", "unit"), [(47, "count"), (0.47, "fraction"), (4.7, "seconds")])
@pytest.mark.parametrize(("images", "is_comparable"), [(50_000, True), (1000, False), (None, False)])
def test_only_figures_of_equally_many_images_are_compared(value, unit, images, is_comparable):
    figure = PublishedFigure("row", "net", "validation/it", 1, unit, images=50_000)
    more = {"test/pictures": 50_000} | ({} if images is None else {"validation/pictures": images})
    row = compare(make_collection(make_runs(value, metric="validation/it", more=more)), figure)
    assert (row.values, row.is_comparable) == ((value,), is_comparable)
    assert row.difference == (value - 1 if is_comparable else None)


@pytest.mark.parametrize(
    ("unit", "ours", "is_comparable"),
    [("fraction", 10_000, True), ("fraction", 10_240, False), ("count", 10_000, False)],
)
def test_a_fraction_may_leave_out_a_partial_batch(unit, ours, is_comparable):
    figure = PublishedFigure("row", "net", "validation/it", 1, unit, images=9_984)
    row = compare(make_collection(make_runs(0.5, metric="validation/it", more={"validation/pictures": ours})), figure)
    assert row.is_comparable == is_comparable


@pytest.mark.parametrize("more", [{}, {"validation/pictures": 7}])
def test_a_figure_on_an_unknown_number_of_images_compares_with_any(more):
    figure = PublishedFigure("row", "net", "validation/it", 0.5)
    row = compare(make_collection(make_runs(0.6, metric="validation/it", more=more)), figure)
    assert row.difference == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("counts", "note"),
    [
        ((9_984, 9_984), ""),
        ((10_000, 10_000), "on 10,000 images"),  # a partial batch more than published: compared
        ((5000, 5000), "on 5,000 images"),
        ((10_000, 5000), "on 5,000 or 10,000 images"),
        ((None, None), "count of images not recorded"),
        ((10_000, None), "count of images not recorded"),
    ],
)
def test_other_counts_of_images_are_marked(counts, note):
    report = ClassReport("test", 0.5, {"cat": 0.6}, None)
    runs = [
        make_run(
            "swin_cifar10_published",
            seed,
            metrics={"test/accuracy": 0.7} | ({} if count is None else {"test/pictures": count}),
            report=report,
        )
        for seed, count in enumerate(counts)
    ]
    is_compared = set(counts) in ({9_984}, {10_000})
    columns, rows = read_table(make_collection(runs), "Swin")
    for label, text, difference in (
        ("final, test images", "70.00 ± 0.00 %", "+2.25 points"),
        ("class cat", "60.00 ± 0.00 %", "+8.59 points"),
    ):
        row = dict(zip(columns, rows[label], strict=True))
        ours = row["ours (mean ± std)"]
        assert (ours.text, ours.detail, ours.is_caution) == (text, note, not is_compared)
        assert ("ours - published" in row) == is_compared, "a column without values is left out"
        assert not is_compared or row["ours - published"].text == difference


def test_times_of_untrained_networks_are_shown_without_a_difference():
    metrics = {"validation/correct": 50, "validation/seconds": 20.0, "validation/pictures": 50_000}
    columns, rows = read_table(make_collection([make_run("swin_t_imagenet_untrained", metrics=metrics)]), "Untrained")
    right, time = (dict(zip(columns, rows[f"swin_t: {what}"], strict=True)) for what in ("right", "time"))
    assert right["ours - published"].text == "+7 images"
    ours = time["ours (mean ± std)"]
    assert (ours.text, ours.detail, time["ours - published"].text) == ("20.00 s", "cuda (NVIDIA H200)", "")
    said = "packed images of 256 pixels from memory, the article decoded files, on two GPUs"
    assert [said in article.remark for article in ARTICLES] == [False, False, False, True]


def read_table(collection, caption):
    [table] = [
        block
        for block in build_comparison(collection).blocks
        if isinstance(block, Table) and caption in block.caption and "not run" not in block.caption
    ]
    return table.columns, {row[0].text: row for row in table.rows}


def list_not_run(collection, caption):
    """Return the rows of an article's folded table of figures without runs."""
    blocks = build_comparison(collection).blocks
    [table] = [one.block for one in blocks if isinstance(one, Folded) and caption in one.block.caption]
    return table.rows


def enter_resnet(name, accuracies, budget="full"):
    metrics = [
        {"validation/best_accuracy": value, "test/accuracy": value - 0.01, "validation/pictures": 10_000}
        for value in accuracies
    ]
    return [make_run(f"resnet18_cifar10_{name}", seed, budget, metrics=values) for seed, values in enumerate(metrics)]


@pytest.mark.parametrize(
    ("starts", "note"),
    [
        (("p", "p"), ""),
        (("", ""), ""),
        (("p", "q"), "the runs started from different weights"),
        (("p", ""), "the runs started from different weights"),
    ],
)
def test_runs_that_started_from_different_runs_are_marked(starts, note):
    runs = [
        replace(run, pretrained_run_id=start)
        for run, start in zip(enter_resnet("exp", [0.83, 0.9]), starts, strict=True)
    ]
    collection = make_collection(runs)
    columns, rows = read_table(collection, "ResNet-18")
    [exp] = [dict(zip(columns, row, strict=True)) for label, row in rows.items() if label.startswith("exp:")]
    for cell in (
        exp["ours (mean ± std)"],
        exp["ours, test accuracy"],
        summarise(collection.get_best(runs[0].recipe), "test/accuracy"),
    ):
        assert (cell.detail, cell.is_caution) == (note, bool(note))


def test_other_weights_of_the_same_run_are_marked():
    first, second = enter_resnet("exp", [0.83, 0.9])
    runs = [replace(first, pretrained_sha256="a"), replace(second, pretrained_sha256="b")]
    assert not make_collection(runs).get_best(first.recipe).has_one_start


def test_the_table_of_an_article():
    collection = make_collection(
        enter_resnet("exp", [0.83, 0.85]),
        enter_resnet("exp2", [0.6], "custom: epochs=5, limit_train=10000"),
        enter_resnet("exp3", [0.3], "smoke"),
        enter_resnet("exp4", [0.91]),
        enter_resnet("exp5", [0.3], "smoke on shapes"),
        enter_resnet("exp6", [0.4], "custom: dataset=shapes, epochs=5"),
    )
    columns, found = read_table(collection, "ResNet-18")
    rows = {label.split(":")[0]: row for label, row in found.items()}
    texts = {name: dict(zip(columns, (cell.text for cell in row), strict=True)) for name, row in rows.items()}
    assert set(rows) == {"exp", "exp2", "exp3", "exp4"}
    folded = {row[0].text.split(":")[0] for row in list_not_run(collection, "ResNet-18")}
    assert folded == {"exp5", "exp6", "exp7", "exp8", "exp9"}, "runs on other images stand beside nothing"
    exp = texts["exp"]
    assert (exp["published"], exp["ours (mean ± std)"]) == ("82.7 %", "84.00 ± 1.41 %")
    assert (exp["ours - published"], exp["ours, test accuracy"]) == ("+1.30 points", "83.00 ± 1.41 %")
    assert (exp["seeds"], exp["epochs"], exp["budget"]) == ("2", "100", "full")
    assert len(rows["exp"][-1].run_ids) == 2
    budget = dict(zip(columns, rows["exp2"], strict=True))["budget"]
    assert (budget.text, budget.detail) == ("custom - not comparable", "epochs=5, limit_train=10000")
    assert texts["exp3"]["budget"] == "smoke - not comparable"
    for name, note in (("exp2", "custom: not comparable"), ("exp3", "smoke: not a result")):
        assert texts[name]["ours - published"] == ""
        assert (rows[name][2].detail, rows[name][2].is_caution) == (note, True)
    assert texts["exp4"]["ours (mean ± std)"] == "91.00 %"
    assert not rows["exp4"][2].is_caution


def test_every_row_has_every_column():
    for collection in (make_collection(), make_collection(enter_resnet("exp", [0.8]))):
        for block in build_comparison(collection).blocks:
            if isinstance(block, Table):
                assert {len(row) for row in block.rows} == {len(block.columns)}


def test_runs_on_different_images_are_marked():
    first, second = enter_resnet("exp", [0.83, 0.9])
    runs = [first, replace(second, data_checksum="other")]
    _, rows = read_table(make_collection(runs), "ResNet-18")
    ours = rows["exp: torchvision's network, lr 0.01"][2]
    assert (ours.detail, ours.is_caution) == ("the runs saw different images", True)
