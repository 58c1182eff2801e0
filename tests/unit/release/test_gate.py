import json
import re

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import f1_score

from model_code.evaluation.calibration import measure_interval
from model_code.release.gate import judge, measure_chance, resample
from model_code.release.gate_rules import GateRules
from model_code.release.verdict import Verdict

TEN = tuple(f"class {index}" for index in range(10))


def judge_answers(labels_N, challenger_N, champion_N, classes=TEN, rules=None, **more):
    return judge(
        labels_N=labels_N,
        challenger_N=challenger_N,
        champion_N=champion_N,
        classes=classes,
        split="test",
        champion_version=None if champion_N is None else "4",
        rules=rules or GateRules(),
        **more,
    )


def answer(labels_N, is_right_N, classes=10):
    """Labels that are right where asked, and the next class elsewhere."""
    return np.where(is_right_N, labels_N, (labels_N + 1) % classes)


def plant(both, gained, lost, neither, classes=10, seed=0):
    """(labels, challenger's, champion's) with these counts of images, spread evenly over the classes."""
    is_right_N = np.repeat([True, True, False, False], [both, gained, lost, neither])
    was_right_N = np.repeat([True, False, True, False], [both, gained, lost, neither])
    labels_N = np.arange(len(is_right_N)) % classes
    order_N = np.random.default_rng(seed).permutation(len(labels_N))
    return tuple(
        array_N[order_N]
        for array_N in (labels_N, answer(labels_N, is_right_N, classes), answer(labels_N, was_right_N, classes))
    )


def draw(random, count, gain, loss, classes=10, right=0.85):
    """Draw a pair of models: each image is gained with one probability and lost with another."""
    state_N = random.choice(4, size=count, p=[right, gain, loss, 1 - right - gain - loss])
    labels_N = random.integers(classes, size=count)
    return (
        labels_N,
        answer(labels_N, (state_N == 0) | (state_N == 1), classes),
        answer(labels_N, (state_N == 0) | (state_N == 2), classes),
    )


def join_classes(*classes):
    """One image set of several classes, each given as (both, gained, lost, neither)."""
    parts = []
    for index, counts in enumerate(classes):
        labels_N = np.full(sum(counts), index)
        is_right_N = np.repeat([True, True, False, False], counts)
        was_right_N = np.repeat([True, False, True, False], counts)
        parts.append(
            (labels_N, answer(labels_N, is_right_N, len(classes)), answer(labels_N, was_right_N, len(classes)))
        )
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def test_an_equal_challenger_is_not_promoted():
    labels_N, challenger_N, _ = plant(1800, 0, 0, 200)
    verdict = judge_answers(labels_N, challenger_N, challenger_N)
    assert not verdict.is_promoted
    assert (verdict.gained, verdict.lost, verdict.difference, verdict.p_value) == (0, 0, 0, 1)
    assert verdict.difference_interval == (0, 0)
    (refusal,) = verdict.refusals
    assert "+0.00 points" in refusal


def test_as_many_gained_as_lost_is_not_promoted():
    verdict = judge_answers(*plant(1700, 70, 70, 160))
    assert not verdict.is_promoted
    assert verdict.difference == 0
    low, high = verdict.difference_interval
    assert low < 0 < high


def test_a_gain_of_three_points_on_2000_images_is_promoted():
    verdict = judge_answers(*plant(1750, 100, 40, 110), rules=GateRules(min_gain=0.03))
    assert verdict.is_promoted
    assert verdict.refusals == ()
    assert verdict.difference == 0.03
    assert (verdict.challenger_accuracy, verdict.champion_accuracy) == (1850 / 2000, 1790 / 2000)
    for number in ("accuracy 0.9250", "0.8950", "version 4", "2000 test images", "+3.00 points", ": promoted"):
        assert number in verdict.summary
    assert "\n" not in verdict.summary


def test_the_verdicts_numbers_are_those_of_scipy():
    labels_N, challenger_N, champion_N = draw(np.random.default_rng(5), 2000, 0.05, 0.02)
    verdict = judge_answers(labels_N, challenger_N, champion_N)
    is_right_N, was_right_N = challenger_N == labels_N, champion_N == labels_N
    gained, lost = int(np.sum(is_right_N & ~was_right_N)), int(np.sum(~is_right_N & was_right_N))
    assert (verdict.count, verdict.gained, verdict.lost) == (2000, gained, lost)
    assert verdict.p_value == binomtest(gained, gained + lost).pvalue
    assert verdict.challenger_accuracy == is_right_N.mean()
    assert verdict.champion_accuracy == was_right_N.mean()
    assert verdict.difference == pytest.approx(is_right_N.mean() - was_right_N.mean())
    expected = tuple(binomtest(int(is_right_N.sum()), 2000).proportion_ci(0.95, method="exact"))
    assert verdict.challenger_interval == pytest.approx(expected, rel=1e-9)
    differences_N = is_right_N.astype(float) - was_right_N
    theirs = bootstrap(
        (differences_N,), np.mean, n_resamples=4000, batch=500, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    # Half of a point would be 10 images; the two draw different resamples.
    assert verdict.difference_interval == pytest.approx(tuple(theirs), abs=0.001)
    for index, change in enumerate(verdict.classes):
        of_class_N = labels_N == index
        gained, lost = np.sum((is_right_N & ~was_right_N)[of_class_N]), np.sum((~is_right_N & was_right_N)[of_class_N])
        assert (change.label, change.count) == (TEN[index], of_class_N.sum())
        assert (change.gained, change.lost) == (gained, lost)
        assert change.challenger_accuracy == is_right_N[of_class_N].mean()
        assert change.champion_accuracy == was_right_N[of_class_N].mean()
        assert change.p_value == binomtest(lost, gained + lost, alternative="greater").pvalue
    assert sum(change.gained for change in verdict.classes) == verdict.gained
    assert sum(change.count for change in verdict.classes) == 2000


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    [(0, 0, 1), (1, 0, 1), (4, 0, 2 / 16), (6, 0, 2 / 64), (5, 1, 14 / 64), (3, 3, 1), (0, 6, 2 / 64)],
)
def test_p_of_hand_counted_coins(gained, lost, p_value):
    assert measure_chance(gained, lost) == pytest.approx(p_value)


def test_one_sided_p_counts_changes_for_the_worse_only():
    assert measure_chance(1, 5, "less") == pytest.approx(7 / 64)
    assert measure_chance(5, 1, "less") == pytest.approx(63 / 64)
    assert measure_chance(0, 0, "less") == 1


@pytest.mark.slow
def test_equal_challengers_pass_no_more_often_than_asked():
    random = np.random.default_rng(1)
    loose = GateRules(max_class_drop=1)
    promoted = sum(judge_answers(*draw(random, 400, 0.06, 0.06), rules=loose).is_promoted for _ in range(300))
    # 2.5 % is the most that an exact two-sided test at 5 % lets through upwards.
    assert binomtest(promoted, 300, 0.025, alternative="greater").pvalue > 1e-3
    assert promoted <= 15


def test_real_gains_of_three_points_pass():
    random = np.random.default_rng(2)
    verdicts = [judge_answers(*draw(random, 2000, 0.055, 0.025)) for _ in range(60)]
    assert sum(verdict.is_promoted for verdict in verdicts) >= 57
    intervals = [verdict.difference_interval for verdict in verdicts]
    assert sum(low <= 0.03 <= high for low, high in intervals) >= 51


@pytest.mark.slow
def test_a_better_model_of_many_small_classes_is_rarely_refused_by_the_noise_of_one():
    random = np.random.default_rng(3)
    names = tuple(map(str, range(40)))
    verdicts = [judge_answers(*draw(random, 1600, 0.09, 0.06, classes=40, right=0.8), classes=names) for _ in range(60)]
    drops = [change for verdict in verdicts for change in verdict.classes if change.drop > 0.05]
    assert len(drops) > 60
    assert any(change.p_value < 0.05 for change in drops)
    assert sum("got worse" in verdict.summary for verdict in verdicts) <= 3


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_where_the_test_is_sure_the_interval_does_not_reach_below_0(confidence):
    for lost in (0, 1, 2, 5, 12, 60, 400):
        gained = lost + 1
        while measure_chance(gained, lost) >= 1 - confidence:
            gained += 1
        for count in (gained + lost, 20 * (gained + lost)):
            low, high = resample(gained, lost, count, confidence)
            assert 0 <= low <= (gained - lost) / count <= high <= 1


def test_few_images_are_where_the_interval_alone_would_be_wrong():
    labels_N, challenger_N, champion_N = plant(190, 4, 0, 6)
    verdict = judge_answers(labels_N, challenger_N, champion_N)
    assert verdict.difference_interval[0] > 0
    assert verdict.p_value == 0.125
    assert not verdict.is_promoted
    assert judge_answers(labels_N, challenger_N, champion_N, rules=GateRules(confidence=0.87)).is_promoted


def test_interval_mirrors_with_the_models_and_widens_with_confidence():
    low, high = resample(30, 10, 500, 0.95)
    assert resample(10, 30, 500, 0.95) == pytest.approx((-high, -low), abs=0.001)
    wide_low, wide_high = resample(30, 10, 500, 0.99)
    assert wide_low < low < high < wide_high
    assert resample(30, 10, 500, 0.95) == (low, high)
    assert resample(7, 0, 7, 0.95) == (1, 1)


def test_a_worse_challenger_is_refused_for_its_difference():
    verdict = judge_answers(*plant(1700, 40, 100, 160))
    assert not verdict.is_promoted
    assert verdict.difference == -0.03
    assert "-3.00 points (40 images gained, 100 lost) is not above 0" in verdict.refusals[0]


def test_a_sure_gain_below_the_least_gain_is_refused():
    answers = plant(1750, 60, 20, 170)
    assert judge_answers(*answers).is_promoted
    verdict = judge_answers(*answers, rules=GateRules(min_gain=0.021))
    (refusal,) = verdict.refusals
    assert "+2.00 points" in refusal
    assert "+2.10" in refusal


def test_a_gain_that_can_be_chance_is_refused():
    verdict = judge_answers(*plant(1780, 45, 35, 140))
    (refusal,) = verdict.refusals
    assert f"p = {binomtest(45, 80).pvalue:.2g}" in refusal
    assert "below 0.05" in refusal


def test_a_class_that_got_worse_refuses_a_better_model():
    answers = join_classes((150, 40, 0, 10), (140, 50, 0, 10), (160, 4, 30, 6))
    verdict = judge_answers(*answers, classes=("cat", "dog", "emu"))
    assert verdict.difference == 64 / 600
    (refusal,) = verdict.refusals
    assert refusal.startswith("emu got worse by 13.00 points")
    for number in ("0.9500 -> 0.8200", "4 gained", "30 lost", "5.00"):
        assert number in refusal
    assert judge_answers(*answers, classes=("cat", "dog", "emu"), rules=GateRules(max_class_drop=0.13)).is_promoted
    assert not judge_answers(*answers, classes=("cat", "dog", "emu"), rules=GateRules(max_class_drop=0.12)).is_promoted


def test_noise_in_a_small_class_refuses_nothing():
    answers = join_classes((150, 40, 0, 10), (140, 50, 0, 10), (3, 0, 2, 0))
    verdict = judge_answers(*answers, classes=("cat", "dog", "emu"))
    assert verdict.classes[2].drop == 0.4
    assert verdict.classes[2].p_value == 0.25
    assert verdict.is_promoted


def test_p_of_classes_is_corrected_by_holm():
    answers = join_classes((80, 0, 6, 0), (80, 0, 5, 0), (80, 0, 0, 0), (80, 90, 0, 0))
    verdict = judge_answers(*answers, classes=("a", "b", "c", "d"))
    assert [change.p_value for change in verdict.classes] == [2**-6, 2**-5, 1, 1]
    assert [change.adjusted_p_value for change in verdict.classes] == [4 / 64, 3 / 32, 1, 1]
    assert verdict.is_promoted
    answers = join_classes((80, 0, 7, 0), (80, 0, 6, 0), (80, 0, 0, 0), (80, 90, 0, 0))
    verdict = judge_answers(*answers, classes=("a", "b", "c", "d"))
    assert [change.adjusted_p_value for change in verdict.classes] == [4 / 128, 3 / 64, 1, 1]
    (refusal,) = verdict.refusals
    assert refusal.startswith("a got worse by ")
    assert ", b got worse by " in refusal
    assert "c got worse" not in refusal


def test_of_many_classes_that_got_worse_the_worst_three_are_named():
    drops = {"a": 12, "b": 40, "c": 20, "d": 30, "e": 16}
    answers = join_classes(*((80 - drop, 0, drop, 20) for drop in drops.values()), (80, 200, 0, 0))
    verdict = judge_answers(*answers, classes=(*drops, "f"), rules=GateRules(max_class_drop=0.1))
    assert verdict.difference > 0
    (refusal,) = verdict.refusals
    assert re.findall(r"(\w) got worse by (\S+) points", refusal) == [("b", "40.00"), ("d", "30.00"), ("c", "20.00")]
    assert refusal.endswith(", and 2 more classes did; allowed are 10.00 (--max-class-drop)")
    stricter = judge_answers(*answers, classes=(*drops, "f"), rules=GateRules(max_class_drop=0.14))
    assert stricter.refusals[0].endswith(", and 1 more class did; allowed are 14.00 (--max-class-drop)")


def test_a_larger_p_is_not_corrected_below_a_smaller_one():
    answers = join_classes((80, 0, 5, 0), (80, 1, 7, 0), (80, 90, 0, 0))
    verdict = judge_answers(*answers, classes=("a", "b", "c"))
    assert [change.p_value for change in verdict.classes] == pytest.approx([1 / 32, 9 / 256, 1])
    assert [change.adjusted_p_value for change in verdict.classes] == pytest.approx([3 / 32, 3 / 32, 1])


def test_a_class_without_images_is_not_judged():
    labels_N, challenger_N, champion_N = plant(170, 20, 0, 10, classes=2)
    verdict = judge_answers(labels_N, challenger_N, champion_N, classes=("cat", "dog", "emu"))
    emu = verdict.classes[2]
    assert (emu.label, emu.count, emu.drop) == ("emu", 0, 0)
    assert emu.champion_accuracy is emu.challenger_accuracy is emu.p_value is emu.adjusted_p_value is None
    assert verdict.is_promoted


@pytest.mark.parametrize(
    ("rules", "values", "numbers"),
    [
        ({"max_latency_ms": 10}, {"latency_ms": 10.5}, ("10.5 ms", "10 ms")),
        ({"max_latency_ms": 10}, {}, ("not measured", "10 ms")),
        ({"max_size_bytes": 1000}, {"size_bytes": 1001}, ("1,001 bytes", "1,000 bytes")),
        ({"max_size_bytes": 1000}, {}, ("not known", "1,000 bytes")),
    ],
)
@pytest.mark.parametrize("has_champion", [True, False])
def test_a_broken_budget_refuses(rules, values, numbers, has_champion):
    labels_N, challenger_N, champion_N = plant(1750, 100, 40, 110)
    verdict = judge_answers(
        labels_N, challenger_N, champion_N if has_champion else None, rules=GateRules(**rules), **values
    )
    (refusal,) = verdict.refusals
    assert all(number in refusal for number in numbers)
    assert not verdict.is_promoted


def test_a_budget_that_is_just_met_refuses_nothing():
    rules = GateRules(max_latency_ms=10, max_size_bytes=1000)
    verdict = judge_answers(*plant(1750, 100, 40, 110), rules=rules, latency_ms=10.0, size_bytes=1000)
    assert verdict.is_promoted
    assert (verdict.latency_ms, verdict.size_bytes) == (10, 1000)


def test_a_slower_challenger_is_recorded_and_not_refused():
    verdict = judge_answers(*plant(1750, 100, 40, 110), latency_ms=9.0, champion_latency_ms=3.0)
    assert verdict.is_promoted
    assert (verdict.latency_ms, verdict.champion_latency_ms) == (9, 3)


def test_every_refusal_is_listed():
    answers = join_classes((150, 2, 0, 10), (140, 0, 0, 10), (100, 0, 40, 6))
    rules = GateRules(min_gain=0.01, max_latency_ms=1, max_size_bytes=1)
    verdict = judge_answers(*answers, classes=("cat", "dog", "emu"), rules=rules, latency_ms=2.0, size_bytes=2)
    assert len(verdict.refusals) == 4
    for refusal, word in zip(verdict.refusals, ("below +1.00 (--min-gain)", "emu", "latency", "bytes"), strict=True):
        assert word in refusal
        assert refusal in verdict.summary
    both = judge_answers(*plant(1780, 45, 44, 131), rules=GateRules(min_gain=0.01)).refusals
    assert len(both) == 2


def test_without_a_champion_only_budgets_refuse():
    labels_N = np.arange(100) % 10
    verdict = judge_answers(labels_N, (labels_N + 1) % 10, None, rules=GateRules(min_gain=0.5))
    assert verdict.is_promoted
    assert verdict.champion_version is verdict.champion_accuracy is verdict.difference is verdict.p_value is None
    assert verdict.difference_interval is None
    assert (verdict.challenger_accuracy, verdict.challenger_interval[0]) == (0, 0)
    assert all(change.champion_accuracy is change.p_value is None for change in verdict.classes)
    assert "no champion to compare with: promoted" in verdict.summary


def test_an_answer_outside_the_classes_is_wrong():
    labels_N = np.zeros(20, dtype=np.int64)
    verdict = judge_answers(labels_N, labels_N, np.full(20, -1))
    assert (verdict.gained, verdict.champion_accuracy) == (20, 0)
    assert verdict.is_promoted


def test_a_verdict_comes_back_from_json():
    for champion in (True, False):
        labels_N, challenger_N, champion_N = plant(170, 20, 0, 10)
        verdict = judge_answers(labels_N, challenger_N, champion_N if champion else None, classes=(*TEN, "empty"))
        text = verdict.model_dump_json()
        assert Verdict.model_validate_json(text) == verdict
        assert Verdict.model_validate(json.loads(json.dumps(verdict.model_dump(mode="json")))) == verdict


@pytest.mark.parametrize("metric", ["accuracy", "macro-f1"])
def test_the_same_answers_give_the_same_verdict_in_any_order(metric):
    labels_N, challenger_N, champion_N = plant(1750, 100, 40, 110)
    order_N = np.random.default_rng(9).permutation(len(labels_N))
    rules = GateRules(metric=metric)
    first = judge_answers(labels_N, challenger_N, champion_N, rules=rules)
    assert judge_answers(labels_N[order_N], challenger_N[order_N], champion_N[order_N], rules=rules) == first


RARE = ("oak", "elm")
BY_MACRO_F1 = GateRules(metric="macro-f1")


def plant_rare(found=8, mistaken=22, common=1000, rare=10):
    """(labels, challenger's, champion's): the champion always says oak, the challenger finds some elms among them."""
    labels_N = np.repeat([0, 1], [common, rare])
    challenger_N = np.zeros_like(labels_N)
    challenger_N[:mistaken] = 1
    challenger_N[common : common + found] = 1
    return labels_N, challenger_N, np.zeros_like(labels_N)


def test_a_champion_that_never_finds_the_rare_class_loses_by_macro_f1_only():
    labels_N, challenger_N, champion_N = plant_rare()
    by_accuracy = judge_answers(labels_N, challenger_N, champion_N, RARE)
    assert not by_accuracy.is_promoted
    assert by_accuracy.difference == pytest.approx(-14 / 1010)
    by_macro_f1 = judge_answers(labels_N, challenger_N, champion_N, RARE, BY_MACRO_F1)
    assert by_macro_f1.is_promoted
    theirs, ours = (f1_score(labels_N, found_N, average="macro") for found_N in (champion_N, challenger_N))
    for verdict in (by_accuracy, by_macro_f1):
        assert (verdict.champion_macro_f1, verdict.challenger_macro_f1) == pytest.approx((theirs, ours))
    assert (round(theirs, 2), round(ours, 2)) == (0.50, 0.69)
    assert by_macro_f1.difference == pytest.approx(ours - theirs)
    low, high = by_macro_f1.difference_interval
    assert 0 < low < ours - theirs < high
    assert by_macro_f1.measured == (
        f"macro-F1 0.6939 against 0.4975 of version 4 on 1010 test images: +19.64 points (95 % interval "
        f"{100 * low:.2f} to {100 * high:.2f}; accuracy 0.9762 against 0.9901)"
    )


def test_a_refusal_by_accuracy_names_the_option_that_would_promote():
    hint = " (by macro-F1, 0.4975 -> 0.6939, it would be promoted: --by macro-f1)"
    (refusal,) = judge_answers(*plant_rare(), RARE).refusals
    assert refusal.endswith(f"is not above 0{hint}")
    (refusal,) = judge_answers(*plant_rare(), RARE, GateRules(min_gain=0.19)).refusals
    assert refusal.endswith(hint)
    for other in (GateRules(min_gain=0.2), GateRules(max_latency_ms=1), GateRules(max_class_drop=0.01)):
        assert "macro" not in judge_answers(*plant_rare(), RARE, other).summary
    assert "macro" not in judge_answers(*plant_rare(found=2), RARE).summary
    assert "macro" not in judge_answers(*plant(1700, 40, 100, 160)).summary


def test_the_rules_of_the_gate_are_asked_of_macro_f1():
    below = judge_answers(*plant_rare(), RARE, GateRules(metric="macro-f1", min_gain=0.2))
    assert below.refusals == ("the difference of +19.64 points of macro-F1 is below +20.00 (--min-gain)",)
    labels_N, challenger_N, champion_N = plant_rare()
    worse = judge_answers(labels_N, champion_N, challenger_N, RARE, BY_MACRO_F1)
    (refusal, *classes) = worse.refusals
    assert refusal == "the difference of -19.64 points of macro-F1 is not above 0"
    assert [one.split(" by ")[0] for one in classes] == ["elm got worse"]
    # One elm is left out of more than a third of the draws.
    (refusal,) = judge_answers(*plant_rare(found=1, mistaken=0, rare=1), RARE, BY_MACRO_F1).refusals
    assert refusal.startswith("the difference of +50.02 points of macro-F1 is not significant: 95 % interval 0.00 to ")
    dropped = judge_answers(*plant_rare(mistaken=60), RARE, BY_MACRO_F1)
    assert dropped.difference > 0
    assert [one.split(" by ")[0] for one in dropped.refusals] == ["oak got worse"]
    slow = judge_answers(*plant_rare(), RARE, GateRules(metric="macro-f1", max_latency_ms=1), latency_ms=2)
    assert [one[:11] for one in slow.refusals] == ["the latency"]


@pytest.mark.slow
def test_the_interval_of_macro_f1_is_that_of_scipy():
    labels_N, challenger_N, champion_N = draw(np.random.default_rng(5), 600, 0.06, 0.03, classes=4)
    verdict = judge_answers(labels_N, challenger_N, champion_N, TEN[:4], BY_MACRO_F1)

    def differ(labels_N, challenger_N, champion_N):
        ours, theirs = (f1_score(labels_N, one_N, average="macro") for one_N in (challenger_N, champion_N))
        return ours - theirs

    theirs = bootstrap(
        (labels_N, challenger_N, champion_N),
        differ,
        paired=True,
        vectorized=False,
        n_resamples=400,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert verdict.difference_interval == pytest.approx(tuple(theirs), abs=0.005)


@pytest.mark.slow
def test_equal_challengers_pass_by_macro_f1_no_more_often_than_asked():
    random = np.random.default_rng(1)
    rules = GateRules(max_class_drop=1, metric="macro-f1")
    promoted = sum(judge_answers(*draw(random, 400, 0.06, 0.06), rules=rules).is_promoted for _ in range(150))
    assert binomtest(promoted, 150, 0.025, alternative="greater").pvalue > 1e-3


def test_macro_f1_without_a_champion_or_without_images_of_a_class():
    labels_N, challenger_N, champion_N = plant_rare()
    first = judge_answers(labels_N, challenger_N, None, RARE, BY_MACRO_F1)
    assert first.champion_macro_f1 is first.difference is None
    assert ", macro-F1 0.6939, no champion to compare with: promoted" in first.summary
    more = judge_answers(labels_N, challenger_N, champion_N, (*RARE, "yew"), BY_MACRO_F1)
    assert more.challenger_macro_f1 == pytest.approx(f1_score(labels_N, challenger_N, average="macro"))
    outside = judge_answers(labels_N, challenger_N, np.where(champion_N == 0, -1, 1), RARE, BY_MACRO_F1)
    assert (outside.champion_macro_f1, outside.is_promoted) == (0, True)


def test_a_verdict_of_an_earlier_version_is_read():
    verdict = judge_answers(*plant(170, 20, 0, 10))
    facts = verdict.model_dump(mode="json", exclude={"challenger_macro_f1": True, "champion_macro_f1": True})
    del facts["rules"]["metric"]
    found = Verdict.model_validate_json(json.dumps(facts))
    assert (found.challenger_macro_f1, found.champion_macro_f1, found.rules.metric) == (None, None, "accuracy")
    assert found.summary == verdict.summary


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels_N": np.array([], dtype=np.int64)}, "shapes"),
        ({"challenger_N": np.zeros(3, dtype=np.int64)}, "shapes"),
        ({"champion_N": np.zeros(3, dtype=np.int64)}, "shapes"),
        ({"challenger_N": np.zeros((4, 2), dtype=np.int64)}, "shapes"),
        ({name: np.array([], dtype=np.int64) for name in ("labels_N", "challenger_N", "champion_N")}, "shapes"),
        ({name: np.zeros((4, 1), dtype=np.int64) for name in ("labels_N", "challenger_N", "champion_N")}, "shapes"),
        ({"labels_N": np.array([0, 1, 2, 10])}, "labels 0 to 10 for 10 classes"),
        ({"labels_N": np.array([0, 1, 2, -1])}, "labels -1 to 2 for 10 classes"),
        ({"champion_N": None}, "version 4 came without labels"),
        ({"champion_version": None}, "version None came with labels"),
        ({"latency_ms": float("nan")}, "finite"),
    ],
)
def test_answers_that_do_not_belong_together_are_refused(changes, message):
    four_N = np.arange(4)
    arguments = {"labels_N": four_N, "challenger_N": four_N, "champion_N": four_N, "champion_version": "4"}
    with pytest.raises(ValueError, match=message):
        judge(**({"classes": TEN, "split": "test", "rules": GateRules()} | arguments | changes))


@pytest.mark.parametrize(
    "rules",
    [
        {"min_gain": -0.1},
        {"min_gain": 1},
        {"confidence": 1},
        {"confidence": 0},
        {"max_class_drop": 1.1},
        {"max_latency_ms": 0},
        {"max_latency_ms": float("inf")},
        {"max_size_bytes": 0},
        {"gain": 0.1},
        {"metric": "f1"},
    ],
)
def test_rules_that_cannot_be_are_refused(rules):
    with pytest.raises(ValidationError):
        GateRules(**rules)


def test_the_interval_of_an_accuracy():
    assert measure_interval(0, 0) == (0, 1)
    assert measure_interval(0, 10) == pytest.approx((0, 1 - 0.025**0.1))
    assert measure_interval(10, 10) == pytest.approx((0.025**0.1, 1))
