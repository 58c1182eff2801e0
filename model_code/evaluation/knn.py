"""Weighted k-nearest-neighbour classification of frozen features: how good a backbone is, without training a layer.

Source: Wu et al. 2018, arXiv:1805.01978, Sec. 3.4.

Shape suffixes: N = images to classify, Q = images of one chunk, M = images of the bank, D = features,
K = classes, T = nearest neighbours taken.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model_code.errors import UsageError
from model_code.evaluation.features import LabelledFeatures
from model_code.evaluation.metrics import measure_top_k

NEIGHBOURS = 200
TEMPERATURE = 0.1
# Similarities held at once, 256 MiB; each chunk reads the whole bank again, so small chunks are slow.
CHUNK_ELEMENTS = 2**26


@torch.no_grad()
def knn_vote(
    bank: LabelledFeatures, features_ND: Tensor, neighbours: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> Tensor:
    """Return the votes of the most similar images in a bank for each class, float32 [N, K].

    Each of the `neighbours` nearest, by cosine similarity s, gives exp(s / temperature) to its class.

    Args:
        bank: Labelled images.
        features_ND: Features of the images to classify, float, any scale, on the bank's device.
        neighbours: Number of neighbours that vote; a smaller bank votes as a whole.
        temperature: Above 0; smaller listens more to the nearest.

    Raises:
        UsageError: The bank is empty, or a setting is out of range.
    """
    if neighbours < 1 or temperature <= 0:
        raise UsageError(f"neighbours={neighbours} and temperature={temperature} must both be above 0")
    if not len(bank):
        raise UsageError("the bank has no images; give at least 1 labelled image")
    neighbours = min(neighbours, len(bank))
    bank_DM = F.normalize(bank.features_ND.float(), dim=1).T
    chunk = max(1, CHUNK_ELEMENTS // len(bank))
    chunks = F.normalize(features_ND.float(), dim=1).split(chunk)
    return torch.cat([_vote(bank, bank_DM, features_QD, neighbours, temperature) for features_QD in chunks])


def knn_predict(
    bank: LabelledFeatures, features_ND: Tensor, neighbours: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> Tensor:
    """Return the class with the most votes of each image, int64 [N]; of equal ones that with the smaller index.

    Raises:
        UsageError: An argument that `knn_vote` refuses.
    """
    return knn_vote(bank, features_ND, neighbours, temperature).argmax(dim=1)


def knn_accuracy(
    bank: LabelledFeatures,
    queries: LabelledFeatures,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    top_k: int = 1,
) -> float:
    """Return the share of the queries whose label is among the `top_k` classes with the most votes, in [0, 1].

    Raises:
        UsageError: The two have different classes, there are no queries, or as `knn_vote`.
    """
    if bank.classes != queries.classes:
        raise UsageError(
            f"the bank's classes {', '.join(bank.classes)} are not those of the images to classify, "
            f"{', '.join(queries.classes)}; give two splits of one data set"
        )
    if not len(queries):
        raise UsageError("there are no images to classify; give at least 1")
    votes_NK = knn_vote(bank, queries.features_ND, neighbours, temperature)
    return measure_top_k(votes_NK, queries.labels_N, top_k)


def _vote(bank: LabelledFeatures, bank_DM: Tensor, features_QD: Tensor, neighbours: int, temperature: float) -> Tensor:
    nearest = (features_QD @ bank_DM).topk(neighbours, dim=1, sorted=False)
    # exp((s - 1) / t) is exp(s / t) times a constant, and never overflows.
    weights_QT = ((nearest.values - 1) / temperature).exp()
    queries, classes = len(features_QD), len(bank.classes)
    rows_Q1 = torch.arange(queries, device=features_QD.device)[:, None]
    ballots_QT = rows_Q1 * classes + bank.labels_N[nearest.indices]
    # In one dimension CUDA adds in a fixed order.
    votes = torch.zeros(queries * classes, device=features_QD.device)
    votes.scatter_add_(0, ballots_QT.flatten(), weights_QT.flatten())
    return votes.view(queries, classes)
