"""Batched augmentation of uint8 pictures: every picture of a batch draws its own parameters.

Shape suffixes: B = pictures, H = height, W = width, C = the three colour channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model_code.data.resampling import CPU_CHUNK_PIXELS, draw_crops, from_float, resize_crops, to_float


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


@torch.no_grad()
def resized_crop(
    images_BHWC: Tensor, image_size: int, crop_area: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Cut a random rectangle out of each picture and bring it to one size.

    The distribution is that of torchvision's RandomResizedCrop(image_size, crop_area) with its aspects of 3/4 to 4/3,
    bilinear with antialiasing, drawn for each picture on its own; nothing is mirrored.

    Args:
        images_BHWC: uint8 pictures of any size.
        image_size: Height and width of the result, pixels.
        crop_area: Smallest and largest share of the picture's area that a crop covers.
        generator: Source of randomness, on the pictures' device.

    Returns:
        uint8 [B, image_size, image_size, C], new storage.

    Raises:
        ValueError: `crop_area` is not ascending within 0 (excluded) to 1.
    """
    if not 0 < crop_area[0] <= crop_area[1] <= 1:
        raise ValueError(f"crop area {crop_area} is not allowed; give two shares, the smaller first, above 0 to 1")
    batch, height, width, _ = images_BHWC.shape
    crops = draw_crops(batch, height, width, generator, crop_area=crop_area)
    resized_BHWC = images_BHWC.new_empty((batch, image_size, image_size, 3))
    is_cpu = images_BHWC.device.type == "cpu"
    chunk = max(1, CPU_CHUNK_PIXELS // max(height * width, image_size**2)) if is_cpu else max(1, batch)
    for chosen in torch.arange(batch, device=images_BHWC.device).split(chunk):
        resized_BCHW = resize_crops(to_float(images_BHWC[chosen]), crops.take(chosen), image_size)
        resized_BHWC[chosen] = from_float(resized_BCHW, torch.uint8)
    return resized_BHWC
