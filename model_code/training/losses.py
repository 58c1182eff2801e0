"""Losses for self-supervised pretraining.

Shape suffixes: B = images in the batch, D = embedding width.
"""

import torch.nn.functional as F
from torch import Tensor

from model_code.models.simsiam import Embeddings


def negative_cosine_loss(predictions_BD: Tensor, targets_BD: Tensor) -> Tensor:
    """Return SimSiam's loss D(p, z) for one ordered pair of views.

    Symbols p and z are those of Chen & He 2021, arXiv:2011.10566, Sec. 3. The stop-gradient on z happens here, so no
    caller can forget it.

    Args:
        predictions_BD: Predictor outputs p of one view; any float dtype.
        targets_BD: Projector outputs z of the other view; same shape.

    Returns:
        Scalar mean over the batch, float32 or wider, dimensionless, in [-1, 1]; -1 is agreement.

    Raises:
        ValueError: The shapes differ; the message names both.
    """
    if predictions_BD.shape != targets_BD.shape:
        raise ValueError(
            f"predictions {tuple(predictions_BD.shape)} and targets {tuple(targets_BD.shape)} must have the same shape"
        )
    similarities_B = F.cosine_similarity(_widen(predictions_BD), _widen(targets_BD.detach()), dim=1)
    return -similarities_B.mean()


def simsiam_loss(first: Embeddings, second: Embeddings) -> Tensor:
    """Return D(p1, z2) / 2 + D(p2, z1) / 2 of two views (the same source, Eq. 4), in [-1, 1]."""
    forward = negative_cosine_loss(first.predictions_BD, second.projections_BD)
    backward = negative_cosine_loss(second.predictions_BD, first.projections_BD)
    return forward / 2 + backward / 2


def _widen(tensor: Tensor) -> Tensor:
    """Half precision is too coarse for a cosine near 1."""
    return tensor.float() if tensor.element_size() < 4 else tensor
