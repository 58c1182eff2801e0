"""Nearest neighbours, by hand and against a plain loop.

Shape suffixes: N = images, D = features.
"""

import math

import pytest
import torch

from model_code.errors import UsageError
from model_code.evaluation import knn
from model_code.evaluation.features import LabelledFeatures
from model_code.evaluation.knn import knn_accuracy, knn_predict, knn_vote

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("a", "b", "c")


def labelled(rows: list[list[float]], labels: list[int], classes: tuple[str, ...] = CLASSES) -> LabelledFeatures:
    return LabelledFeatures(torch.tensor(rows), torch.tensor(labels), classes)


def noise(count: int, seed: int, width: int = 12) -> LabelledFeatures:
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.randint(0, 3, (count,), generator=generator)
    features_ND = torch.randn((count, width), generator=generator) + 0.8 * labels_N[:, None] * (torch.arange(width) % 3)
    return LabelledFeatures(features_ND, labels_N, CLASSES)


def predict_by_loop(bank: LabelledFeatures, query: list[float], neighbours: int, temperature: float) -> int:
    def cosine(row: list[float]) -> float:
        return sum(x * y for x, y in zip(row, query, strict=True)) / math.hypot(*row) / math.hypot(*query)

    nearest = sorted(zip(map(cosine, bank.features_ND.tolist()), bank.labels_N.tolist(), strict=True))
    votes = [0.0] * len(bank.classes)
    for similarity, label in nearest[-neighbours:]:
        votes[label] += math.exp(similarity / temperature)
    return votes.index(max(votes))


# The query points along x; the bank has similarities 1, 0.8 and 0.8, and one that is too far to vote.
BANK = labelled([[2.0, 0.0], [4.0, 3.0], [8.0, -6.0], [0.0, 1.0]], [0, 1, 1, 2])


@pytest.mark.parametrize(
    ("neighbours", "temperature", "expected"),
    [
        (1, 0.1, 0),
        # e^10 = 22026 against 2 * e^8 = 5962
        (3, 0.1, 0),
        # e^1 = 2.72 against 2 * e^0.8 = 4.45
        (3, 1.0, 1),
        (4, 1.0, 1),
    ],
)
def test_votes_by_hand(neighbours, temperature, expected):
    assert knn_predict(BANK, torch.tensor([[5.0, 0.0]]), neighbours, temperature).tolist() == [expected]


@pytest.mark.parametrize(("neighbours", "temperature"), [(1, 0.1), (7, 0.1), (20, 0.5), (60, 0.07)])
def test_votes_equal_a_plain_loop(neighbours, temperature):
    bank, queries = noise(60, 1), noise(40, 2)
    expected = [predict_by_loop(bank, row, neighbours, temperature) for row in queries.features_ND.tolist()]
    assert knn_predict(bank, queries.features_ND, neighbours, temperature).tolist() == expected


def test_small_temperatures_do_not_overflow():
    bank = noise(60, 1)
    assert torch.equal(knn_predict(bank, bank.features_ND, 20, 0.001), bank.labels_N)


@pytest.mark.parametrize("elements", [1, 60 * 7, 2**26])
def test_chunks_change_nothing_and_every_image_counts_once(elements, monkeypatch):
    bank, queries = noise(60, 1), noise(23, 2)
    right = sum(
        predict_by_loop(bank, row, 5, 0.1) == label
        for row, label in zip(queries.features_ND.tolist(), queries.labels_N.tolist(), strict=True)
    )
    monkeypatch.setattr(knn, "CHUNK_ELEMENTS", elements)
    assert knn_accuracy(bank, queries, 5, 0.1) == right / 23


@pytest.mark.parametrize("neighbours", [61, 200])
def test_a_bank_smaller_than_the_neighbours_votes_as_a_whole(neighbours):
    bank, queries = noise(60, 1), noise(40, 2)
    expected = [predict_by_loop(bank, row, 60, 0.1) for row in queries.features_ND.tolist()]
    assert knn_predict(bank, queries.features_ND, neighbours).tolist() == expected


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_classes_with_the_most_votes(top_k):
    bank, queries = noise(60, 1), noise(40, 2)
    votes_NK = knn_vote(bank, queries.features_ND, 7)
    ranked = [sorted(range(3), key=lambda label: -votes[label]) for votes in votes_NK.tolist()]
    right = sum(label in order[:top_k] for order, label in zip(ranked, queries.labels_N.tolist(), strict=True))
    assert knn_accuracy(bank, queries, 7, top_k=top_k) == right / 40


def test_an_empty_bank():
    nothing = LabelledFeatures(torch.zeros(0, 12), torch.zeros(0, dtype=torch.int64), CLASSES)
    with pytest.raises(UsageError, match="the bank has no images"):
        knn_predict(nothing, noise(2, 2).features_ND)


def test_other_classes():
    bank = noise(60, 1)
    with pytest.raises(UsageError, match=r"a, b, c are not those .* c, b, a"):
        knn_accuracy(bank, LabelledFeatures(bank.features_ND, bank.labels_N, ("c", "b", "a")), 5)


def test_nothing_to_classify():
    nothing = LabelledFeatures(torch.zeros(0, 12), torch.zeros(0, dtype=torch.int64), CLASSES)
    with pytest.raises(UsageError, match="no images"):
        knn_accuracy(noise(60, 1), nothing, 5)


@pytest.mark.parametrize(("neighbours", "temperature"), [(0, 0.1), (5, 0.0)])
def test_impossible_settings(neighbours, temperature):
    with pytest.raises(UsageError, match="above 0"):
        knn_predict(noise(60, 1), noise(2, 2).features_ND, neighbours, temperature)
