"""Labels that are likely wrong: confident learning on out-of-sample probabilities of a ridge probe.

Sources: Northcutt, Jiang & Chuang 2021, "Confident Learning", JAIR 70; leave-one-out residuals of ridge regression as
in Hastie, Tibshirani & Friedman 2009, "The Elements of Statistical Learning", Sec. 7.10.

Shape suffixes: N = images, D = features, K = classes, L = candidates of the ridge.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torch import Tensor

# Of a class with fewer images a probe that leaves one out knows too little.
FEWEST_IMAGES = 5
SMALLEST_SCORE = 0.9
_RIDGES = tuple(10.0**power for power in range(7))

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelIssue:
    """An image whose label is likely wrong.

    Attributes:
        index: Its place among the images.
        suggested: Class that the probe takes it for.
        score: 1 - probability of its label / mean probability of that label over the images that have it.
    """

    index: int
    suggested: int
    score: float


@torch.no_grad()
def predict_left_out(features_ND: Tensor, labels_N: npt.NDArray[np.int64], class_count: int) -> Probabilities:
    """Return class probabilities [N, K] of each image by a ridge probe on all others.

    The ridge is the one that labels most left-out images right; one temperature fits them to the labels.

    Args:
        features_ND: Each dimension with mean 0 and variance 1.
        labels_N: Class indices, 0 and above.
        class_count: K.
    """
    features_ND = features_ND.double()
    targets_NK = torch.nn.functional.one_hot(torch.from_numpy(labels_N), class_count).double()
    mean_K = targets_NK.mean(0)
    centred_NK = targets_NK - mean_K
    values_D, vectors_DD = torch.linalg.eigh(features_ND.T @ features_ND)
    rotated_ND = features_ND @ vectors_DD
    weights_DK = rotated_ND.T @ centred_NK
    best_NK, best_right = centred_NK, -1
    for ridge in _RIDGES:
        shrunk_D = 1 / (values_D.clamp(min=0) + ridge)
        # The mean that is subtracted from the targets is a feature as well: 1/N.
        leverage_N = (rotated_ND**2 @ shrunk_D + 1 / len(labels_N)).clamp(max=1 - 1e-6)
        fitted_NK = rotated_ND @ (shrunk_D[:, None] * weights_DK)
        left_out_NK = centred_NK - (centred_NK - fitted_NK) / (1 - leverage_N[:, None])
        right = int(((left_out_NK + mean_K).argmax(1).numpy() == labels_N).sum())
        if right > best_right:
            best_NK, best_right = left_out_NK + mean_K, right
    return _calibrate(best_NK.numpy(), labels_N)


def find_label_issues(
    probabilities_NK: Probabilities, labels_N: npt.NDArray[np.int64], fewest: int = FEWEST_IMAGES
) -> list[LabelIssue]:
    """Return the images that are taken for another class and are far from their own, the farthest first.

    An image is far from its class where the probability of its label is below a tenth of the mean of that probability
    over the images with that label, which is the class's threshold in confident learning.

    Args:
        probabilities_NK: Probabilities by a model that did not learn from the image.
        labels_N: Given labels.
        fewest: Images of classes with fewer are not judged.
    """
    counts_K = np.bincount(labels_N, minlength=probabilities_NK.shape[1])
    own_N = probabilities_NK[np.arange(len(labels_N)), labels_N]
    thresholds_K = np.bincount(labels_N, own_N, len(counts_K)) / np.maximum(counts_K, 1)
    suggested_N = probabilities_NK.argmax(1)
    score_N = 1 - own_N / thresholds_K[labels_N]
    is_judged_N = (counts_K[labels_N] >= fewest) & (suggested_N != labels_N)
    found = np.flatnonzero(is_judged_N & (score_N >= SMALLEST_SCORE))
    ranked = found[np.argsort(-score_N[found], kind="stable")]
    return [LabelIssue(int(index), int(suggested_N[index]), float(score_N[index])) for index in ranked]


def _calibrate(scores_NK: Probabilities, labels_N: npt.NDArray[np.int64]) -> Probabilities:
    def scale(logarithm: float) -> Probabilities:
        logits_NK = np.exp(logarithm) * scores_NK
        normalised: Probabilities = logits_NK - logsumexp(logits_NK, axis=1, keepdims=True)
        return normalised

    def measure_loss(logarithm: float) -> float:
        return float(-scale(logarithm)[np.arange(len(labels_N)), labels_N].mean())

    return np.exp(scale(minimize_scalar(measure_loss, bounds=(-3, 5), method="bounded").x))
