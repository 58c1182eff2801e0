import numpy as np
import pytest
from scipy import stats

from model_code.report.questions import Contrast
from model_code.report.verdicts import decide, measure_interval
from tests.unit.report.synthetic_runs import make_collection, make_run

METRIC = "test/accuracy"
CONTRAST = Contrast("new over old", "new", METRIC, "old", METRIC)


def make_runs(recipe, accuracies, budget="full", first_seed=0, **settings):
    return [
        make_run(recipe, seed, budget, metrics={METRIC: accuracy}, **settings)
        for seed, accuracy in enumerate(accuracies, first_seed)
    ]


def decide_between(new, old, **settings):
    return decide(make_collection(make_runs("new", new), make_runs("old", old)), CONTRAST, **settings)


def test_the_interval_is_that_of_a_paired_t_test():
    random = np.random.default_rng(0)
    new, old = random.normal(0.9, 0.01, 7), random.normal(0.88, 0.01, 7)
    verdict = decide_between(list(new), list(old))
    expected = stats.ttest_rel(new, old).confidence_interval(0.95)
    assert verdict.mean == pytest.approx(np.mean(new - old))
    assert verdict.interval == pytest.approx((expected.low, expected.high))


def test_three_seeds_by_hand():
    # Differences 1, 2 and 3 points: mean 2, std 1, t(0.975, 2) = 4.302653, half width 4.302653 / sqrt(3) = 2.484138.
    assert measure_interval([0.01, 0.02, 0.03]) == pytest.approx((-0.00484138, 0.04484138), abs=1e-8)


@pytest.mark.parametrize(
    ("new", "old", "words"),
    [
        # Differences 1.0, 1.2 and 1.4 points: half width 0.2 * 4.302653 / sqrt(3) = 0.4968.
        ([0.91, 0.912, 0.914], [0.90] * 3, "higher by 1.2 points [0.7, 1.7], 3 seeds"),
        ([0.90] * 3, [0.91, 0.912, 0.914], "lower by 1.2 points [0.7, 1.7], 3 seeds"),
        (
            [0.90, 0.903, 0.906],
            [0.90] * 3,
            "no difference that 3 seeds can show: +0.3 points [-0.4, 1.0]",
        ),
        ([0.9, 0.9], [0.8, 0.8], "undecided: 2 of at least 3 seeds"),
        ([0.9], [0.8], "undecided: 1 of at least 3 seeds"),
        ([0.85] * 3, [0.84] * 3, "higher by 1.0 points [1.0, 1.0], 3 seeds, the same in each"),
        (
            [0.85] * 3,
            [0.85] * 3,
            "no difference that 3 seeds can show: +0.0 points [0.0, 0.0], the same in each",
        ),
        # A difference that is there must not look like zero.
        ([0.00105, 0.00106, 0.00107], [0.001] * 3, "higher by 0.006 points [0.004, 0.008], 3 seeds"),
    ],
)
def test_words(new, old, words):
    assert decide_between(new, old).words == words


def test_nothing_is_judged_where_a_description_was_asked_for():
    assert decide_between([0.85] * 3, [0.84] * 3, is_descriptive=True).words == (
        "not judged: +1.0 points [1.0, 1.0], 3 seeds"
    )
    assert decide_between([0.83], [0.84], is_descriptive=True).words == "not judged: -1.0 points, 1 seed"


def test_what_was_not_run():
    assert decide(make_collection(), CONTRAST).words == "not run"
    assert decide(make_collection(make_runs("new", [0.9] * 3)), CONTRAST).words == "not run: no run of old"


def test_only_equal_seeds_are_paired():
    collection = make_collection(make_runs("new", [0.5, 0.6, 0.7, 0.8]), make_runs("old", [0.1, 0.1], first_seed=2))
    verdict = decide(collection, CONTRAST)
    assert [(pair.seed, round(pair.difference, 9)) for pair in verdict.pairs] == [(2, 0.6), (3, 0.7)]
    collection = make_collection(make_runs("new", [0.5]), make_runs("old", [0.1], first_seed=1))
    assert decide(collection, CONTRAST).words == "undecided: no seed was run with both at the same budget"


def test_budgets_are_never_mixed():
    collection = make_collection(make_runs("new", [0.9] * 3), make_runs("old", [0.8] * 3, "custom: epochs=5"))
    assert decide(collection, CONTRAST).pairs == ()


def test_full_runs_decide_before_better_filled_budgets():
    collection = make_collection(
        make_runs("new", [0.9]),
        make_runs("new", [0.5] * 3, "custom: epochs=5"),
        make_runs("old", [0.8]),
        make_runs("old", [0.4] * 3, "custom: epochs=5"),
    )
    verdict = decide(collection, CONTRAST)
    assert (verdict.budget, verdict.words) == ("full", "undecided: 1 of at least 3 seeds")


def test_the_custom_budget_with_the_most_pairs_is_taken():
    collection = make_collection(
        make_runs("new", [0.5] * 2, "custom: epochs=2"),
        make_runs("new", [0.7] * 3, "custom: epochs=9"),
        make_runs("new", [0.2] * 5, "smoke"),
        make_runs("new", [0.2] * 6, "smoke on shapes"),
        make_runs("old", [0.4] * 2, "custom: epochs=2"),
        make_runs("old", [0.6] * 3, "custom: epochs=9"),
        make_runs("old", [0.1] * 5, "smoke"),
        make_runs("old", [0.1] * 6, "smoke on shapes"),
    )
    verdict = decide(collection, CONTRAST)
    assert (verdict.budget, verdict.is_full, len(verdict.pairs)) == ("custom: epochs=9", False, 3)


def test_smoke_runs_decide_nothing():
    collection = make_collection(
        make_runs("new", [0.31, 0.32, 0.33], "smoke"), make_runs("old", [0.1, 0.1, 0.1], "smoke")
    )
    verdict = decide(collection, CONTRAST)
    assert verdict.is_smoke
    assert verdict.words == "smoke: not a result (+22.0 points, 3 seeds)"


@pytest.mark.parametrize("budget", ["custom: dataset=pets, epochs=5", "smoke on shapes"])
def test_runs_on_other_images_answer_no_question_of_the_articles(budget):
    collection = make_collection(make_runs("new", [0.9] * 3, budget), make_runs("old", [0.8] * 3, budget))
    assert decide(collection, CONTRAST) == decide(make_collection(), CONTRAST)
    assert collection.get_best("new") is None


def test_different_images_are_not_paired():
    collection = make_collection(
        make_runs("new", [0.9] * 3, data_checksum="a"), make_runs("old", [0.8] * 3, data_checksum="b")
    )
    assert decide(collection, CONTRAST).words == "undecided: the runs saw different images (3 seeds)"


def test_runs_without_the_metric_do_not_count():
    collection = make_collection(make_runs("new", [0.9] * 3), [make_run("old", seed) for seed in range(3)])
    assert decide(collection, CONTRAST).pairs == ()


def test_two_metrics_of_one_recipe():
    runs = [make_run("new", seed, metrics={"a": 0.5 + seed / 100, "b": 0.1}) for seed in range(3)]
    verdict = decide(make_collection(runs), Contrast("a over b", "new", "a", "new", "b"))
    assert verdict.mean == pytest.approx(0.41)
    assert len(verdict.run_ids) == 3


def test_settings_that_differ_are_named():
    collection = make_collection(
        make_runs("new", [0.9], params={"recipe": "new", "network": "a", "epochs": "5"}),
        make_runs("old", [0.8], params={"recipe": "old", "network": "b", "epochs": "5", "cutout_pixels": "8"}),
    )
    assert decide(collection, CONTRAST).list_differing_settings() == ["cutout_pixels", "network"]
