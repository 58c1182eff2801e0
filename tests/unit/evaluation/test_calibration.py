import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve

from model_code.errors import ReleaseError
from model_code.evaluation.calibration import (
    fit_temperature,
    measure_interval,
    measure_reliability,
    try_temperature,
)


def draw_calibrated(count, classes=4, seed=0):
    """Logits whose softmax is exactly how often each label is drawn."""
    generator = torch.Generator().manual_seed(seed)
    logits_NK = 2 * torch.randn(count, classes, generator=generator)
    labels_N = torch.multinomial(logits_NK.softmax(1), 1, generator=generator)[:, 0]
    return logits_NK, labels_N


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
    assert fit_temperature(logits_NK, torch.tensor([1, 1])) == pytest.approx(1000, rel=1e-3)
    assert fit_temperature(logits_NK[:1], torch.tensor([0])) == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(value):
    logits_NK, labels_N = draw_calibrated(20)
    logits_NK[3, 1] = value
    with pytest.raises(ReleaseError, match="about 1 of 20 images are not finite"):
        fit_temperature(logits_NK, labels_N)
    with pytest.raises(ReleaseError, match="not finite"):
        try_temperature(logits_NK, labels_N)
    with pytest.raises(ReleaseError, match="not finite"):
        measure_reliability("validation", logits_NK, labels_N, 1.0)


def test_no_images_are_refused():
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


def test_a_temperature_that_helps_is_used():
    logits_NK, labels_N = draw_calibrated(1000)
    trial = try_temperature(2 * logits_NK, labels_N)
    assert (trial.refusal, trial.folds) == (None, 10)
    assert trial.temperature == trial.fitted == fit_temperature(2 * logits_NK, labels_N)
    assert 0 < trial.nll_gain_interval[0] < trial.nll_gain < trial.nll_gain_interval[1]
    assert trial.ece_change_interval[0] <= trial.ece_change < trial.ece_change_interval[1] < 0


def test_the_gain_is_that_of_images_that_did_not_fit_the_temperature():
    logits_NK, labels_N = draw_calibrated(200)
    fitted = fit_temperature(logits_NK, labels_N)
    cross_entropy = torch.nn.functional.cross_entropy
    in_sample = float(
        cross_entropy(logits_NK.double(), labels_N) - cross_entropy(logits_NK.double() / fitted, labels_N)
    )
    assert try_temperature(logits_NK, labels_N).nll_gain < in_sample


def test_gain_and_interval_are_those_of_ten_temperatures_that_did_not_see_their_images():
    logits_NK, labels_N = draw_calibrated(100)
    fold_N = np.random.default_rng(0).permutation(100) % 10
    gain_N = np.empty(100)
    for fold in range(10):
        is_held_N = torch.from_numpy(fold_N == fold)
        temperature = fit_temperature(logits_NK[~is_held_N], labels_N[~is_held_N])
        losses = [
            torch.nn.functional.cross_entropy(logits_NK[is_held_N].double() / t, labels_N[is_held_N], reduction="none")
            for t in (1, temperature)
        ]
        gain_N[fold_N == fold] = losses[0] - losses[1]
    trial = try_temperature(logits_NK, labels_N)
    assert trial.nll_gain == pytest.approx(gain_N.mean(), abs=1e-7)
    half = 1.959964 * gain_N.std(ddof=1) / 10
    assert trial.nll_gain_interval == pytest.approx((gain_N.mean() - half, gain_N.mean() + half), abs=1e-7)


def test_a_temperature_fitted_to_chance_is_hardly_ever_used():
    """The fitted one lowers the loss of the images that it was fitted to in every draw."""
    trials = [try_temperature(*draw_calibrated(300, seed=seed)) for seed in range(40)]
    assert all(trial.fitted != 1 for trial in trials)
    used = [trial for trial in trials if trial.refusal is None]
    # At most 2.5 % are expected: 3 or more of 40 have a chance of 8 %.
    assert len(used) <= 3
    refused = next(trial for trial in trials if trial.refusal is not None)
    assert refused.temperature == 1
    assert "not significant" in refused.refusal


def test_logits_of_hundreds_get_their_temperature():
    logits_NK, labels_N = draw_calibrated(2000)
    trial = try_temperature(200 * logits_NK, labels_N)
    assert (trial.refusal, trial.temperature) == (None, pytest.approx(200, rel=0.1))


def test_a_temperature_at_the_limit_of_the_search_is_refused():
    logits_NK, _ = draw_calibrated(500)
    trial = try_temperature(logits_NK, (logits_NK.argmax(1) + 1) % logits_NK.shape[1])
    assert (trial.temperature, trial.refusal) == (1, "it is at the limit of the search: the confidence says nothing")


def test_a_gain_in_likelihood_that_costs_calibration_is_refused():
    """Certain and wrong in 30 of 2,000 images: a temperature pays for these, all others are then underestimated."""
    logits_NK = torch.tensor([[12.0, 0.0]] * 2000 + [[0.6, 0.0]] * 2000)
    labels_N = torch.tensor([0] * 1970 + [1] * 30 + [0] * 1290 + [1] * 710)
    trial = try_temperature(logits_NK, labels_N)
    assert trial.nll_gain_interval[0] > 0
    assert trial.ece_change > 0
    assert (trial.temperature, trial.refusal) == (1, "it raises the cross-validated calibration error (ECE)")


def test_without_evidence_there_is_no_temperature():
    few = try_temperature(*draw_calibrated(99))
    assert (few.temperature, few.folds, few.nll_gain) == (1, 0, None)
    assert few.refusal == "there are only 99 validation images and a cross-validation needs 100"
    right = try_temperature(torch.eye(4).repeat(50, 1), torch.arange(4).repeat(50))
    assert (right.temperature, right.refusal) == (1, "every validation image is labelled correctly")
    even = try_temperature(torch.zeros(200, 3), torch.arange(200) % 3)
    assert (even.temperature, even.nll_gain_interval) == (1, (0, 0))


def test_the_same_images_give_the_same_trial():
    logits_NK, labels_N = draw_calibrated(300)
    assert try_temperature(2 * logits_NK, labels_N) == try_temperature(2 * logits_NK, labels_N)


def test_the_interval_of_the_calibration_error_contains_the_true_one():
    """Logits of twice their size: the true error, on 200,000 images, lies in 19 of 20 intervals."""
    logits_NK, labels_N = draw_calibrated(200_000)
    confidence_N, predicted_N = (2 * logits_NK).softmax(1).max(1)
    gap_N = (predicted_N == labels_N).double() - confidence_N
    true = float(torch.bincount((15 * confidence_N).ceil().long(), gap_N).abs().sum() / len(gap_N))
    inside = 0
    for part in range(40):
        chosen = slice(600 * part, 600 * part + 600)
        reliability = measure_reliability("test", 2 * logits_NK[chosen], labels_N[chosen], 1.0)
        low, high = reliability.ece_before_interval
        assert 0 <= low <= reliability.ece_before <= high
        inside += low <= true <= high
    # binom.cdf(33, 40, 0.95) is 0.003.
    assert inside >= 34


def test_one_image_tells_nothing_of_the_calibration_error():
    reliability = measure_reliability("test", torch.tensor([[2.0, 0.0]]), torch.tensor([0]), 1.0)
    assert reliability.ece_before_interval == reliability.ece_after_interval == (0, 1)


@pytest.mark.parametrize(("count", "total"), [(0, 10), (10, 10), (37, 50), (9_990, 10_000)])
def test_the_interval_is_that_of_scipy(count, total):
    interval = binomtest(count, total).proportion_ci(confidence_level=0.95, method="exact")
    assert measure_interval(count, total) == pytest.approx((interval.low, interval.high))
