"""uint8 pictures -> what a network reads, as a layer, so that training, evaluation and ONNX share one arithmetic.

Shape suffixes: B = pictures, H = height, W = width, C = the three colour channels.
"""

import torch
from torch import Tensor, nn


class PictureInput(nn.Module):
    """Scale uint8 pictures to [0, 1] and normalise each channel.

    Args:
        mean: Per channel, of pictures in [0, 1].
        std: Per channel, of pictures in [0, 1].
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean_C", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std_C", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Return float32 [B, C, H, W] of uint8 [B, H, W, C]."""
        images_BCHW = images_BHWC.permute(0, 3, 1, 2).float() / 255
        return (images_BCHW - self.mean_C) / self.std_C
