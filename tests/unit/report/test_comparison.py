import pytest

from model_code.report.collection import ClassReport
from model_code.report.comparison import build_comparison, compare
from model_code.report.document import Table
from model_code.report.published import SECONDS_PER_EPOCH, PublishedFigure
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


def test_seconds_of_an_epoch():
    figure = PublishedFigure("row", "net", SECONDS_PER_EPOCH, 95, "seconds")
    runs = [make_run("net", 0, seconds=400.0, epochs=20), make_run("net", 1, seconds=None)]
    assert compare(make_collection(runs), figure).values == (20.0,)


@pytest.mark.parametrize(("pictures", "difference"), [(50_000, -3), (1000, None)])
def test_counts_compare_on_equally_many_pictures(pictures, difference):
    figure = PublishedFigure("row", "net", "validation/correct", 50, "count", pictures=50_000)
    runs = make_runs(47, metric="validation/correct", more={"validation/pictures": pictures})
    assert compare(make_collection(runs), figure).difference == difference


def read_table(collection, caption):
    [table] = [
        block for block in build_comparison(collection).blocks if isinstance(block, Table) and caption in block.caption
    ]
    return table.columns, {row[0].text.split(":")[0]: row for row in table.rows}


def enter_resnet(name, accuracies, budget="full"):
    metrics = [{"validation/best_accuracy": value, "test/accuracy": value - 0.01} for value in accuracies]
    return [make_run(f"resnet18_cifar10_{name}", seed, budget, metrics=values) for seed, values in enumerate(metrics)]


def test_the_table_of_an_article():
    collection = make_collection(
        enter_resnet("exp", [0.83, 0.85]),
        enter_resnet("exp2", [0.6], "custom: epochs=5, limit_train=10000"),
        enter_resnet("exp3", [0.3], "smoke"),
        enter_resnet("exp4", [0.91]),
    )
    columns, rows = read_table(collection, "ResNet-18")
    texts = {name: dict(zip(columns, (cell.text for cell in row), strict=True)) for name, row in rows.items()}
    assert len(rows) == 9
    exp = texts["exp"]
    assert (exp["published"], exp["ours (mean ± std)"]) == ("82.7 %", "84.00 ± 1.41 %")
    assert (exp["ours - published"], exp["ours, test/accuracy"]) == ("+1.30 points", "83.00 ± 1.41 %")
    assert (exp["seeds"], exp["epochs"], exp["budget"], exp["hardware"]) == ("2", "100", "full", "cuda (NVIDIA H200)")
    assert len(rows["exp"][-1].run_ids) == 2
    assert texts["exp2"]["budget"] == "custom: epochs=5, limit_train=10000 - not comparable"
    assert texts["exp3"]["budget"] == "smoke - not comparable"
    for name in ("exp2", "exp3"):
        assert texts[name]["ours - published"] == ""
        assert rows[name][2].is_caution
    assert texts["exp4"]["ours (mean ± std)"] == "91.00 %"
    assert not rows["exp4"][2].is_caution
    assert texts["exp9"]["ours (mean ± std)"] == "not run"


def test_every_row_has_every_column():
    for collection in (make_collection(), make_collection(enter_resnet("exp", [0.8]))):
        for block in build_comparison(collection).blocks:
            if isinstance(block, Table):
                assert {len(row) for row in block.rows} == {len(block.columns)}


def test_runs_on_different_pictures_are_marked():
    other = make_run("resnet18_cifar10_exp", 1, metrics={"validation/best_accuracy": 0.9}, data_checksum="other")
    runs = [*enter_resnet("exp", [0.83]), other]
    _, rows = read_table(make_collection(runs), "ResNet-18")
    assert (rows["exp"][2].detail, rows["exp"][2].is_caution) == ("the runs saw different pictures", True)
