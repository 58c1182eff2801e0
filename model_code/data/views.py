"""Two random views of every image of a batch, for SimSiam, and the one plain view for evaluation.

Shape suffixes: B = images, N = views, H = height, W = width, C = the three colour channels, red first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model_code.data.color_jitter import draw_color_factors, grayscale, jitter_colors
from model_code.data.resampling import (
    CPU_CHUNK_PIXELS,
    blur,
    draw_crops,
    draw_sigmas,
    from_float,
    is_blurred,
    resize_crops,
    to_float,
)
from model_code.data.view_settings import ViewSettings


@torch.no_grad()
def two_views(images_BHWC: Tensor, generator: torch.Generator, settings: ViewSettings) -> tuple[Tensor, Tensor]:
    """Draw two views of each image: crop, flip, colours, grey, blur; every view has parameters of its own.

    The distribution is that of torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter inside RandomApply,
    RandomGrayscale and GaussianBlur inside RandomApply, in this order, on float images.

    Args:
        images_BHWC: uint8 images, or float images in [0, 1]; they stay as they are.
        generator: Source of randomness, on the images' device.
        settings: Sizes, strengths and probabilities.

    Returns:
        Two tensors [B, image_size, image_size, C] of the images' dtype; not normalised. An equal state of the
        generator gives equal views on the same device.
    """
    count, height, width, _ = images_BHWC.shape
    crops = draw_crops(
        2 * count,
        height,
        width,
        generator,
        crop_area=settings.crop_area,
        crop_aspect=settings.crop_aspect,
        flip_probability=settings.flip_probability,
    )
    colors = draw_color_factors(2 * count, settings, generator)
    is_gray_N = torch.rand(2 * count, generator=generator, device=generator.device) < settings.grayscale_probability
    sigmas_N = draw_sigmas(2 * count, settings, generator) if settings.has_blur else None
    size = settings.image_size

    def draw(chosen: Tensor) -> Tensor:
        views = resize_crops(to_float(images_BHWC.index_select(0, chosen % count)), crops.take(chosen), size)
        views = jitter_colors(views, colors.take(chosen))
        views.lerp_(grayscale(views), is_gray_N[chosen, None, None, None].float())
        # Looking at sigmas is free on a CPU; elsewhere it would wait for the device.
        if sigmas_N is not None and not (views.device.type == "cpu" and not is_blurred(sigmas_N[chosen]).any()):
            views = blur(views, sigmas_N[chosen])
        return from_float(views, images_BHWC.dtype)

    if images_BHWC.device.type != "cpu":
        # All at once, and in order: an assignment by index would sort the indices to be deterministic.
        views_NHWC = draw(torch.arange(2 * count, device=images_BHWC.device))
        return views_NHWC[:count], views_NHWC[count:]
    views_NHWC = images_BHWC.new_empty((2 * count, size, size, 3))
    # A cacheful at once.
    for chosen in colors.order_by_schedule().split(max(1, CPU_CHUNK_PIXELS // size**2)):
        views_NHWC[chosen] = draw(chosen)
    return views_NHWC[:count], views_NHWC[count:]


@torch.no_grad()
def plain_view(images_BHWC: Tensor, image_size: int, enlargement: float = 1.0) -> Tensor:
    """Return the middle of each image at one size, for evaluation.

    Args:
        images_BHWC: uint8 images, or float images in [0, 1].
        image_size: Height and width of the result, pixels.
        enlargement: The shorter side becomes image_size * enlargement pixels (bicubic, antialiased) before the middle
            is cut out; SimSiam's published evaluation has 8/7, and 1 leaves images of the right size as they are.

    Returns:
        [B, image_size, image_size, C] of the images' dtype.
    """
    _, height, width, _ = images_BHWC.shape
    old_side, new_side = min(height, width), int(image_size * enlargement)
    is_resized = new_side != old_side
    views_BCHW = images_BHWC.permute(0, 3, 1, 2)
    if is_resized:
        size = (height * new_side // old_side, width * new_side // old_side)
        views_BCHW = F.interpolate(to_float(images_BHWC), size, mode="bicubic", antialias=True).clamp_(0, 1)
    top, left = (round((side - image_size) / 2) for side in views_BCHW.shape[2:])
    views_BCHW = views_BCHW[:, :, top : top + image_size, left : left + image_size]
    if is_resized:
        return from_float(views_BCHW, images_BHWC.dtype)
    return views_BCHW.permute(0, 2, 3, 1).contiguous()
