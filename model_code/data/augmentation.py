"""Batched augmentation of uint8 images: every image of a batch draws its own parameters.

Shape suffixes: B = images, H = height, W = width, C = the three colour channels.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from model_code.data.resampling import CPU_CHUNK_PIXELS, draw_crops, from_float, resize_crops, to_float


def crop_and_flip(
    images_BHWC: Tensor,
    padding_pixels: int,
    has_flip: bool,
    generator: torch.Generator,
    *,
    border: Literal["black", "reflect"] = "black",
    is_mirrored_B: Tensor | None = None,
) -> Tensor:
    """Pad, cut a window of the old size at a random place, mirror half of the images.

    The distribution is that of torchvision's RandomCrop(size, padding) followed by RandomHorizontalFlip(0.5), drawn
    for each image on its own.

    Args:
        images_BHWC: uint8 images.
        padding_pixels: Border on each side before the crop; 0 leaves the images in place.
        has_flip: True to mirror images left to right.
        generator: Source of randomness, on the images' device.
        border: `black`, or `reflect` for the pixels mirrored at the edge.
        is_mirrored_B: bool, which images are mirrored; None draws each with probability 0.5.

    Returns:
        uint8 [B, H, W, C], new storage.
    """
    batch, height, width, channels = images_BHWC.shape
    device = images_BHWC.device
    tops_B, lefts_B = torch.randint(0, 2 * padding_pixels + 1, (2, batch), generator=generator, device=device)
    sources_B = torch.arange(batch, device=device)
    if has_flip:
        # A mirrored window of an image is a window of the mirrored image.
        if is_mirrored_B is None:
            is_mirrored_B = torch.rand(batch, generator=generator, device=device) < 0.5
        images_BHWC = torch.cat([images_BHWC, images_BHWC.flip(2)])
        sources_B = sources_B + batch * is_mirrored_B
        lefts_B = torch.where(is_mirrored_B, 2 * padding_pixels - lefts_B, lefts_B)
    padded = _pad(images_BHWC, padding_pixels, border)
    rows_BH = (sources_B * padded.shape[1] + tops_B)[:, None] + torch.arange(height, device=device)
    starts_BH = rows_BH * padded.shape[2] + lefts_B[:, None]
    # Each row of a window is one run of pixels in memory.
    runs = padded.flatten().unfold(0, width * channels, channels)
    return runs.index_select(0, starts_BH.flatten()).view(batch, height, width, channels)


def _pad(images_BHWC: Tensor, pixels: int, border: Literal["black", "reflect"]) -> Tensor:
    if border == "black":
        return F.pad(images_BHWC, (0, 0, *[pixels] * 4))
    for dim in (1, 2):
        places = torch.arange(-pixels, images_BHWC.shape[dim] + pixels, device=images_BHWC.device)
        images_BHWC = images_BHWC.index_select(dim, reflect(places, images_BHWC.shape[dim]))
    return images_BHWC


def reflect(places: Tensor, size: int) -> Tensor:
    """Return which places in [0, size) of an axis are seen in the mirrors at its ends.

    Args:
        places: int64 in (-size, 2 * size - 1).
        size: Length of the axis.
    """
    return (size - 1) - ((size - 1) - places.abs()).abs()


@torch.no_grad()
def resized_crop(
    images_BHWC: Tensor, image_size: int, crop_area: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Cut a random rectangle out of each image and bring it to one size.

    The distribution is that of torchvision's RandomResizedCrop(image_size, crop_area) with its aspects of 3/4 to 4/3,
    bilinear with antialiasing, drawn for each image on its own; nothing is mirrored.

    Args:
        images_BHWC: uint8 images of any size.
        image_size: Height and width of the result, pixels.
        crop_area: Smallest and largest share of the image's area that a crop covers.
        generator: Source of randomness, on the images' device.

    Returns:
        uint8 [B, image_size, image_size, C], new storage.

    Raises:
        ValueError: `crop_area` is not ascending within 0 (excluded) to 1.
    """
    if not 0 < crop_area[0] <= crop_area[1] <= 1:
        raise ValueError(f"crop area {crop_area} is not allowed; give two shares, the smaller first, above 0 to 1")
    batch, height, width, _ = images_BHWC.shape
    crops = draw_crops(batch, height, width, generator, crop_area=crop_area)
    resized = []
    is_cpu = images_BHWC.device.type == "cpu"
    chunk = max(1, CPU_CHUNK_PIXELS // max(height * width, image_size**2)) if is_cpu else max(1, batch)
    for first in range(0, batch, chunk):
        chosen = slice(first, first + chunk)
        resized_BCHW = resize_crops(to_float(images_BHWC[chosen]), crops.take(chosen), image_size)
        resized.append(from_float(resized_BCHW, torch.uint8))
    return torch.cat(resized)
