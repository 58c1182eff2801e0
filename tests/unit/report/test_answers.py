import io

import PIL.Image
import pytest

from model_code.report.answers import build_answers
from model_code.report.comparison import name_metric
from model_code.report.document import Folded, ImageGroup, Paragraph, Table
from model_code.report.questions import QUESTIONS
from tests.unit.report.synthetic_runs import make_collection, make_run


def read_arms(collection, key):
    [table] = [
        block
        for block in build_answers(collection).blocks
        if isinstance(block, Table) and block.caption == f"Arms: {key}"
    ]
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.key)
def test_every_metric_of_an_arm_stands_in_its_own_column(question):
    values = {
        (arm.recipe, metric): 0.1 + 0.01 * row + 0.2 * column
        for row, arm in enumerate(question.arms)
        for column, metric in enumerate(question.metrics)
    }
    runs = [
        [make_run(arm.recipe, metrics={metric: values[arm.recipe, metric] for metric in question.metrics})]
        for arm in question.arms
    ]
    rows = read_arms(make_collection(*runs), question.key)
    assert [row["arm"].detail for row in rows] == [arm.recipe for arm in question.arms]
    for row in rows:
        for metric in question.metrics:
            cell = row[name_metric(metric)]
            assert (cell.text, cell.is_caution) == (
                f"{values[row['arm'].detail, metric]:.2%}".replace("%", " %"),
                False,
            )


def test_an_arm_without_a_metric_or_a_run():
    collection = make_collection([make_run("resnet18_cifar10_exp2", metrics={"test/accuracy": 0.5})])
    [row] = read_arms(collection, "initialisation")
    assert {name: row[name].text for name in list(row)[1:4]} == {
        "test accuracy": "50.00 %",
        "seeds": "1",
        "budget": "full",
    }, "a column without values is left out"


def test_what_was_not_run_is_folded():
    runs = [[make_run(f"resnet18_cifar10_{name}", metrics={"test/accuracy": 0.5})] for name in ("exp", "exp2")]
    blocks = build_answers(make_collection(*runs)).blocks
    titles = [block.title for block in blocks if isinstance(block, Folded)]
    assert titles[:3] == ["2 of 4 arms: not run", "4 of 5 contrasts: not run", "not run: 6 arms"]
    shown = [row for block in blocks if isinstance(block, Table) for row in block.rows]
    assert shown
    assert not [cell.text for row in shown for cell in row if "not run" in cell.text]
    contrasts = next(block.block for block in blocks if isinstance(block, Folded) and "contrasts" in block.title)
    assert contrasts.rows[0][1].text == "not run: no run of resnet18_cifar10_exp2_fan_out"


@pytest.mark.parametrize("budget", ["smoke", "custom: epochs=5"])
def test_arms_and_verdicts_of_other_budgets_are_marked(budget):
    groups = [
        [make_run(recipe, seed, budget, metrics={"test/accuracy": 0.5 + seed / 100}) for seed in range(3)]
        for recipe in ("resnet18_cifar10_exp3", "resnet18_cifar10_exp3_nopool")
    ]
    collection = make_collection(*groups)
    for row in read_arms(collection, "max-pool")[:2]:
        assert (row["test accuracy"].is_caution, row["budget"].is_caution) == (True, True)
        assert row["budget"].text == f"{budget.partition(':')[0]} - not comparable"
    [table] = [
        block for block in build_answers(collection).blocks if getattr(block, "caption", "") == "Verdicts: max-pool"
    ]
    verdict = dict(zip(table.columns, table.rows[0], strict=True))
    assert (verdict["verdict"].is_caution, verdict["budget"].is_caution) == (True, True)
    assert verdict["verdict"].text.startswith("smoke: not a result") == budget.startswith("smoke")


def test_fine_tuned_arms_that_started_from_different_runs_are_marked():
    runs = [
        make_run("simsiam_food11_finetuned", seed, metrics={"test/accuracy": 0.5}, pretrained_run_id=f"start {seed}")
        for seed in range(3)
    ]
    cell = read_arms(make_collection(runs), "pretraining")[0]["test accuracy"]
    assert (cell.detail, cell.is_caution) == ("the runs started from different weights", True)


def test_the_question_of_pretraining_says_what_its_interval_holds():
    cautions = [
        block.text
        for block in build_answers(make_collection()).blocks
        if isinstance(block, Paragraph) and block.is_caution
    ]
    expected = "All seeds start from one pretrained backbone, so that the interval holds the spread of fine-tuning only"
    assert [expected in text for text in cautions].count(True) == 1


def read_overlay(collection, key):
    return [
        block
        for block in build_answers(collection).blocks
        if isinstance(block, ImageGroup) and block.title == f"Curves: {key}"
    ]


def make_curve(recipe, seed=0, budget="full", end=0.8, epochs=20):
    history = tuple((epoch, end * epoch / epochs) for epoch in range(1, epochs + 1))
    return make_run(recipe, seed, budget, histories={"validation/accuracy": history})


def test_the_arms_of_a_question_are_drawn_in_one_chart():
    arms = [[make_curve(f"resnet18_cifar10_{name}", seed) for seed in range(3)] for name in ("exp3", "exp6")]
    [overlay] = read_overlay(make_collection(*arms, [make_curve("resnet18_cifar10_exp4", budget="smoke")]), "decay")
    [image] = overlay.images
    assert "rate 0.01, constant ends at 80.00 %; rate 0.01, lowered ends at 80.00 %" in image.alt
    assert "budget: full" in overlay.caption
    assert overlay.caption.endswith(
        "Without this curve at this budget: rate 0.1, constant; rate 0.1, lowered; rate 0.001, constant; rate 0.001, "
        "lowered."
    )
    assert len(overlay.run_ids) == 6
    assert PIL.Image.open(io.BytesIO(image.png)).size[0] > 800


def test_of_several_budgets_the_one_that_most_arms_have_is_drawn():
    few, many = "custom: epochs=5", "custom: epochs=9"
    runs = [[make_curve("resnet18_cifar10_exp3", budget=few)]]
    runs += [[make_curve(f"resnet18_cifar10_{name}", budget=many)] for name in ("exp6", "exp7")]
    [overlay] = read_overlay(make_collection(*runs), "decay")
    assert f"budget: {many}." in overlay.caption


def test_one_arm_at_a_better_budget_does_not_hide_the_curves_of_the_others():
    runs = [[make_curve("resnet18_cifar10_exp3")]]
    runs += [[make_curve(f"resnet18_cifar10_{name}", budget="custom: epochs=5")] for name in ("exp6", "exp7")]
    [overlay] = read_overlay(make_collection(*runs), "decay")
    assert "budget: custom: epochs=5." in overlay.caption


def test_the_curve_of_one_arm_compares_nothing():
    assert not read_overlay(make_collection([make_curve("resnet18_cifar10_exp3")]), "decay")


def test_without_curves_there_is_no_chart():
    assert not read_overlay(
        make_collection([make_run("resnet18_cifar10_exp3", metrics={"test/accuracy": 0.5})]), "decay"
    )
    assert not read_overlay(make_collection(), "swin-settings")


def test_the_initialisation_of_untrained_networks_is_judged_on_pairs_of_seeds():
    accuracies = {"": (0.0010, 0.0011, 0.0009), "_gaussian": (0.0052, 0.0050, 0.0048)}
    groups = [
        [
            make_run(f"resnet50_imagenet_untrained{suffix}", seed, metrics={"validation/accuracy": value})
            for seed, value in zip((0, 1, 2022), values, strict=True)
        ]
        for suffix, values in accuracies.items()
    ]
    caption = "Verdicts: untrained-initialisation"
    blocks = [one for one in build_answers(make_collection(*groups)).blocks if isinstance(one, Table)]
    [table] = [block for block in blocks if block.caption == caption]
    [row] = [row for row in table.rows if row[0].text.startswith("ResNet-50: all weights Gaussian")]
    assert row[1].text == "higher by 0.4 points [0.4, 0.4], 3 seeds"
    assert row[2].text == "0, 1, 2022"
