"""uint8 images -> what a network reads, as a layer, so that training, evaluation and ONNX share one arithmetic.

Shape suffixes: B = images, H = height, W = width, C = the three colour channels, O = side before and S = side after
scaling.
"""

import torch
import torch.nn.functional as F
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


class Rescale(nn.Module):
    """Scale normalised square images to another size and cut out the middle, as `plain_view` does without its rounding.

    Bicubic interpolation with antialiasing is linear in each direction: two matrices hold it, which ONNX can express.

    Args:
        image_input: Normalisation of the images.
        old_side: Height and width of the images, pixels.
        new_side: Height and width after scaling, pixels.
        image_size: Height and width of the middle, pixels.
    """

    rows_SO: Tensor
    lowest_C11: Tensor
    highest_C11: Tensor

    def __init__(self, image_input: ImageInput, old_side: int, new_side: int, image_size: int) -> None:
        super().__init__()
        unit_11OO = torch.eye(old_side)[None, None]
        scaled_SO = F.interpolate(unit_11OO, (new_side, old_side), mode="bicubic", antialias=True)[0, 0]
        top = round((new_side - image_size) / 2)
        self.register_buffer("rows_SO", scaled_SO[top : top + image_size].contiguous(), persistent=False)
        self.register_buffer("lowest_C11", -image_input.mean_C / image_input.std_C, persistent=False)
        self.register_buffer("highest_C11", (1 - image_input.mean_C) / image_input.std_C, persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return [B, C, image_size, image_size]."""
        scaled_BCHW = self.rows_SO @ images_BCHW @ self.rows_SO.T
        return torch.minimum(torch.maximum(scaled_BCHW, self.lowest_C11), self.highest_C11)
