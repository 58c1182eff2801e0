"""Temperature scaling with cross-validated evidence, and calibration errors with intervals.

Shape suffixes: N = images, K = classes, B = bins.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import beta, norm, sem
from torch import Tensor

from model_code.errors import ReleaseError
from serving.bundle.manifest import Interval, Reliability, ReliabilityBin, TemperatureTrial

BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 1000.0
FOLDS = 10
MIN_COUNT = 100
RESAMPLES = 1000

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]
Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Judged:
    """Each image's largest probability, whether its label is right, and its bin."""

    confidence_N: Floats
    is_right_N: Booleans
    bin_N: Integers

    def compute_ece(self, chosen: Integers | None = None) -> float:
        """Return the expected calibration error of all images, or of those at the chosen indices."""
        gap_N = self.is_right_N - self.confidence_N
        gap_N, bin_N = (gap_N, self.bin_N) if chosen is None else (gap_N[chosen], self.bin_N[chosen])
        return float(np.abs(np.bincount(bin_N, weights=gap_N)).sum() / len(gap_N))


def try_temperature(logits_NK: Tensor, labels_N: Tensor) -> TemperatureTrial:
    """Return the fitted temperature and whether 10-fold cross-validation says that it helps.

    It is used only if, on images that did not fit it, it lowers the mean negative log-likelihood, a proper score, with
    a 95 % interval above zero, and does not raise the expected calibration error. Both are paired, image by image.
    Folds are the same for the same number of images.

    Args:
        logits_NK: float, of images that the network was not trained on.
        labels_N: int64 in [0, K).

    Raises:
        ReleaseError: A logit is not finite.
        ValueError: There are no images, or the lengths differ.
    """
    logits, labels = _read(logits_NK, labels_N)
    fitted = fit_temperature(logits_NK, labels_N)
    if len(labels) < MIN_COUNT:
        refusal = f"there are only {len(labels)} validation images and a cross-validation needs {MIN_COUNT}"
        return TemperatureTrial(fitted=fitted, refusal=refusal, folds=0)
    if fitted == 1:
        return TemperatureTrial(fitted=1.0, refusal="every validation image is labelled correctly", folds=0)
    fold_N = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    temperature_F = np.array([_minimise_nll(logits[fold_N != fold], labels[fold_N != fold]) for fold in range(FOLDS)])
    scaled = logits / temperature_F[fold_N, None]
    gain_N = _compute_nll(logits, labels) - _compute_nll(scaled, labels)
    gain, margin = float(gain_N.mean()), float(norm.ppf(0.975) * sem(gain_N))
    before, after = _judge(logits, labels), _judge(scaled, labels)

    change = after.compute_ece() - before.compute_ece()
    is_at_limit = fitted <= 1.01 * MIN_TEMPERATURE or fitted >= 0.99 * MAX_TEMPERATURE
    reasons = {
        "its gain in negative log-likelihood is not significant": gain <= margin,
        "it raises the cross-validated calibration error (ECE)": change > 0,
        "it is at the limit of the search: the confidence says nothing": is_at_limit,
    }
    return TemperatureTrial(
        fitted=fitted,
        refusal=next((reason for reason, holds in reasons.items() if holds), None),
        folds=FOLDS,
        nll_gain=gain,
        nll_gain_interval=(gain - margin, gain + margin),
        ece_change=change,
        ece_change_interval=_bootstrap(
            lambda chosen: after.compute_ece(chosen) - before.compute_ece(chosen), len(labels)
        ),
    )


def fit_temperature(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Return the T that minimises the mean cross-entropy of softmax(logits / T).

    It lies in [`MIN_TEMPERATURE`, `MAX_TEMPERATURE`]. Where every label is right, 1: the cross-entropy would fall
    for ever as T falls. Whether it helps on other images is for `try_temperature` to say.

    Source: Guo et al. 2017, arXiv:1706.04599, Sec. 4.2.

    Args:
        logits_NK: float, of images that the network was not trained on.
        labels_N: int64 in [0, K).

    Raises:
        ReleaseError: A logit is not finite.
        ValueError: There are no images, or the lengths differ.
    """
    return _minimise_nll(*_read(logits_NK, labels_N))


def measure_reliability(split: str, logits_NK: Tensor, labels_N: Tensor, temperature: float) -> Reliability:
    """Return the expected calibration error and its bins, without and with a temperature.

    Its intervals are basic bootstrap intervals over the images (Davison & Hinkley 1997, Bootstrap Methods, Sec. 5.2),
    the same for the same images: the binned error is too high on average, by about as much as its resamples are higher
    still, which the basic interval takes off and the percentile interval would add again.

    Source: Guo et al. 2017, arXiv:1706.04599, Sec. 2 (Eqs. 2 to 5): 15 bins of equal width.

    Args:
        split: Name of the images, for the record.
        logits_NK: float.
        labels_N: int64 in [0, K).
        temperature: Above 0.

    Raises:
        ReleaseError: A logit is not finite.
        ValueError: There are no images, or the lengths differ.
    """
    logits, labels = _read(logits_NK, labels_N)
    before, after = _judge(logits, labels), _judge(logits / temperature, labels)
    interval = _measure_ece_interval(before)
    return Reliability(
        split=split,
        count=len(labels),
        ece_before=before.compute_ece(),
        ece_after=after.compute_ece(),
        bins_before=_sort_into_bins(before),
        bins_after=_sort_into_bins(after),
        ece_before_interval=interval,
        ece_after_interval=interval if temperature == 1 else _measure_ece_interval(after),
    )


def measure_interval(count: int, total: int) -> Interval:
    """Return the 95 % Clopper-Pearson interval of a share; (0, 1) of nothing.

    Source: Clopper & Pearson 1934, Biometrika 26(4).
    """
    if total == 0:
        return (0.0, 1.0)
    low = beta.ppf(0.025, count, total - count + 1) if count else 0.0
    high = beta.ppf(0.975, count + 1, total - count) if count < total else 1.0
    return (float(low), float(high))


def _read(logits_NK: Tensor, labels_N: Tensor) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return both as arrays, float64 so that no sum over thousands of images loses digits."""
    if len(labels_N) == 0 or len(labels_N) != len(logits_NK):
        raise ValueError(f"{len(logits_NK)} predictions for {len(labels_N)} labels; both must be equal and above 0")
    logits = logits_NK.detach().cpu().double().numpy()
    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise ReleaseError(
            f"the network's answers about {broken} of {len(logits)} images are not finite; its weights are broken: "
            "train again"
        )
    return logits, labels_N.cpu().numpy()


def _minimise_nll(logits: Floats, labels: Integers) -> float:
    """Return the temperature with the lowest mean negative log-likelihood; 1 if every label is right."""
    if (logits.argmax(1) == labels).all():
        return 1.0

    def measure_loss(log_temperature: float) -> float:
        return float(_compute_nll(logits / np.exp(log_temperature), labels).mean())

    bounds = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
    found = minimize_scalar(measure_loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def _compute_nll(logits: Floats, labels: Integers) -> Floats:
    nll_N: Floats = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    return nll_N


def _judge(logits: Floats, labels: Integers) -> _Judged:
    probabilities = softmax(logits, axis=1)
    confidence_N = probabilities.max(axis=1)
    bin_N = np.clip(np.digitize(confidence_N, np.linspace(0, 1, BINS + 1), right=True) - 1, 0, BINS - 1)
    return _Judged(confidence_N, probabilities.argmax(axis=1) == labels, bin_N)


def _measure_ece_interval(judged: _Judged) -> Interval:
    count = len(judged.bin_N)
    if count == 1:
        return (0.0, 1.0)
    low, high = _bootstrap(judged.compute_ece, count)
    return (max(low, 0.0), high)


def _bootstrap(statistic: Callable[[Integers], float], count: int) -> Interval:
    """Return the 95 % basic bootstrap interval of a statistic of images named by their index.

    Widened to the estimate where the correction for bias would leave it outside.
    """
    generator = np.random.default_rng(0)
    estimate = statistic(np.arange(count))
    resampled = [statistic(generator.integers(count, size=count)) for _ in range(RESAMPLES)]
    low, high = (float(2 * estimate - quantile) for quantile in np.quantile(resampled, (0.975, 0.025)))
    return (min(low, estimate), max(high, estimate))


def _sort_into_bins(judged: _Judged) -> tuple[ReliabilityBin, ...]:
    edges = np.linspace(0, 1, BINS + 1)
    counts_B = np.bincount(judged.bin_N, minlength=BINS)
    divisors_B = np.maximum(counts_B, 1)
    confidence_B = np.bincount(judged.bin_N, weights=judged.confidence_N, minlength=BINS) / divisors_B
    accuracy_B = np.bincount(judged.bin_N, weights=judged.is_right_N, minlength=BINS) / divisors_B
    return tuple(
        ReliabilityBin(
            low=float(edges[index]),
            high=float(edges[index + 1]),
            count=int(counts_B[index]),
            confidence=float(confidence_B[index]),
            accuracy=float(accuracy_B[index]),
        )
        for index in range(BINS)
    )
