"""Batched augmentation of uint8 pictures: every picture of a batch draws its own parameters.

Shape suffixes: B = pictures, H = height, W = width, C = the three colour channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_and_flip(images_BHWC: Tensor, padding_pixels: int, has_flip: bool, generator: torch.Generator) -> Tensor:
    """Pad with black, cut a window of the old size at a random place, mirror half of the pictures.

    The distribution is that of torchvision's RandomCrop(size, padding) followed by RandomHorizontalFlip(0.5), drawn
    for each picture on its own.

    Args:
        images_BHWC: uint8 pictures.
        padding_pixels: Black border on each side before the crop; 0 leaves the pictures in place.
        has_flip: Whether pictures are mirrored left to right with probability 0.5.
        generator: Source of randomness, on the pictures' device.

    Returns:
        uint8 [B, H, W, C], new storage.
    """
    batch, height, width, _ = images_BHWC.shape
    device = images_BHWC.device
    shifts_2B = torch.randint(0, 2 * padding_pixels + 1, (2, batch), generator=generator, device=device)
    rows_BH = shifts_2B[0, :, None] + torch.arange(height, device=device)
    columns_BW = torch.arange(width, device=device).expand(batch, width)
    if has_flip:
        is_mirrored_B = torch.rand(batch, generator=generator, device=device) < 0.5
        columns_BW = torch.where(is_mirrored_B[:, None], columns_BW.flip(1), columns_BW)
    columns_BW = columns_BW + shifts_2B[1, :, None]
    border = (0, 0, padding_pixels, padding_pixels, padding_pixels, padding_pixels)
    padded = F.pad(images_BHWC, border)
    index_B = torch.arange(batch, device=device)
    return padded[index_B[:, None, None], rows_BH[:, :, None], columns_BW[:, None, :]]
