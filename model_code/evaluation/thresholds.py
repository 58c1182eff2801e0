"""Thresholds with a guarantee: which predictions are accepted so that their error stays within a target.

Shape suffixes: N = images, K = classes, R = tested ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from model_code.evaluation.calibration import measure_interval
from serving.bundle.manifest import Selection, Thresholds

CONFIDENCE = 0.95
# Target errors from the strictest on, each with its share of the 5 % risk: the strictest is wanted and gets most.
TARGETS = {0.05: 0.8, 0.1: 0.1, 0.2: 0.1}
# With a smaller share of the validation images accepted, a looser target is tried.
LEAST_ACCEPTED = 0.1
# The sequence starts at this share of the most probable predictions and goes on in steps of one percent.
FIRST_SHARE, STEPS = 1 / 8, 100

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]
Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LabelledAnswers:
    """A network's answers about labelled images.

    Attributes:
        split: `validation` or `test`.
        probabilities_NK: In [0, 1], rows summing to 1.
        labels_N: In [0, K).
    """

    split: str
    probabilities_NK: Floats
    labels_N: Integers


def choose_supported_thresholds(validation: LabelledAnswers, test: LabelledAnswers | None) -> Thresholds:
    """Choose thresholds for the strictest of the `TARGETS` that the validation images support.

    Where none accepts `LEAST_ACCEPTED` of them, that which accepts most is taken.

    Each target spends its own share of the risk, so that the confidence holds whichever is chosen. See
    `choose_thresholds` for the rest.
    """
    candidates = []
    for target_error, share in TARGETS.items():
        thresholds = choose_thresholds(validation, test, target_error, share * (1 - CONFIDENCE))
        if thresholds.selections[0].answered >= LEAST_ACCEPTED * len(validation.labels_N):
            return thresholds
        candidates.append(thresholds)
    return max(candidates, key=lambda one: one.selections[0].answered)


def choose_thresholds(
    validation: LabelledAnswers, test: LabelledAnswers | None, target_error: float, risk: float = 1 - CONFIDENCE
) -> Thresholds:
    """Choose the least probability at which the predictions of each class are accepted, on validation.

    With a confidence of 1 - risk every threshold at once keeps the target error: a class with a threshold of its own by
    itself, the classes that share the pooled threshold taken together; so do all accepted predictions. A threshold is
    None where the images do not support one: no prediction of that class is accepted.

    A class gets a test of its own if it is predicted often enough to pass one with an error among the images. These
    classes divide half of the risk; the test of the pooled threshold, which takes the classes left over, has the
    other half, or all of it if no class is predicted often enough. Counts decide, labels do not.

    The confidence holds for images like those of validation. Which epoch was kept was chosen on them too, as was the
    temperature: that is not accounted for.

    Sources: Geifman & El-Yaniv 2017, arXiv:1705.08500 (selection by the largest probability, binomial bound on the
    error of those accepted); Angelopoulos et al. 2021, arXiv:2110.01052 (fixed sequence testing of thresholds).

    Args:
        validation: Answers that choose.
        test: Answers that are only reported; None if there are none.
        target_error: Error allowed among accepted predictions, in (0, 1).
        risk: Probability that the target error is exceeded, in (0, 1).

    Raises:
        ValueError: `target_error` is outside (0, 1), or there are no validation images.
    """
    if not 0 < target_error < 1:
        raise ValueError(f"target_error={target_error}; a share in (0, 1) is allowed")
    if len(validation.labels_N) == 0:
        raise ValueError("there are no validation images to choose thresholds on")
    classes = validation.probabilities_NK.shape[1]
    confidence_N, predicted_N, is_wrong_N = _judge(validation)
    counts_K = np.bincount(predicted_N, minlength=classes)
    (tested,) = np.nonzero(counts_K >= _count_needed(target_error, risk / 2 / classes, errors=1))
    own: list[float | None] = [None] * classes
    for label in tested:
        chosen_N = predicted_N == label
        own[label] = _find_threshold(confidence_N[chosen_N], is_wrong_N[chosen_N], target_error, risk / 2 / len(tested))
    is_own = [threshold is not None for threshold in own]
    rest_N = ~np.array(is_own)[predicted_N]
    pooled_risk = risk / 2 if len(tested) else risk
    pooled = _find_threshold(confidence_N[rest_N], is_wrong_N[rest_N], target_error, pooled_risk)
    per_class = [pooled if threshold is None else threshold for threshold in own]
    splits = [validation] if test is None else [validation, test]
    return Thresholds(
        target_error=target_error,
        overall=pooled,
        per_class=tuple(per_class),
        selections=tuple(select(answers, per_class) for answers in splits),
        confidence=CONFIDENCE,
        is_own=tuple(is_own),
        by_class=tuple(select(splits[-1], per_class, label) for label in range(classes)),
    )


def select(answers: LabelledAnswers, per_class: Sequence[float | None], label: int | None = None) -> Selection:
    """Count accepted and wrong predictions.

    Args:
        answers: Predictions of a model, in any precision.
        per_class: Threshold of each predicted class; None accepts no prediction of it.
        label: Predicted class that is counted; None counts all.
    """
    confidence_N, predicted_N, is_wrong_N = _judge(answers)
    limit_K = np.array([np.inf if threshold is None else threshold for threshold in per_class])
    is_meant_N = np.full(len(predicted_N), True) if label is None else predicted_N == label
    is_accepted_N = is_meant_N & (confidence_N >= limit_K[predicted_N])
    accepted, wrong = int(is_accepted_N.sum()), int((is_accepted_N & is_wrong_N).sum())
    return Selection(
        split=answers.split,
        count=int(is_meant_N.sum()),
        answered=accepted,
        wrong=wrong,
        error_interval=measure_interval(wrong, accepted),
    )


def _judge(answers: LabelledAnswers) -> tuple[Floats, Integers, Booleans]:
    """Return each image's largest probability, its label, and whether that is wrong."""
    predicted_N = answers.probabilities_NK.argmax(axis=1)
    return answers.probabilities_NK.max(axis=1), predicted_N, predicted_N != answers.labels_N


@cache
def _count_needed(target_error: float, risk: float, errors: int) -> int:
    """Return the fewest predictions that reject an error above the target with so many errors among them."""
    count = errors + 1
    while binom.cdf(errors, count, target_error) > risk:
        count += 1
    return count


def _find_threshold(confidence_N: Floats, is_wrong_N: Booleans, target_error: float, risk: float) -> float | None:
    """Return the lowest threshold before the first one at which an error above the target cannot be rejected.

    The tests go from the highest threshold downwards, each at the full risk: the first true hypothesis of a sequence
    ends it but for that risk, whatever the number of tests. The start needs no label: as few predictions as reject the
    hypothesis with an error among them, so that one unlucky image does not end the sequence, or `FIRST_SHARE` of all
    if that is more. Rejecting is the same as a one-sided Clopper-Pearson upper bound of at most the target.
    """
    count = len(confidence_N)
    first = min(count, max(_count_needed(target_error, risk, errors=1), int(np.ceil(FIRST_SHARE * count))))
    if count == 0:
        return None
    order = np.argsort(-confidence_N, kind="stable")
    sorted_N, wrong_N = confidence_N[order], np.cumsum(is_wrong_N[order])
    ranks_R = np.linspace(first, count, STEPS + 1).astype(int)
    # Predictions of equal probability are accepted together.
    ranks_R = np.searchsorted(-sorted_N, -sorted_N[ranks_R - 1], side="right")
    is_rejected_R = binom.cdf(wrong_N[ranks_R - 1], ranks_R, target_error) <= risk
    passed = int(np.argmin(np.append(is_rejected_R, False)))
    if passed == 0:
        return None
    last = ranks_R[passed - 1]
    return 0.0 if last == count else float(sorted_N[last - 1])
