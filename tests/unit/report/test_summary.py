import pytest

from model_code.report.document import Folded, Table
from model_code.report.figures import Dot, draw_published
from model_code.report.summary import MOST_LISTED, build_summary
from tests.unit.report.synthetic_runs import make_collection, make_run


def read_verdicts(client, *groups):
    """Return the rows of the first screen's verdicts, as texts, and the table."""
    blocks = build_summary(make_collection(*groups), client).blocks
    [table] = [block for block in blocks if isinstance(block, Table) and block.caption == "Verdicts"]
    return [[cell.text for cell in row[1:]] for row in table.rows], table


def make_seeds(recipe, accuracies, budget="full", metric="test/accuracy"):
    return [make_run(recipe, seed, budget, metrics={metric: value}) for seed, value in enumerate(accuracies)]


def test_each_comparison_has_a_row_with_its_verdict(opened):
    texts, table = read_verdicts(
        opened[1],
        make_seeds("resnet18_cifar10_exp3", (0.91, 0.912, 0.914)),
        make_seeds("resnet18_cifar10_exp2", (0.9, 0.9, 0.9)),
        make_seeds("resnet18_cifar10_exp", (0.95, 0.952, 0.954)),
    )
    stem = [row for row in texts if "3x3" in row[0] or "torchvision's network" in row[0]]
    assert stem == [
        ["3x3 over 7x7, own network", "higher", "+1.2 [0.7, 1.7]", "3"],
        ["as published: over torchvision's network", "lower", "-4.0 [-4.0, -4.0]", "3"],
    ]
    first = next(row for row in table.rows if row[1].text == stem[0][0])
    following = table.rows[table.rows.index(first) + 1]
    assert (first[0].text, first[0].height, following[0].height) == ("What is the 3x3 stem worth?", 2, 0)


@pytest.mark.parametrize(
    ("budget", "accuracies", "verdict", "detail", "points"),
    [
        ("full", (0.9, 0.9), "undecided: fewer than 3 seeds", "", "+10.0"),
        ("custom: epochs=5", (0.9, 0.9, 0.9), "higher", "custom: epochs=5", "+10.0 [10.0, 10.0]"),
        ("smoke", (0.9, 0.9, 0.9), "smoke: not a result", "", "+10.0"),
    ],
)
def test_a_verdict_says_what_it_does_not_rest_on(opened, budget, accuracies, verdict, detail, points):
    _, table = read_verdicts(
        opened[1],
        make_seeds("resnet18_cifar10_exp3", accuracies, budget),
        make_seeds("resnet18_cifar10_exp2", [0.8] * len(accuracies), budget),
    )
    [(_, _, outcome, difference, seeds)] = table.rows
    assert (outcome.text, outcome.detail, difference.text) == (verdict, detail, points)
    assert (seeds.text, outcome.is_caution) == (str(len(accuracies)), budget != "full")


def test_many_comparisons_of_one_kind_share_a_row(opened):
    networks = ("resnet18", "alexnet", "vit_b_16", "swin_t")
    assert 2 * len(networks) > MOST_LISTED
    groups = [
        [
            make_run(
                f"{network}_cifar10_random", seed, metrics={"test/linear_accuracy": value, "test/mlp_accuracy": 0.5}
            )
            for seed in range(3)
        ]
        for network, value in zip(networks, (0.45, 0.3, 0.42, 0.44), strict=True)
    ]
    pixels = [
        make_run("pixels_cifar10_random", seed, metrics={"test/linear_accuracy": 0.4, "test/mlp_accuracy": 0.4})
        for seed in range(3)
    ]
    texts, _ = read_verdicts(opened[1], pixels, *groups)
    assert texts == [
        ["linear probe over that of raw pixels", "higher in 3 of 4, lower in 1 of 4", "means -10.0 to +5.0", "3"],
        ["MLP probe over that of raw pixels", "higher in 4 of 4", "means +10.0 to +10.0", "3"],
    ]


def test_comparisons_of_one_kind_at_other_budgets_have_rows_of_their_own(opened):
    budgets = {"resnet18": "full", "alexnet": "full", "vit_b_16": "custom: limit_train=100", "swin_t": "smoke"}
    metrics = {"test/linear_accuracy": 0.5, "test/mlp_accuracy": 0.5}
    wanted = [*budgets.items(), *(("pixels", budget) for budget in dict.fromkeys(budgets.values()))]
    groups = [
        [make_run(f"{network}_cifar10_random", seed, budget, metrics=metrics) for seed in range(3)]
        for network, budget in wanted
    ]
    _, table = read_verdicts(opened[1], *groups)
    linear = [row for row in table.rows if row[1].text.endswith("linear probe over that of raw pixels")]
    assert [(row[2].text, row[2].detail, row[2].is_caution) for row in linear] == [
        ("no difference shown in 2 of 2", "", False),
        ("no difference shown", "custom: limit_train=100", True),
        ("smoke: not a result", "", True),
    ]


def test_questions_without_runs_are_folded(opened):
    blocks = build_summary(make_collection(), opened[1]).blocks
    titles = [block.title for block in blocks if isinstance(block, Folded)]
    assert titles == [
        "No run yet of the 12 recipes with a published accuracy",
        "14 of 14 questions have no pair of runs yet",
    ]
    assert not [block for block in blocks if isinstance(block, Table) and block.caption == "Verdicts"]


def test_charts_side_by_side_have_one_axis():
    low, high = (Dot("net", value, None, None, False) for value in (0.3, 0.9))
    limits = {draw_published([dot], (0.3, 0.9)).axes[0].get_xlim() for dot in (low, high)}
    [(left, right)] = limits
    assert left < 30
    assert right > 90
