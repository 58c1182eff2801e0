"""uint8 images -> what a network reads, as a layer, so that training, evaluation and ONNX share one arithmetic.

Shape suffixes: B = images, H = height, W = width, C = the three colour channels.
"""

import torch
from torch import Tensor, nn


class ImageInput(nn.Module):
    """Cut out the middle of uint8 images, scale them to [0, 1] and normalise each channel.

    Args:
        mean: Per channel, of images in [0, 1].
        std: Per channel, of images in [0, 1].
        image_size: Height and width of the middle, pixels; None takes the whole image.

    Attributes:
        is_channels_last: True if the result keeps the images' order in memory, channels last; else it is contiguous.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(
        self, mean: tuple[float, float, float], std: tuple[float, float, float], image_size: int | None = None
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.is_channels_last = True
        self.register_buffer("mean_C", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std_C", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Return float32 [B, C, H, W] of uint8 [B, H, W, C], or [B, C, image_size, image_size]."""
        if self.image_size is not None:
            top, left = ((side - self.image_size) // 2 for side in images_BHWC.shape[1:3])
            images_BHWC = images_BHWC[:, top : top + self.image_size, left : left + self.image_size]
        images_BCHW = images_BHWC.permute(0, 3, 1, 2)
        if not self.is_channels_last:
            images_BCHW = images_BCHW.contiguous()
        # In place: new memory for each of four results would take longer than the arithmetic.
        return images_BCHW.to(torch.float32, copy=True).div_(255).sub_(self.mean_C).div_(self.std_C)
