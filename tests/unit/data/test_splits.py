import numpy as np
import pytest

from model_code.data.splits import split_stratified, take_stratified
from model_code.errors import UsageError

LABELS = np.repeat(np.arange(10), 500).astype(np.int64)


def test_split_is_disjoint_covers_everything_and_keeps_proportions():
    train, validation = split_stratified(LABELS, 0.2, seed=42)
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(5000))
    assert np.all(np.diff(train) > 0)
    assert np.all(np.diff(validation) > 0)
    assert np.bincount(LABELS[validation]).tolist() == [100] * 10


def test_split_follows_the_seed():
    first, again, other = (split_stratified(LABELS, 0.2, seed)[1] for seed in (42, 42, 43))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_uneven_classes_are_divided_to_the_nearest_image():
    labels = np.repeat([0, 1, 2], [10, 21, 7]).astype(np.int64)
    _, validation = split_stratified(labels, 0.25, seed=0)
    assert len(validation) == round(38 * 0.25)
    assert np.all(np.abs(np.bincount(labels[validation]) - np.array([2.5, 5.25, 1.75])) < 1)


@pytest.mark.parametrize("seed", range(20))
def test_the_only_image_of_a_class_is_kept_for_training(seed):
    labels = np.array([0] * 100 + [1, 2, 3, 4, 5, 6, 6])
    train, validation = split_stratified(labels, 0.2, seed)
    assert set(labels[train]) == set(range(7))
    assert len(validation) == round(107 * 0.2)
    nothing_else = split_stratified(np.arange(10), 0.2, seed)[1]
    assert len(nothing_else) == 2


@pytest.mark.parametrize("count", [1, 7, 10, 1234, 5000])
def test_take_gives_exactly_the_count_without_repeats(count):
    indices = take_stratified(LABELS, count, seed=3)
    assert len(np.unique(indices)) == len(indices) == count
    counts = np.bincount(LABELS[indices], minlength=10)
    assert counts.max() - counts.min() <= 1


def test_the_smaller_part_of_a_count_falls_on_classes_by_chance():
    first_classes = {int(LABELS[take_stratified(LABELS, 1, seed)[0]]) for seed in range(40)}
    assert len(first_classes) > 5


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_impossible_fraction(fraction):
    with pytest.raises(UsageError, match="give one between 0 and 1"):
        split_stratified(LABELS, fraction, seed=0)


def test_fraction_that_leaves_a_side_empty():
    with pytest.raises(UsageError, match="both sides need at least 1"):
        split_stratified(np.array([0, 1]), 0.01, seed=0)


@pytest.mark.parametrize("count", [0, -1, 5001])
def test_impossible_count(count):
    with pytest.raises(ValueError, match=r"1 to 5000 are there"):
        take_stratified(LABELS, count, seed=0)


def test_negative_seed_and_unlabelled_images():
    with pytest.raises(UsageError, match="seed -1"):
        take_stratified(LABELS, 5, seed=-1)
    with pytest.raises(UsageError, match="label -1"):
        take_stratified(np.array([0, -1]), 1, seed=0)
