"""Real statistics: drawn confidences, so that false alarms and missed shifts are counted and not argued."""

import asyncio
import math

import numpy as np
import pytest

from serving.bundle.manifest import Calibration, Manifest, Reliability, ReliabilityBin, Thresholds
from serving.models.predictions import ModelIdentity, PredictAnswer, Prediction
from serving.observation.drift import DriftWatch, DriftWindow, merge_bins
from tests.unit.serving.tiny_bundle import make_bundle

# Beta distributions of the largest probability: of a middling classifier, of one that is nearly always sure, and of one
# that seldom is.
KINDS = {"middling": (3.0, 0.9), "sure": (40.0, 0.5), "unsure": (4.0, 5.0)}


def measure(probabilities_N, bins=15):
    edges = np.linspace(0, 1, bins + 1)
    counts = np.histogram(probabilities_N, edges)[0]
    return Reliability(
        split="test",
        count=len(probabilities_N),
        ece_before=0,
        ece_after=0,
        bins_before=(),
        bins_after=tuple(
            ReliabilityBin(low=low, high=high, count=count, confidence=0, accuracy=0)
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ),
    )


def score(reference_N, seen_N, **options):
    window = DriftWindow(measure(reference_N), **options)
    for probability in seen_N:
        window.add(float(probability))
    return window.score


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [500, 10_000])
def test_the_same_distribution_is_no_drift(kind, count):
    scores = []
    for seed in range(200):
        drawn = np.random.default_rng(seed)
        scores.append(score(drawn.beta(*KINDS[kind], count), drawn.beta(*KINDS[kind], 1000)))
    assert max(scores) < 0.1
    assert min(scores) >= 0


@pytest.mark.parametrize("kind", KINDS)
def test_of_the_first_scores_none_is_an_alarm(kind):
    drawn = np.random.default_rng(0)
    scores = [score(drawn.beta(*KINDS[kind], 5000), drawn.beta(*KINDS[kind], 200)) for _ in range(300)]
    assert max(scores) < 0.25
    assert np.mean(np.array(scores) > 0.1) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_shift_is_seen(kind):
    """A third of the images is answered as uncertainly as by a guess; or all are, a little more."""
    for seed in range(50):
        drawn = np.random.default_rng(seed)
        reference = drawn.beta(*KINDS[kind], 5000)
        seen = drawn.beta(*KINDS[kind], 1000)
        seen[:333] = drawn.uniform(0.1, 0.3, 333)
        assert score(reference, seen) > 0.25
        assert score(reference, drawn.beta(*KINDS[kind], 1000) ** 3) > 0.25


def test_a_shift_towards_certainty_is_one_too():
    drawn = np.random.default_rng(0)
    assert score(drawn.beta(3.0, 0.9, 5000), np.full(1000, 0.999)) > 0.25


def test_only_the_last_predictions_count():
    drawn = np.random.default_rng(0)
    reference, good = drawn.beta(3.0, 0.9, 5000), drawn.beta(3.0, 0.9, 1000)
    bad = np.full(1000, 0.2)
    assert score(reference, [*bad, *good]) == pytest.approx(score(reference, good), abs=1e-12)
    assert score(reference, [*good, *bad]) == pytest.approx(score(reference, bad), abs=1e-12)


def test_the_index_is_that_of_its_definition():
    reference, seen = [0.2] * 300 + [0.9] * 700, [0.2] * 500 + [0.9] * 500
    expected = (0.5 - 0.3) * math.log(0.5 / 0.3) + (0.5 - 0.7) * math.log(0.5 / 0.7)
    assert score(reference, seen) == pytest.approx(expected, abs=0.001)


def test_too_little_says_nothing():
    drawn = np.random.default_rng(0)
    reference = drawn.beta(3.0, 0.9, 5000)
    assert score(reference, drawn.beta(3.0, 0.9, 199)) is None
    assert score(reference, drawn.beta(3.0, 0.9, 200)) is not None
    assert score(reference[:99], drawn.beta(3.0, 0.9, 1000)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_bins_are_joined_until_they_hold_enough(kind):
    reference = measure(np.random.default_rng(0).beta(*KINDS[kind], 2000))
    groups = merge_bins(reference.bins_after)
    assert [one for group in groups for one in group] == list(reference.bins_after)
    counts = [sum(one.count for one in group) for group in groups]
    assert 2 <= len(groups) <= 11
    assert sum(count < 20 for count in counts) <= 2


def answer_of(probabilities, name="cifar10", version="1"):
    return PredictAnswer(
        model=ModelIdentity(name=name, version=version, sha256="0", precision="fp32"),
        provider="CPUExecutionProvider",
        predictions=[
            Prediction(filename=None, label="red", probability=p, is_confident=True, top=()) for p in probabilities
        ],
    )


@pytest.fixture
def manifest(tmp_path):
    folder = make_bundle(tmp_path)
    thresholds = Thresholds(
        target_error=0.05, overall=None, per_class=(None,) * 6, selections=(), selections_overall=()
    )
    reliability = measure(np.random.default_rng(0).beta(3.0, 0.9, 5000))
    calibration = Calibration(temperature=1, reliability=(reliability,), thresholds=thresholds)
    plain = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    return plain.model_copy(update={"calibration": calibration})


def test_changes_are_told_once_in_a_while_and_after_the_last_prediction(manifest):
    told = []

    async def predict():
        first, second = (
            ModelIdentity(name="cifar10", version=version, sha256="0", precision="fp32") for version in "12"
        )
        watch = DriftWatch(lambda *change: told.append(change), interval_s=0.2)
        watch.keep([first, second])
        for _ in range(10):
            watch.add(manifest, answer_of([0.2] * 40))
            await asyncio.sleep(0.001)
        watch.add(manifest, answer_of([0.2], version="2"))
        assert told == []
        await asyncio.sleep(0.4)
        ((name, version, window),) = told
        assert (name, version) == ("cifar10", "1")
        assert window.score > 0.25
        watch.keep([second])
        assert told[1:] == [("cifar10", "1", None)]
        watch.add(manifest, answer_of([0.2] * 400))  # a request that began before the swap
        assert list(watch._windows) == [("cifar10", "2")], "or each version would leave one"
        await asyncio.sleep(0.3)
        assert len(told) == 2

    asyncio.run(predict())


def test_without_calibration_there_is_no_score(manifest):
    told = []

    async def predict():
        watch = DriftWatch(lambda *change: told.append(change), interval_s=0.01)
        watch.keep([ModelIdentity(name="cifar10", version="1", sha256="0", precision="fp32")])
        watch.add(manifest.model_copy(update={"calibration": None}), answer_of([0.2] * 500))
        await asyncio.sleep(0.05)

    asyncio.run(predict())
    assert told == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_accuracy_of_a_calibrated_model_lies_in_its_interval(kind):
    """Each prediction is right with its own probability: 95 of 100 intervals hold the accuracy of their window."""
    inside = []
    for seed in range(300):
        drawn = np.random.default_rng(seed)
        window = DriftWindow(measure(drawn.beta(*KINDS[kind], 5000)))
        probabilities_N = drawn.beta(*KINDS[kind], 1000)
        for probability in probabilities_N:
            window.add(float(probability))
        right = (drawn.random(1000) < probabilities_N).mean()
        estimate = window.accuracy
        assert estimate.low <= estimate.accuracy_fraction <= estimate.high
        inside.append(estimate.low <= right <= estimate.high)
    assert 0.91 <= np.mean(inside) <= 0.99


def test_the_estimate_is_of_the_last_predictions_and_waits_for_enough():
    window = DriftWindow(measure([0.5] * 1000), size=300, least=200)
    for _ in range(199):
        window.add(0.2)
    assert window.accuracy is None
    for _ in range(300):
        window.add(0.9)
    assert window.accuracy.accuracy_fraction == pytest.approx(0.9)
    assert window.accuracy.count == 300
