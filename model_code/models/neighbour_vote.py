"""Votes of the most similar images of a bank, as a layer that can be exported to ONNX.

Source: Wu et al. 2018, arXiv:1805.01978, Sec. 3.4, with two changes that keep the answer continuous, so that no
rounding error decides a label: weights are relative to that of the first image that does not vote, and additive
smoothing. A few labels differ from those of `model_code.evaluation.knn`.

Shape suffixes: B = images to classify, M = images of the bank, D = features, K = classes, T = nearest neighbours and
the next one.
"""

import torch.nn.functional as F
from torch import Tensor, nn

# Pseudo-votes of all classes together; the nearest neighbour's vote is at most 1.
SMOOTHING = 0.1


class NeighbourVote(nn.Module):
    """Each of the nearest images, by cosine similarity s, votes for its class with exp(s / temperature).

    Weights are divided by that of the nearest image, and that of the first image that does not vote is subtracted.

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
        self._taken, self._temperature = min(neighbours + 1, len(labels_M)), temperature
        self._smoothing = SMOOTHING / classes
        self.register_buffer("bank_DM", F.normalize(features_MD.float(), dim=1).T.contiguous())
        self.register_buffer("is_class_MK", F.one_hot(labels_M, classes).float())

    def forward(self, features_BD: Tensor) -> Tensor:
        """Return the logarithm of each class's share of the votes, float32 [B, K]; its softmax is that share."""
        nearest = (F.normalize(features_BD, dim=1) @ self.bank_DM).topk(self._taken, dim=1)
        weights_BT = ((nearest.values - nearest.values[:, :1]) / self._temperature).exp()
        above_BT1 = (weights_BT - weights_BT[:, -1:]).unsqueeze(2)
        votes_BK = (self.is_class_MK[nearest.indices] * above_BT1).sum(dim=1) + self._smoothing
        return (votes_BK / votes_BK.sum(dim=1, keepdim=True)).log()
