"""Augmentations that hide or mix images, batched: every image draws its own place and share.

Shape suffixes: B = images, H = height, W = width, C = the three colour channels, T = tries, S = a row's or column's
pixels.
"""

import math

import torch
from torch import Tensor

ERASING_TRIES = 10


def cut_out(images_BHWC: Tensor, side_pixels: int, generator: torch.Generator) -> Tensor:
    """Fill a square of each image with that image's mean colour.

    The square's centre is anywhere in the image, so that near the border only a part of it is hidden, as in DeVries &
    Taylor 2017, arXiv:1708.04552.

    Args:
        images_BHWC: uint8.
        side_pixels: Side of the square; 0 returns the images as they are.
        generator: Source of randomness, on the images' device.

    Returns:
        uint8 [B, H, W, C].
    """
    if not side_pixels:
        return images_BHWC
    mask_BHW = _draw_boxes(
        images_BHWC, torch.full((len(images_BHWC),), side_pixels / 2, device=images_BHWC.device), generator
    )
    mean_B11C = images_BHWC.float().mean(dim=(1, 2), keepdim=True).to(torch.uint8)
    return torch.where(mask_BHW[..., None], mean_B11C, images_BHWC)


def erase_rectangles(
    images_BHWC: Tensor,
    probability: float,
    generator: torch.Generator,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 3.3),
) -> Tensor:
    """Fill a rectangle of some images with noise.

    Random erasing (Zhong et al. 2017, arXiv:1708.04896) with the rectangles of torchvision's RandomErasing(probability,
    area, aspect), drawn for each image on its own: a try draws area and aspect, the first of ten that is lower and
    narrower than the image counts, and if none is, nothing is erased. As in the paper every value of every erased
    pixel is uniform from 0 to 255; torchvision's `random` is normal instead, because it fills normalised images.

    Args:
        images_BHWC: uint8.
        probability: Probability of an image to lose a rectangle; 0 returns the images as they are.
        generator: Source of randomness, on the images' device.
        area: Smallest and largest share of the image's area.
        aspect: Smallest and largest height/width; its logarithm is uniform.

    Returns:
        uint8 [B, H, W, C].
    """
    if not probability:
        return images_BHWC
    batch, height, width, _ = images_BHWC.shape
    device = images_BHWC.device
    chances_2TB = torch.rand((2, ERASING_TRIES, batch), generator=generator, device=device)
    places_3B = torch.rand((3, batch), generator=generator, device=device)
    areas_TB = (area[0] + (area[1] - area[0]) * chances_2TB[0]) * (height * width)
    low, high = (math.log(bound) for bound in aspect)
    aspects_TB = torch.exp(low + (high - low) * chances_2TB[1])
    heights_TB = torch.sqrt(areas_TB * aspects_TB).round()
    widths_TB = torch.sqrt(areas_TB / aspects_TB).round()
    fits_TB = (heights_TB < height) & (widths_TB < width)
    first_1B = fits_TB.int().argmax(dim=0, keepdim=True)
    is_erased_B = fits_TB.any(dim=0) & (places_3B[0] < probability)
    heights_B = torch.where(is_erased_B, heights_TB.gather(0, first_1B)[0], 0)
    widths_B = widths_TB.gather(0, first_1B)[0]
    rows_BH = _mark_spans((places_3B[1] * (height - heights_B + 1)).floor(), heights_B, height)
    columns_BW = _mark_spans((places_3B[2] * (width - widths_B + 1)).floor(), widths_B, width)
    noise_BHWC = torch.randint(0, 256, images_BHWC.shape, generator=generator, device=device, dtype=torch.uint8)
    return torch.where((rows_BH[:, :, None] & columns_BW[:, None, :])[..., None], noise_BHWC, images_BHWC)


def mix_images(
    images_BHWC: Tensor, labels_B: Tensor, cutmix_alpha: float, mixup_alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix each image with another one of the batch, by CutMix or by MixUp.

    Where both have an alpha above 0, each image draws one of them with probability 1/2; where neither has, the
    images stay as they are.

    Args:
        images_BHWC: uint8.
        labels_B: int64.
        cutmix_alpha: See `mix_rectangles`; 0 leaves CutMix out.
        mixup_alpha: See `blend_images`; 0 leaves MixUp out.
        generator: Source of randomness, on the images' device.

    Returns:
        Mixed images; the labels of the images mixed in; the share of each image that is its own, in [0, 1].
    """
    if not mixup_alpha:
        return mix_rectangles(images_BHWC, labels_B, cutmix_alpha, generator)
    if not cutmix_alpha:
        return blend_images(images_BHWC, labels_B, mixup_alpha, generator)
    cut_BHWC, pasted_labels_B, cut_share_B = mix_rectangles(images_BHWC, labels_B, cutmix_alpha, generator)
    blended_BHWC, blended_labels_B, blended_share_B = blend_images(images_BHWC, labels_B, mixup_alpha, generator)
    is_cut_B = torch.rand(len(labels_B), generator=generator, device=images_BHWC.device) < 0.5
    return (
        torch.where(is_cut_B[:, None, None, None], cut_BHWC, blended_BHWC),
        torch.where(is_cut_B, pasted_labels_B, blended_labels_B),
        torch.where(is_cut_B, cut_share_B, blended_share_B),
    )


def mix_rectangles(
    images_BHWC: Tensor, labels_B: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Replace a square of each image by the same square of another image of the batch.

    CutMix (Yun et al. 2019, arXiv:1905.04899) with its own mixing share for each image.

    Args:
        images_BHWC: uint8.
        labels_B: int64.
        alpha: Parameter of the Beta(alpha, alpha) distribution of the share that stays; 0 mixes nothing.
        generator: Source of randomness, on the images' device.

    Returns:
        Mixed images; the labels of the images pasted in; the share of each image that is its own, in [0, 1].
    """
    batch, height, width, _ = images_BHWC.shape
    device = images_BHWC.device
    if not alpha:
        return images_BHWC, labels_B, torch.ones(batch, device=device)
    kept_B = _draw_shares(batch, alpha, generator)
    half_B = (1 - kept_B).sqrt() * min(height, width) / 2
    mask_BHW = _draw_boxes(images_BHWC, half_B, generator)
    partner_B = torch.randperm(batch, generator=generator, device=device)
    mixed = torch.where(mask_BHW[..., None], images_BHWC[partner_B], images_BHWC)
    own_share_B = 1 - mask_BHW.float().mean(dim=(1, 2))
    return mixed, labels_B[partner_B], own_share_B


def blend_images(
    images_BHWC: Tensor, labels_B: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Average each image with another image of the batch, pixel by pixel.

    MixUp (Zhang et al. 2018, arXiv:1710.09412) with its own mixing share for each image. Pixels are rounded to the
    nearest of the 256 values, which moves none by more than half a value.

    Args:
        images_BHWC: uint8.
        labels_B: int64.
        alpha: Parameter of the Beta(alpha, alpha) distribution of an image's own share; 0 mixes nothing.
        generator: Source of randomness, on the images' device.

    Returns:
        Mixed images; the labels of the images mixed in; the share of each image that is its own, in [0, 1].
    """
    batch = len(images_BHWC)
    if not alpha:
        return images_BHWC, labels_B, torch.ones(batch, device=images_BHWC.device)
    own_share_B = _draw_shares(batch, alpha, generator)
    partner_B = torch.randperm(batch, generator=generator, device=images_BHWC.device)
    partners_BHWC = images_BHWC[partner_B].float()
    mixed = torch.lerp(partners_BHWC, images_BHWC.float(), own_share_B[:, None, None, None])
    return mixed.round_().to(torch.uint8), labels_B[partner_B], own_share_B


def _draw_shares(count: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Return float32 [count] of the distribution Beta(alpha, alpha)."""
    # Beta from two gammas, which take the generator: Beta itself does not.
    gamma_2B = torch._standard_gamma(torch.full((2, count), alpha, device=generator.device), generator=generator)
    return gamma_2B[0] / gamma_2B.sum(0).clamp_min(torch.finfo(torch.float32).tiny)


def _mark_spans(starts_B: Tensor, lengths_B: Tensor, size: int) -> Tensor:
    """Return bool [B, S]: the places from each start on, as many as its length."""
    places_S = torch.arange(size, device=starts_B.device)
    return (places_S >= starts_B[:, None]) & (places_S < (starts_B + lengths_B)[:, None])


def _draw_boxes(images_BHWC: Tensor, half_side_B: Tensor, generator: torch.Generator) -> Tensor:
    """Return a bool mask [B, H, W] of one square for each image, its centre anywhere."""
    batch, height, width, _ = images_BHWC.shape
    device = images_BHWC.device
    half_B1 = half_side_B[:, None]
    centre_B1 = torch.rand((2, batch, 1), generator=generator, device=device)
    rows_BH = (torch.arange(height, device=device) + 0.5 - centre_B1[0] * height).abs() < half_B1
    columns_BW = (torch.arange(width, device=device) + 0.5 - centre_B1[1] * width).abs() < half_B1
    return rows_BH[:, :, None] & columns_BW[:, None, :]
