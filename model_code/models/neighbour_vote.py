"""Votes of the most similar images of a bank, as a layer that can be exported to ONNX.

Source: Wu et al. 2018, arXiv:1805.01978, Sec. 3.4, with two changes that keep the answer continuous, so that no
rounding error decides which image is the last to vote: the weight falls to 0 over the last `EDGE` of similarity, and
additive smoothing. Labels differ from those of `model_code.evaluation.knn` only where images within that edge decide.

Shape suffixes: B = images to classify, M = images of the bank, D = features, K = classes, T = nearest neighbours.
"""

import torch.nn.functional as F
from torch import Tensor, nn

# Pseudo-votes of all classes together, for each neighbour and at least; the nearest neighbour's vote is at most 1.
SMOOTHING, LEAST_SMOOTHING = 0.05, 2.0
# Cosine similarity above the first image that does not vote from which on a vote counts whole; float32 rounds to 1e-7.
EDGE = 5e-3


class NeighbourVote(nn.Module):
    """Each of the nearest images, by cosine similarity s, votes for its class with exp(s / temperature).

    Weights are divided by that of the nearest image; those of images hardly nearer than the first one that does not
    vote are reduced.

    Args:
        features_MD: Features of the bank, float, any scale.
        labels_M: int64 in [0, classes).
        classes: Number K of classes.
        neighbours: Number of neighbours that vote; a smaller bank votes as a whole.
        temperature: Above 0.
    """

    bank_DM: Tensor
    is_class_MK: Tensor

    def __init__(
        self, features_MD: Tensor, labels_M: Tensor, classes: int, neighbours: int, temperature: float
    ) -> None:
        super().__init__()
        self._neighbours, self._temperature = neighbours, temperature
        self._smoothing = max(SMOOTHING * neighbours, LEAST_SMOOTHING) / classes
        self.register_buffer("bank_DM", F.normalize(features_MD.float(), dim=1).T.contiguous())
        self.register_buffer("is_class_MK", F.one_hot(labels_M, classes).float())

    def forward(self, features_BD: Tensor) -> Tensor:
        """Return the logarithm of each class's share of the votes, float32 [B, K]; its softmax is that share."""
        bank_size = len(self.is_class_MK)
        nearest = (F.normalize(features_BD, dim=1) @ self.bank_DM).topk(min(self._neighbours + 1, bank_size), dim=1)
        weights_BT = ((nearest.values - nearest.values[:, :1]) / self._temperature).exp()
        if bank_size > self._neighbours:
            weights_BT = weights_BT * ((nearest.values - nearest.values[:, -1:]) / EDGE).clamp(max=1)
        votes_BK = (self.is_class_MK[nearest.indices] * weights_BT.unsqueeze(2)).sum(dim=1) + self._smoothing
        return (votes_BK / votes_BK.sum(dim=1, keepdim=True)).log()
