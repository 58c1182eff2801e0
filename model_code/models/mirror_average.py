"""Two answers about a picture, its own and its mirror image's, averaged.

Shape suffixes: B = pictures, H = height, W = width, C = the three colour channels, K = classes.
"""

import math

import torch
from torch import Tensor, nn


class MirrorAverage(nn.Module):
    """A trained model that looks at each picture twice, as it is and mirrored left to right.

    It takes twice the time, and the memory of twice the batch: both are one batch for the model, so that an exported
    graph holds the model's operations once.

    Args:
        model: uint8 pictures [B, H, W, C] in, logits [B, K] out.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Return the logarithm of the mean of both probabilities, float32 [B, K]; its softmax is that mean."""
        both = self.model(torch.cat([images_BHWC, images_BHWC.flip(2)])).float().log_softmax(dim=1)
        plain_BK, mirrored_BK = both.unflatten(0, (2, -1)).unbind(0)
        return torch.logaddexp(plain_BK, mirrored_BK) - math.log(2)
