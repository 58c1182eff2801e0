import math

import numpy as np
import pytest
import torch
from scipy.stats import beta
from sklearn.calibration import calibration_curve

from model_code.errors import ReleaseError
from model_code.evaluation.calibration import (
    LabelledAnswers,
    choose_thresholds,
    fit_temperature,
    measure_interval,
    measure_reliability,
)


def draw_calibrated(count, classes=4, seed=0):
    """Logits whose softmax is exactly how often each label is drawn."""
    generator = torch.Generator().manual_seed(seed)
    logits_NK = 2 * torch.randn(count, classes, generator=generator)
    labels_N = torch.multinomial(logits_NK.softmax(1), 1, generator=generator)[:, 0]
    return logits_NK, labels_N


def answer(confidences, is_right, predicted=None, classes=3, split="validation"):
    """Answers with these largest probabilities; a wrong one's true label is the next class."""
    confidence_N = np.array(confidences)
    predicted_N = np.zeros(len(confidence_N), dtype=np.int64) if predicted is None else np.array(predicted)
    probabilities_NK = np.repeat(((1 - confidence_N) / (classes - 1))[:, None], classes, axis=1)
    probabilities_NK[np.arange(len(confidence_N)), predicted_N] = confidence_N
    labels_N = np.where(is_right, predicted_N, (predicted_N + 1) % classes)
    return LabelledAnswers(split, probabilities_NK, labels_N)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_a_scaling_of_the_logits(scale):
    logits_NK, labels_N = draw_calibrated(20_000)
    assert fit_temperature(scale * logits_NK, labels_N) == pytest.approx(scale, rel=0.04)


def test_the_temperature_has_the_lowest_cross_entropy_of_a_grid():
    logits_NK, labels_N = draw_calibrated(300)
    logits_NK *= 3
    found = fit_temperature(logits_NK, labels_N)
    losses = {
        t: float(torch.nn.functional.cross_entropy(logits_NK.double() / t, labels_N))
        for t in [found, *np.geomspace(0.05, 20, 400)]
    }
    assert min(losses, key=losses.get) == found


def test_two_answers_by_hand():
    # Three right and one wrong by a margin of 2: p = 3/4 = 1 / (1 + e^(-2/T)).
    logits_NK = torch.tensor([[2.0, 0.0]] * 4)
    assert fit_temperature(logits_NK, torch.tensor([0, 0, 0, 1])) == pytest.approx(2 / math.log(3), rel=1e-4)


def test_all_right_or_all_wrong_is_no_temperature_of_zero_or_infinity():
    logits_NK = torch.tensor([[2.0, 0.0], [3.0, 1.0]])
    assert fit_temperature(logits_NK, torch.tensor([0, 0])) == 1.0
    assert fit_temperature(logits_NK, torch.tensor([1, 1])) == pytest.approx(20, rel=1e-3)
    assert fit_temperature(logits_NK[:1], torch.tensor([0])) == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(value):
    logits_NK, labels_N = draw_calibrated(20)
    logits_NK[3, 1] = value
    with pytest.raises(ReleaseError, match="about 1 of 20 pictures are not finite"):
        fit_temperature(logits_NK, labels_N)
    with pytest.raises(ReleaseError, match="not finite"):
        measure_reliability("validation", logits_NK, labels_N, 1.0)


def test_no_pictures_are_refused():
    with pytest.raises(ValueError, match="0 predictions for 0 labels"):
        fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="4 predictions for 3 labels"):
        measure_reliability("test", torch.zeros(4, 3), torch.zeros(3, dtype=torch.int64), 1.0)


def test_the_calibration_error_by_hand():
    # Probabilities 0.9 (right), 0.9 (wrong), 0.7 (right): |1/2 - 0.9| * 2/3 + |1 - 0.7| * 1/3.
    logits_NK = torch.tensor([[9.0, 1.0], [9.0, 1.0], [7.0, 3.0]], dtype=torch.float64).log()
    reliability = measure_reliability("validation", logits_NK, torch.tensor([0, 1, 0]), 1.0)
    assert reliability.ece_before == reliability.ece_after == pytest.approx(0.4 * 2 / 3 + 0.3 / 3)
    assert (reliability.split, reliability.count) == ("validation", 3)
    filled = {index: (b.count, b.confidence, b.accuracy) for index, b in enumerate(reliability.bins_before) if b.count}
    assert filled == {13: (2, pytest.approx(0.9), 0.5), 10: (1, pytest.approx(0.7), 1.0)}
    assert [b.low for b in reliability.bins_before[1:]] == [b.high for b in reliability.bins_before[:-1]]


def test_an_even_answer_falls_into_the_bin_below_its_edge():
    reliability = measure_reliability("test", torch.zeros(6, 3), torch.tensor([0, 0, 0, 1, 2, 0]), 1.0)
    filled = [b for b in reliability.bins_after if b.count]
    assert [(b.count, round(b.high, 6)) for b in filled] == [(6, round(5 / 15, 6))]


def test_bins_are_those_of_sklearn():
    logits_NK, labels_N = draw_calibrated(2000)
    logits_NK *= 2
    confidence_N, predicted_N = logits_NK.double().softmax(1).max(1)
    is_right_N = (predicted_N == labels_N).numpy()
    accuracies, confidences = calibration_curve(is_right_N, confidence_N.numpy(), n_bins=15)
    filled = [b for b in measure_reliability("test", logits_NK, labels_N, 1.0).bins_before if b.count]
    assert [b.accuracy for b in filled] == pytest.approx(list(accuracies))
    assert [b.confidence for b in filled] == pytest.approx(list(confidences))


def test_the_right_temperature_lowers_the_calibration_error():
    logits_NK, labels_N = draw_calibrated(5000)
    reliability = measure_reliability("validation", 3 * logits_NK, labels_N, 3.0)
    assert reliability.ece_after < 0.02 < 0.1 < reliability.ece_before
    assert sum(b.count for b in reliability.bins_after) == 5000


def test_the_threshold_is_the_lowest_that_reaches_the_target():
    # From the top: right, right, wrong (1/3), right (1/4), wrong (2/5).
    answers = answer([0.99, 0.95, 0.9, 0.8, 0.7], [True, True, False, True, False])
    assert choose_thresholds(answers, None, 0.25).overall == 0.8
    assert choose_thresholds(answers, None, 0.24).overall == 0.95
    assert choose_thresholds(answers, None, 0.4).overall == 0.0
    chosen = choose_thresholds(answers, None, 0.25)
    [selection] = chosen.selections_overall
    assert (selection.split, selection.count, selection.answered, selection.wrong) == ("validation", 5, 4, 1)
    assert selection.error_interval == measure_interval(1, 4)


def test_no_label_is_given_where_no_threshold_reaches_the_target():
    chosen = choose_thresholds(answer([0.9, 0.8], [False, True]), None, 0.1)
    assert chosen.overall is None
    assert chosen.per_class == (None, None, None)
    assert [(s.answered, s.wrong, s.error_interval) for s in chosen.selections] == [(0, 0, (0.0, 1.0))]


def test_equal_probabilities_are_answered_together():
    answers = answer([0.9, 0.8, 0.8, 0.8], [True, True, True, False])
    assert choose_thresholds(answers, None, 0.1).overall == 0.9


def test_a_class_has_its_own_threshold_from_30_pictures_on():
    # Class 0 is right above 0.6 in all of 30 pictures, class 1 is wrong in half of its 30, class 2 has 29.
    confidences = [*np.linspace(0.6, 0.9, 30), *np.linspace(0.6, 0.9, 30), *np.linspace(0.6, 0.9, 29)]
    is_right = [*[True] * 30, *[index >= 15 for index in range(30)], *[True] * 29]
    predicted = [0] * 30 + [1] * 30 + [2] * 29
    chosen = choose_thresholds(answer(confidences, is_right, predicted), None, 0.05)
    assert chosen.per_class[0] == 0.0
    # 15 right pictures above; one wrong of 16 is 6 %.
    assert chosen.per_class[1] == pytest.approx(np.linspace(0.6, 0.9, 30)[15])
    assert chosen.per_class[2] == chosen.overall
    assert chosen.overall is not None
    assert chosen.selections[0].wrong == 0


def test_the_test_pictures_are_reported_and_choose_nothing():
    validation = answer([0.9, 0.8, 0.7], [True, True, False])
    test = answer([0.95, 0.85, 0.75, 0.6], [False, True, True, True], split="test")
    chosen = choose_thresholds(validation, test, 0.0)
    assert chosen.overall == choose_thresholds(validation, None, 0.0).overall == 0.8
    assert [(s.split, s.count, s.answered, s.wrong) for s in chosen.selections_overall] == [
        ("validation", 3, 2, 0),
        ("test", 4, 2, 1),
    ]


@pytest.mark.parametrize("target_error", [-0.1, 1.0, math.nan])
def test_a_target_that_is_no_share_is_refused(target_error):
    with pytest.raises(ValueError, match=r"a share in \[0, 1\) is allowed"):
        choose_thresholds(answer([0.9], [True]), None, target_error)


@pytest.mark.parametrize(("count", "total"), [(0, 10), (10, 10), (37, 50), (9_990, 10_000)])
def test_the_interval_is_that_of_the_beta_distribution(count, total):
    low = 0.0 if count == 0 else beta.ppf(0.025, count, total - count + 1)
    high = 1.0 if count == total else beta.ppf(0.975, count + 1, total - count)
    assert measure_interval(count, total) == pytest.approx((low, high))
