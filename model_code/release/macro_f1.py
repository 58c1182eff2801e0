"""Macro-F1 of two models that label the same images.

Shape suffixes: N = images, K = classes, R = draws, T = distinct triples of right label and both models' labels.
"""

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from model_code.evaluation.metrics import average_f1

DRAWS = 2_000
_DRAWS_AT_ONCE = 50
_SEED = 20_260_102

Labels = npt.NDArray[np.integer]
Numbers = npt.NDArray[np.number]


def measure_macro_f1(labels_N: Labels, answers_N: Labels, classes: int) -> float:
    """Return the mean F1 of the classes that have images, in [0, 1].

    Args:
        labels_N: Right labels, in [0, K), at least one.
        answers_N: Labels that a model gives; one outside [0, K) counts as wrong.
        classes: K.
    """
    return float(_average(_build_tallies(labels_N, answers_N, classes) @ np.ones((len(labels_N), 1)))[0])


def resample_macro_f1(
    labels_N: Labels, challenger_N: Labels, champion_N: Labels, classes: int, confidence: float
) -> tuple[float, float]:
    """Return the bootstrap's percentile interval of the challenger's macro-F1 minus the champion's.

    Images are drawn with replacement from all images, whatever their class, each with what both models answer. The
    count of a class varies from draw to draw as it would in another split, so that the few images of a rare class widen
    the interval; drawn by class, a class of one image would add nothing to it. A draw averages over the classes that it
    has. The seed is fixed: the same answers give the same interval, in any order.

    Args:
        labels_N: Right labels, in [0, K), at least one.
        challenger_N: Labels that the challenger gives the same images.
        champion_N: Labels that the champion gives them.
        classes: K.
        confidence: Level, in (0, 1).
    """
    count = len(labels_N)
    triples_N3 = np.stack([labels_N, challenger_N, champion_N], axis=1)
    triples_T3, counts_T = np.unique(triples_N3, axis=0, return_counts=True)
    ours, theirs = (_build_tallies(triples_T3[:, 0], triples_T3[:, model], classes) for model in (1, 2))
    triple_of_N = np.repeat(np.arange(len(counts_T)), counts_T)
    random = np.random.default_rng(_SEED)
    differences: list[float] = []
    for _ in range(DRAWS // _DRAWS_AT_ONCE):
        drawn_NR = random.integers(count, size=(count, _DRAWS_AT_ONCE))
        places_NR = triple_of_N[drawn_NR] * _DRAWS_AT_ONCE + np.arange(_DRAWS_AT_ONCE)
        drawn_TR = np.bincount(places_NR.ravel(), minlength=len(counts_T) * _DRAWS_AT_ONCE).reshape(len(counts_T), -1)
        differences.extend(_average(ours @ drawn_TR) - _average(theirs @ drawn_TR))
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return float(low), float(high)


def _build_tallies(labels_T: Labels, answers_T: Labels, classes: int) -> csr_array:
    """Return 3 K rows of 0 and 1 over the triples: of each class, those of it, those answered so, and both."""
    is_class_T = (answers_T >= 0) & (answers_T < classes)
    is_right_T = answers_T == labels_T
    rows = [labels_T, classes + answers_T[is_class_T], 2 * classes + labels_T[is_right_T]]
    columns = [np.arange(len(labels_T)), np.flatnonzero(is_class_T), np.flatnonzero(is_right_T)]
    places = np.concatenate(rows), np.concatenate(columns)
    return csr_array((np.ones(len(places[0])), places), shape=(3 * classes, len(labels_T)))


def _average(tallies_R: Numbers) -> npt.NDArray[np.floating]:
    """Return the macro-F1 of each draw."""
    counts_KR, answered_KR, right_KR = np.split(tallies_R, 3)
    return average_f1(counts_KR.T, answered_KR.T, right_KR.T)
