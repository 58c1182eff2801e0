"""Augmentations that hide or mix parts of pictures, batched: every picture draws its own place.

Shape suffixes: B = pictures, H = height, W = width, C = the three colour channels.
"""

import torch
from torch import Tensor


def cut_out(images_BHWC: Tensor, side_pixels: int, generator: torch.Generator) -> Tensor:
    """Fill a square of each picture with that picture's mean colour.

    The square's centre is anywhere in the picture, so that near the border only a part of it is hidden, as in DeVries &
    Taylor 2017, arXiv:1708.04552.

    Args:
        images_BHWC: uint8.
        side_pixels: Of the square; 0 returns the pictures as they are.
        generator: Source of randomness, on the pictures' device.

    Returns:
        uint8 [B, H, W, C].
    """
    if not side_pixels:
        return images_BHWC
    mask_BHW = _draw_boxes(images_BHWC, torch.full((len(images_BHWC),), side_pixels / 2), generator)
    mean_B11C = images_BHWC.float().mean(dim=(1, 2), keepdim=True).to(torch.uint8)
    return torch.where(mask_BHW[..., None], mean_B11C, images_BHWC)


def mix_rectangles(
    images_BHWC: Tensor, labels_B: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Replace a square of each picture by the same square of another picture of the batch.

    CutMix (Yun et al. 2019, arXiv:1905.04899) with its own mixing share for each picture.

    Args:
        images_BHWC: uint8.
        labels_B: int64.
        alpha: Of the Beta(alpha, alpha) distribution of the share that stays; 0 mixes nothing.
        generator: Source of randomness, on the pictures' device.

    Returns:
        Mixed pictures; the labels of the pictures pasted in; the share of each picture that is its own, in [0, 1].
    """
    batch, height, width, _ = images_BHWC.shape
    device = images_BHWC.device
    if not alpha:
        return images_BHWC, labels_B, torch.ones(batch, device=device)
    # Beta from two gammas, which take the generator: Beta itself does not.
    shape_2B = torch.full((2, batch), alpha, device=device)
    gamma_2B = torch._standard_gamma(shape_2B, generator=generator)
    kept_B = gamma_2B[0] / gamma_2B.sum(0).clamp_min(torch.finfo(torch.float32).tiny)
    half_B = (1 - kept_B).sqrt() * min(height, width) / 2
    mask_BHW = _draw_boxes(images_BHWC, half_B, generator)
    partner_B = torch.randperm(batch, generator=generator, device=device)
    mixed = torch.where(mask_BHW[..., None], images_BHWC[partner_B], images_BHWC)
    own_share_B = 1 - mask_BHW.float().mean(dim=(1, 2))
    return mixed, labels_B[partner_B], own_share_B


def _draw_boxes(images_BHWC: Tensor, half_side_B: Tensor, generator: torch.Generator) -> Tensor:
    """Return a bool mask [B, H, W] of one square for each picture, its centre anywhere."""
    batch, height, width, _ = images_BHWC.shape
    device = images_BHWC.device
    half_B1 = half_side_B.to(device)[:, None]
    centre_B1 = torch.rand((2, batch, 1), generator=generator, device=device)
    rows_BH = (torch.arange(height, device=device) + 0.5 - centre_B1[0] * height).abs() < half_B1
    columns_BW = (torch.arange(width, device=device) + 0.5 - centre_B1[1] * width).abs() < half_B1
    return rows_BH[:, :, None] & columns_BW[:, None, :]
