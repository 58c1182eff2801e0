"""How far a classifier's probabilities can be believed: temperature, reliability, and when a label is withheld.

Shape suffixes: N = pictures, K = classes, B = bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest
from torch import Tensor

from model_code.errors import ReleaseError
from serving.manifest import Interval, Reliability, ReliabilityBin, Selection, Thresholds

BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
MIN_CLASS_COUNT = 30

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]


@dataclass(frozen=True)
class LabelledAnswers:
    """What a network answered about some labelled pictures.

    Attributes:
        split: `validation` or `test`.
        probabilities_NK: In [0, 1], rows summing to 1.
        labels_N: In [0, K).
    """

    split: str
    probabilities_NK: Floats
    labels_N: Integers


def fit_temperature(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Return the T that minimises the mean cross-entropy of softmax(logits / T), in [0.05, 20].

    Where every label is right, 1: the cross-entropy would fall for ever as T falls, and no error says how far to
    believe the answers.

    Source: Guo et al. 2017, arXiv:1706.04599, Sec. 4.2.

    Args:
        logits_NK: Of pictures that the network did not learn from.
        labels_N: int64 in [0, K).

    Raises:
        ReleaseError: A logit is not finite.
        ValueError: There are no pictures, or the lengths differ.
    """
    logits, labels = _read(logits_NK, labels_N)
    if (logits.argmax(1) == labels).all():
        return 1.0
    rows = np.arange(len(labels))

    def measure_loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean())

    bounds = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
    found = minimize_scalar(measure_loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def measure_reliability(split: str, logits_NK: Tensor, labels_N: Tensor, temperature: float) -> Reliability:
    """Return the expected calibration error and its bins, without and with a temperature.

    Source: Guo et al. 2017, arXiv:1706.04599, Sec. 2 (Eqs. 2 to 5): 15 bins of equal width.

    Args:
        split: Name of the pictures, for the record.
        logits_NK: float.
        labels_N: int64 in [0, K).
        temperature: Above 0.

    Raises:
        ReleaseError: A logit is not finite.
        ValueError: There are no pictures, or the lengths differ.
    """
    logits, labels = _read(logits_NK, labels_N)
    bins_before, bins_after = (_sort_into_bins(softmax(logits / t, axis=1), labels) for t in (1.0, temperature))
    return Reliability(
        split=split,
        count=len(labels),
        ece_before=_compute_ece(bins_before),
        ece_after=_compute_ece(bins_after),
        bins_before=bins_before,
        bins_after=bins_after,
    )


def choose_thresholds(validation: LabelledAnswers, test: LabelledAnswers | None, target_error: float) -> Thresholds:
    """Choose on validation from which probability a label is given, and report what comes of it.

    A label is given where its probability is at least the threshold. The overall threshold is the lowest probability
    on validation with at most `target_error` wrong among the labels given, 0 where all may be given, None where no
    threshold reaches it. That of a class is the same among the pictures labelled with it; a class that fewer than 30
    pictures are labelled with takes the overall one.

    The share of wrong labels is that of the validation pictures, without a margin; its interval is in the selections.

    Source: Geifman & El-Yaniv 2017, arXiv:1705.08500: selective classification by the largest softmax probability
    (without their bound on the risk).

    Args:
        validation: Chooses.
        test: Is only reported; None if there is none.
        target_error: Share of wrong labels among those given, in [0, 1).

    Raises:
        ValueError: `target_error` is outside [0, 1), or there are no validation pictures.
    """
    if not 0 <= target_error < 1:
        raise ValueError(f"target_error={target_error}; a share in [0, 1) is allowed")
    if len(validation.labels_N) == 0:
        raise ValueError("there are no validation pictures to choose thresholds on")
    classes = validation.probabilities_NK.shape[1]
    confidence_N, predicted_N, is_right_N = _judge(validation)
    overall = _choose_threshold(confidence_N, is_right_N, target_error)
    per_class = []
    for label in range(classes):
        chosen_N = predicted_N == label
        is_known = chosen_N.sum() >= MIN_CLASS_COUNT
        per_class.append(
            _choose_threshold(confidence_N[chosen_N], is_right_N[chosen_N], target_error) if is_known else overall
        )
    splits = [validation] if test is None else [validation, test]
    return Thresholds(
        target_error=target_error,
        overall=overall,
        per_class=tuple(per_class),
        selections=tuple(_select(answers, per_class) for answers in splits),
        selections_overall=tuple(_select(answers, [overall] * classes) for answers in splits),
    )


def measure_interval(count: int, total: int) -> Interval:
    """Return the 95 % Clopper-Pearson interval of a share; (0, 1) of nothing.

    Source: Clopper & Pearson 1934, Biometrika 26(4).
    """
    if total == 0:
        return (0.0, 1.0)
    interval = binomtest(count, total).proportion_ci(confidence_level=0.95, method="exact")
    return (float(interval.low), float(interval.high))


def _read(logits_NK: Tensor, labels_N: Tensor) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return both as arrays, float64 so that no sum over thousands of pictures loses digits."""
    if len(labels_N) == 0 or len(labels_N) != len(logits_NK):
        raise ValueError(f"{len(logits_NK)} predictions for {len(labels_N)} labels; both must be equal and above 0")
    logits = logits_NK.detach().cpu().double().numpy()
    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise ReleaseError(
            f"the network's answers about {broken} of {len(logits)} pictures are not finite; its weights are broken: "
            "train again"
        )
    return logits, labels_N.cpu().numpy()


def _sort_into_bins(probabilities_NK: Floats, labels_N: Integers) -> tuple[ReliabilityBin, ...]:
    edges = np.linspace(0, 1, BINS + 1)
    confidence_N = probabilities_NK.max(axis=1)
    is_right_N = probabilities_NK.argmax(axis=1) == labels_N
    bin_N = np.clip(np.digitize(confidence_N, edges, right=True) - 1, 0, BINS - 1)
    counts_B = np.bincount(bin_N, minlength=BINS)
    divisors_B = np.maximum(counts_B, 1)
    confidence_B = np.bincount(bin_N, weights=confidence_N, minlength=BINS) / divisors_B
    accuracy_B = np.bincount(bin_N, weights=is_right_N, minlength=BINS) / divisors_B
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


def _compute_ece(bins: Sequence[ReliabilityBin]) -> float:
    total = sum(each.count for each in bins)
    return sum(each.count * abs(each.accuracy - each.confidence) for each in bins) / total


def _judge(answers: LabelledAnswers) -> tuple[Floats, Integers, npt.NDArray[np.bool_]]:
    """Return each picture's largest probability, its label, and whether that is right."""
    predicted_N = answers.probabilities_NK.argmax(axis=1)
    return answers.probabilities_NK.max(axis=1), predicted_N, predicted_N == answers.labels_N


def _choose_threshold(confidence_N: Floats, is_right_N: npt.NDArray[np.bool_], target_error: float) -> float | None:
    order = np.argsort(-confidence_N, kind="stable")
    sorted_N = confidence_N[order]
    answered_N = np.arange(1, len(order) + 1)
    wrong_N = np.cumsum(~is_right_N[order])
    # Pictures with one probability are answered together or not at all: only the last of them can be the limit.
    is_last_N = np.append(sorted_N[:-1] != sorted_N[1:], True)
    (allowed,) = np.nonzero(is_last_N & (wrong_N <= target_error * answered_N))
    if len(allowed) == 0:
        return None
    return 0.0 if allowed[-1] == len(order) - 1 else float(sorted_N[allowed[-1]])


def _select(answers: LabelledAnswers, per_class: Sequence[float | None]) -> Selection:
    confidence_N, predicted_N, is_right_N = _judge(answers)
    limit_K = np.array([np.inf if threshold is None else threshold for threshold in per_class])
    is_answered_N = confidence_N >= limit_K[predicted_N]
    answered, wrong = int(is_answered_N.sum()), int((is_answered_N & ~is_right_N).sum())
    return Selection(
        split=answers.split,
        count=len(confidence_N),
        answered=answered,
        wrong=wrong,
        error_interval=measure_interval(wrong, answered),
    )
