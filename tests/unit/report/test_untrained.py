import pytest

from model_code.report.document import Table
from model_code.report.untrained import build_untrained
from tests.unit.report.synthetic_runs import make_collection, make_run

METRICS = {
    "correct": 50,
    "accuracy": 0.001,
    "distinct_classes": 3,
    "top_class_share": 0.75,
    "pictures": 50_000,
    "seconds": 20.0,
    "pictures_per_s": 2500,
    "peak_memory_bytes": 2_000_000_000,
}
MARKED = ("accuracy", "distinct classes", "share of the top class", "time", "budget")


def read_row(budget):
    run = make_run(
        "swin_t_imagenet_untrained",
        budget=budget,
        kind="untrained",
        metrics={f"validation/{key}": value for key, value in METRICS.items()} | {"network/parameters": 28_288_354},
    )
    [table] = [block for block in build_untrained(make_collection([run])).blocks if isinstance(block, Table)]
    [row] = table.rows
    return dict(zip(table.columns, row, strict=True))


def test_what_a_row_says():
    row = read_row("full")
    texts = {name: cell.text for name, cell in row.items()}
    assert texts | {"peak memory": ""} == {
        "recipe": "swin_t_imagenet_untrained",
        "accuracy": "0.100 %",
        "distinct classes": "3",
        "share of the top class": "75.00 %",
        "time": "20.00 s",
        "peak memory": "",
        "seeds": "1",
        "budget": "full",
        "runs": "",
    }
    assert texts["peak memory"].endswith("B")
    assert {name: cell.detail for name, cell in row.items() if cell.detail} == {
        "recipe": "28.29 M parameters; cuda (NVIDIA H200)",
        "accuracy": "50 of 50,000",
        "time": "2,500 images/s",
    }


@pytest.mark.parametrize(
    ("budget", "is_marked"),
    [("full", False), ("smoke", True), ("smoke on shapes", True), ("custom: limit_images=1000", True)],
)
def test_only_full_rows_are_not_marked(budget, is_marked):
    row = read_row(budget)
    assert {name: row[name].is_caution for name in MARKED} == dict.fromkeys(MARKED, is_marked)
