import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import beta, binom

from model_code.evaluation.calibration import measure_interval, try_temperature
from model_code.evaluation.thresholds import LabelledAnswers, choose_supported_thresholds, choose_thresholds

TARGET = 0.05


def answer(confidences, is_right, predicted=None, classes=3, split="validation"):
    """Answers with these largest probabilities; a wrong one's true label is the next class."""
    confidence_N = np.array(confidences)
    predicted_N = np.zeros(len(confidence_N), dtype=np.int64) if predicted is None else np.array(predicted)
    probabilities_NK = np.repeat(((1 - confidence_N) / (classes - 1))[:, None], classes, axis=1)
    probabilities_NK[np.arange(len(confidence_N)), predicted_N] = confidence_N
    labels_N = np.where(is_right, predicted_N, (predicted_N + 1) % classes)
    return LabelledAnswers(split, probabilities_NK, labels_N)


def rank(rights):
    """Answers of one class in the order of their probability, the most probable one first."""
    return answer(np.linspace(0.99, 0.6, len(rights)), rights)


def bound(wrong, count, risk=0.05):
    """One-sided Clopper-Pearson upper bound."""
    return float(beta.ppf(1 - risk, wrong + 1, count - wrong))


def test_every_threshold_has_a_bound_within_the_target():
    """Wrong labels get more frequent: those accepted are as many as the bound allows, give or take a step."""
    is_right = np.ones(1000, dtype=bool)
    is_right[[300, 400, 450, *range(500, 1000, 10)]] = False
    chosen = choose_thresholds(rank(is_right), None, TARGET)
    [selection] = chosen.selections
    # Class 0 has half of the risk for itself alone, since nothing else is predicted.
    assert chosen.is_own == (True, False, False)
    assert bound(selection.wrong, selection.answered, 0.025) <= TARGET
    later = selection.answered + 9
    assert bound((~is_right[:later]).sum(), later, 0.025) > TARGET
    assert chosen.per_class == (pytest.approx(np.linspace(0.99, 0.6, 1000)[selection.answered - 1]), None, None)
    assert (chosen.confidence, chosen.overall) == (0.95, None)


@pytest.mark.parametrize(
    ("count", "wrong", "is_accepted"), [(59, 0, True), (58, 0, False), (93, 1, True), (92, 1, False)]
)
def test_as_few_images_as_prove_the_target(count, wrong, is_accepted):
    """The bound of 59 of 59 is 4.95 %; the pool has all of the risk where no class is predicted often enough."""
    assert (bound(wrong, count) <= TARGET) is is_accepted
    chosen = choose_thresholds(rank([*[True] * (count - wrong), *[False] * wrong]), None, TARGET)
    assert chosen.overall == (0.0 if is_accepted else None)
    assert chosen.per_class == (chosen.overall,) * 3
    assert chosen.is_own == (False,) * 3


def test_one_wrong_label_at_the_top_does_not_end_the_sequence():
    chosen = choose_thresholds(rank([True, False, *[True] * 398]), None, TARGET)
    assert chosen.per_class[0] == 0


def test_what_follows_a_failed_test_is_not_tried():
    """10 of 100 wrong from rank 100 on, then 2,000 right: all together have 0.5 %, but the sequence ended before."""
    is_right = np.ones(2200, dtype=bool)
    is_right[range(280, 400, 5)] = False
    chosen = choose_thresholds(rank(is_right), None, TARGET)
    [selection] = chosen.selections
    assert bound((~is_right).sum(), len(is_right), 0.025) < TARGET
    assert 275 <= selection.answered < 400


def test_no_prediction_is_accepted_where_none_is_supported():
    chosen = choose_thresholds(rank([False, True] * 500), None, TARGET)
    assert chosen.overall is None
    assert chosen.per_class == (None, None, None)
    assert [(s.answered, s.wrong, s.error_interval) for s in chosen.selections] == [(0, 0, (0.0, 1.0))]


def test_equal_probabilities_are_accepted_together():
    confidences = [*[0.9] * 150, *[0.8] * 150, *[0.7] * 100]
    is_right = [*[True] * 299, False, *[True] * 50, *[False] * 50]
    chosen = choose_thresholds(answer(confidences, is_right), None, TARGET)
    assert chosen.per_class[0] == 0.8
    assert chosen.selections[0].answered == 300


def test_classes_that_are_rarely_predicted_share_a_threshold():
    """Class 0 proves the target by itself; 1 and 2 do together, by a threshold that leaves the worse half out."""
    confidences = [*np.linspace(0.6, 0.99, 300), *np.linspace(0.6, 0.99, 120), *np.linspace(0.6, 0.99, 120)]
    is_right = [*[True] * 300, *[index >= 40 for index in range(120)], *[index >= 50 for index in range(120)]]
    predicted = [0] * 300 + [1] * 120 + [2] * 120
    chosen = choose_thresholds(answer(confidences, is_right, predicted), None, TARGET)
    assert chosen.is_own == (True, False, False)
    assert chosen.per_class == (0.0, chosen.overall, chosen.overall)
    assert 0.7 < chosen.overall < 0.8
    assert [one.count for one in chosen.by_class] == [300, 120, 120]
    assert sum(one.answered for one in chosen.by_class) == chosen.selections[0].answered


@pytest.mark.parametrize(
    ("wrong", "count", "is_own", "is_accepted"), [(1, 150, True, True), (2, 150, False, True), (2, 140, False, False)]
)
def test_classes_divide_half_of_the_risk_and_the_pool_has_the_other(wrong, count, is_own, is_accepted):
    """Two classes are tested at 1.25 % each; the one that fails is the pool, at 2.5 %."""
    assert (bound(wrong, count, 0.0125) <= TARGET) is is_own
    assert (bound(wrong, count, 0.025) <= TARGET) is is_accepted
    assert bound(wrong, count) <= TARGET
    is_right = [*[False] * wrong, *[True] * (count - wrong + 1000)]
    chosen = choose_thresholds(answer([0.9] * (count + 1000), is_right, [0] * count + [1] * 1000), None, TARGET)
    assert chosen.is_own == (is_own, True, False)
    assert chosen.per_class[0] == (0.0 if is_accepted else None)


def test_a_good_class_does_not_hide_a_bad_one():
    """2,000 right answers of class 0 beside 200 half wrong ones of class 1 at the same probability."""
    confidences = [0.9] * 2000 + [0.9] * 200
    is_right = [True] * 2000 + [True, False] * 100
    chosen = choose_thresholds(answer(confidences, is_right, [0] * 2000 + [1] * 200), None, TARGET)
    assert chosen.per_class == (0.0, None, None)


def test_the_test_images_are_reported_and_choose_nothing():
    validation = rank([True] * 200)
    test = answer([0.95, 0.85, 0.75, 0.6], [False, True, True, True], split="test")
    chosen = choose_thresholds(validation, test, TARGET)
    assert chosen.per_class == choose_thresholds(validation, None, TARGET).per_class == (0.0, None, None)
    assert [(s.split, s.count, s.answered, s.wrong) for s in chosen.selections] == [
        ("validation", 200, 200, 0),
        ("test", 4, 4, 1),
    ]
    assert chosen.selections[1].error_interval == measure_interval(1, 4)
    assert [(s.split, s.count) for s in chosen.by_class] == [("test", 4), ("test", 0), ("test", 0)]


@pytest.mark.parametrize("target_error", [-0.1, 0.0, 1.0, math.nan])
def test_a_target_that_is_no_share_is_refused(target_error):
    with pytest.raises(ValueError, match=r"a share in \(0, 1\) is allowed"):
        choose_thresholds(answer([0.9], [True]), None, target_error)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no validation images"):
        choose_thresholds(LabelledAnswers("validation", np.zeros((0, 3)), np.zeros(0, dtype=np.int64)), None, TARGET)


class Population:
    """All images that a synthetic classifier will ever see, with how likely each of its labels is right.

    Args:
        sharpness: Scale of the true logits: the higher, the more accurate.
        overconfidence: Factor of the logits that the classifier gives.
        prior: Logits added to the classes' own: some are rare.
    """

    def __init__(self, sharpness, overconfidence=1.0, prior=(0.0,) * 6, count=40_000):
        generator = np.random.default_rng(0)
        logits_NK = sharpness * generator.normal(size=(count, len(prior))) + np.array(prior)
        true_NK = softmax(logits_NK, axis=1)
        self.logits_NK = overconfidence * logits_NK
        self.labels_N = (true_NK.cumsum(axis=1) > generator.random((count, 1))).argmax(axis=1)
        self.predicted_N = logits_NK.argmax(axis=1)
        self.error_N = 1 - true_NK.max(axis=1)
        self.confidence_N = softmax(self.logits_NK, axis=1).max(axis=1)

    def draw(self, count, seed):
        chosen = np.random.default_rng(seed).choice(len(self.labels_N), count, replace=False)
        return LabelledAnswers("validation", softmax(self.logits_NK[chosen], axis=1), self.labels_N[chosen])

    def measure(self, per_class, classes=None):
        """Return the share of wrong labels among the accepted ones of some classes; None if none is accepted."""
        limit_K = np.array([np.inf if one is None else one for one in per_class])
        is_accepted_N = self.confidence_N >= limit_K[self.predicted_N]
        if classes is not None:
            is_accepted_N &= np.isin(self.predicted_N, classes)
        return self.error_N[is_accepted_N].mean() if is_accepted_N.any() else None


POPULATIONS = {
    "calibrated": Population(sharpness=6),
    "accurate": Population(sharpness=14),
    "overconfident": Population(sharpness=6, overconfidence=3),
    "imbalanced": Population(sharpness=6, prior=(8.0, 4.0, 0.0, -2.0, -4.0, -6.0)),
}
DRAWS = 150
# More broken promises than this have a chance below 0.1 % if each draw breaks its own with 5 %.
MOST_BROKEN = binom.ppf(0.999, DRAWS, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("count", [300, 2000])
@pytest.mark.parametrize("name", POPULATIONS)
def test_the_promise_holds_in_95_of_100_releases(name, count):
    """For each class with a threshold of its own, for the pool, and for all accepted predictions."""
    population = POPULATIONS[name]
    broken, broken_overall, chosen = 0, 0, []
    for seed in range(DRAWS):
        found = choose_thresholds(population.draw(count, seed), None, TARGET)
        groups = [[label] for label, is_own in enumerate(found.is_own) if is_own]
        groups.append([label for label, is_own in enumerate(found.is_own) if not is_own])
        errors = [population.measure(found.per_class, group) for group in groups]
        broken += any(error is not None and error > TARGET for error in errors)
        broken_overall += (population.measure(found.per_class) or 0) > TARGET
        chosen.append(found)
    assert broken <= MOST_BROKEN
    assert broken_overall <= MOST_BROKEN
    # A rule that never accepts anything would pass: this one finds thresholds.
    assert sum(any(one is not None for one in found.per_class) for found in chosen) > 0.5 * DRAWS
    if count == 2000:
        assert any(any(found.is_own) for found in chosen)


@pytest.mark.parametrize(
    ("wrong_ranks", "target", "is_supported"),
    [((), 0.05, True), ((10, 90), 0.1, True), ((10, 60, 70, 90), 0.2, True), (range(0, 375, 2), 0.05, False)],
)
def test_the_strictest_supported_target_is_chosen(wrong_ranks, target, is_supported):
    chosen = choose_supported_thresholds(rank([index not in wrong_ranks for index in range(375)]), None)
    assert chosen.target_error == target
    assert any(threshold is not None for threshold in chosen.per_class) == is_supported


def test_a_target_that_only_one_small_class_meets_is_not_the_one():
    confidences = np.concatenate([np.full(200, 0.99), np.linspace(0.98, 0.6, 2800)])
    is_right = np.concatenate([np.full(200, True), np.arange(2800) % 29 != 28])
    predicted = np.concatenate([np.zeros(200, dtype=int), np.ones(2800, dtype=int)])
    chosen = choose_supported_thresholds(answer(confidences, is_right, predicted), None)
    assert chosen.target_error == 0.1
    assert chosen.selections[0].answered > 2000


@pytest.mark.parametrize("sharpness", [3.0, 4.0, 5.0])
def test_the_promise_of_a_weak_classifier_holds_whichever_target_is_chosen(sharpness):
    population = Population(sharpness=sharpness)
    broken, targets = 0, set()
    for seed in range(DRAWS):
        found = choose_supported_thresholds(population.draw(300, seed), None)
        error = population.measure(found.per_class)
        broken += (error or 0) > found.target_error
        if error is not None:
            targets.add(found.target_error)
    assert broken <= MOST_BROKEN
    assert len(targets) > 1


@pytest.mark.slow
def test_the_promise_holds_with_a_temperature_fitted_on_the_same_images():
    population = POPULATIONS["overconfident"]
    broken, draws = 0, 30
    for seed in range(draws):
        drawn = np.random.default_rng(seed).choice(len(population.labels_N), 1000, replace=False)
        logits_NK, labels_N = population.logits_NK[drawn], population.labels_N[drawn]
        trial = try_temperature(torch.from_numpy(logits_NK), torch.from_numpy(labels_N))
        assert trial.temperature == pytest.approx(3, rel=0.3)
        validation = LabelledAnswers("validation", softmax(logits_NK / trial.temperature, axis=1), labels_N)
        found = choose_thresholds(validation, None, TARGET)
        scaled = softmax(population.logits_NK / trial.temperature, axis=1).max(axis=1)
        limit_K = np.array([np.inf if one is None else one for one in found.per_class])
        is_accepted_N = scaled >= limit_K[population.predicted_N]
        broken += is_accepted_N.any() and population.error_N[is_accepted_N].mean() > TARGET
    assert broken <= binom.ppf(0.999, draws, 0.05)
