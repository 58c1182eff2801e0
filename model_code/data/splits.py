"""Seeded, stratified index sets: validation splits and smaller training sets.

Shape suffixes: N = images.
"""

import numpy as np
import numpy.typing as npt

from model_code.errors import UsageError

Indices = npt.NDArray[np.int64]


def count_validation(count: int, validation_fraction: float) -> int:
    """Return how many of some images a fraction holds out for validation.

    Raises:
        UsageError: The fraction is out of range, or one side would be empty.
    """
    if not 0 < validation_fraction < 1:
        raise UsageError(f"validation fraction {validation_fraction} is not allowed; give one between 0 and 1")
    validation_count = round(count * validation_fraction)
    if not 0 < validation_count < count:
        raise UsageError(
            f"validation fraction {validation_fraction} of {count} images leaves {validation_count} for validation; "
            "both sides need at least 1: take more images, or change --set validation_fraction"
        )
    return validation_count


def split_stratified(labels_N: npt.NDArray[np.int64], validation_fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Divide images into training and validation with the same class proportions.

    Args:
        labels_N: Class indices, 0 and above.
        validation_fraction: Share of the images for validation, between 0 and 1, both excluded.
        seed: The same seed gives the same split, 0 and above.

    Returns:
        (train indices, validation indices): disjoint, ascending, together all of 0..N-1. Validation holds the
        nearest whole number of N * validation_fraction, divided over the classes to the nearest whole
        image; a class keeps an image for training where that can be.

    Raises:
        UsageError: The fraction or seed is out of range, one side would be empty, or images have no label.
    """
    validation_count = count_validation(len(labels_N), validation_fraction)
    validation = take_stratified(labels_N, validation_count, seed, leaves_one=True)
    is_train_N = np.ones(len(labels_N), dtype=bool)
    is_train_N[validation] = False
    return np.flatnonzero(is_train_N).astype(np.int64), validation


def take_stratified(labels_N: npt.NDArray[np.int64], count: int, seed: int, *, leaves_one: bool = False) -> Indices:
    """Choose exactly `count` images with the class proportions of all.

    Args:
        labels_N: Class indices, 0 and above.
        count: Number of them, 1 to N.
        seed: The same seed gives the same images, 0 and above.
        leaves_one: True to take the last image of a class only where nothing else is left to take.

    Returns:
        Ascending indices into `labels_N`, each at most once.

    Raises:
        UsageError: The count or seed is out of range, or images have no label.
    """
    if not 1 <= count <= len(labels_N):
        raise UsageError(f"{count} images cannot be taken; 1 to {len(labels_N)} are there")
    if seed < 0:
        raise UsageError(f"seed {seed} is not allowed; give 0 or above")
    if labels_N.min() < 0:
        raise UsageError("images without a label cannot be stratified; leave out those with label -1")
    classes, class_counts = np.unique(labels_N, return_counts=True)
    shares = count * class_counts / len(labels_N)
    quotas = np.floor(shares).astype(np.int64)
    # A stream of its own: a seed sequence takes [seed] and [seed, 0] for the same.
    chance = np.random.default_rng([seed, 2**32 - 1]).random(len(classes))
    # The largest remainders get the images that rounding down left over; chance decides between equal ones.
    by_remainder = np.lexsort((chance, -np.round(shares - quotas, 9)))
    is_last = class_counts[by_remainder] - quotas[by_remainder] <= leaves_one
    by_remainder = np.concatenate([by_remainder[~is_last], by_remainder[is_last]])
    quotas[by_remainder[: count - quotas.sum()]] += 1
    taken = [
        np.random.default_rng([seed, int(label)]).permutation(np.flatnonzero(labels_N == label))[:quota]
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(taken)).astype(np.int64)
