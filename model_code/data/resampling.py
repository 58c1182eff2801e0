"""Crops at random places brought to one size, and Gaussian blur, as matrix products over whole batches.

A crop, its antialiased bilinear resize and a flip are together one linear map per axis; so is a blur. Each image
gets its own matrices.

Shape suffixes: N = images, C = colour channels, H = height, W = width, O = pixels of an output axis, I = pixels of
an input axis, T = tries.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model_code.data.view_settings import ViewSettings

CROP_TRIES = 10
# On a CPU so many pixels at once keep the intermediate results in its cache.
CPU_CHUNK_PIXELS = 2**17
CROP_ASPECT = (3 / 4, 4 / 3)
# exp(-1 / (2 * sigma^2)) is then 0: no blur at all.
SIGMA_WITHOUT_BLUR = 0.01


@dataclass(frozen=True)
class Crops:
    """Rectangles in N images, in whole pixels.

    Attributes:
        tops_N: First row.
        lefts_N: First column.
        heights_N: Rows, at least 1.
        widths_N: Columns, at least 1.
        is_mirrored_N: True if the crop is mirrored left to right.
    """

    tops_N: Tensor
    lefts_N: Tensor
    heights_N: Tensor
    widths_N: Tensor
    is_mirrored_N: Tensor

    def take(self, chosen: Tensor | slice) -> "Crops":
        """Return the crops of some of the images, by index or range."""
        return Crops(*(values_N[chosen] for values_N in vars(self).values()))


def draw_crops(
    count: int,
    height: int,
    width: int,
    generator: torch.Generator,
    *,
    crop_area: tuple[float, float],
    crop_aspect: tuple[float, float] = CROP_ASPECT,
    flip_probability: float = 0.0,
) -> Crops:
    """Draw as torchvision's RandomResizedCrop and RandomHorizontalFlip do, for each image on its own.

    A try draws area and aspect; the first of ten that fits into the image counts, and if none fits it is the
    largest central crop whose aspect is allowed.

    Args:
        count: Images N.
        height: Height of each image, pixels.
        width: Width of each image, pixels.
        generator: Source of randomness; the crops are on its device.
        crop_area: Smallest and largest share of the image's area.
        crop_aspect: Smallest and largest width/height; its logarithm is uniform.
        flip_probability: Probability of mirroring left to right.
    """
    device = generator.device
    chances_2TN = torch.rand((2, CROP_TRIES, count), generator=generator, device=device)
    places_3N = torch.rand((3, count), generator=generator, device=device)
    smallest, largest = crop_area
    areas_TN = (smallest + (largest - smallest) * chances_2TN[0]) * (height * width)
    low, high = (math.log(aspect) for aspect in crop_aspect)
    aspects_TN = torch.exp(low + (high - low) * chances_2TN[1])
    heights_TN = torch.sqrt(areas_TN / aspects_TN).round().long()
    widths_TN = torch.sqrt(areas_TN * aspects_TN).round().long()
    fits_TN = (heights_TN >= 1) & (heights_TN <= height) & (widths_TN >= 1) & (widths_TN <= width)
    first_1N = fits_TN.int().argmax(dim=0, keepdim=True)
    has_fit_N = fits_TN.any(dim=0)
    central_height, central_width = _central_crop(height, width, crop_aspect)
    heights_N = torch.where(has_fit_N, heights_TN.gather(0, first_1N)[0], central_height)
    widths_N = torch.where(has_fit_N, widths_TN.gather(0, first_1N)[0], central_width)
    tops_N = (places_3N[0] * (height - heights_N + 1)).long()
    lefts_N = (places_3N[1] * (width - widths_N + 1)).long()
    return Crops(
        tops_N=torch.where(has_fit_N, tops_N, (height - central_height) // 2),
        lefts_N=torch.where(has_fit_N, lefts_N, (width - central_width) // 2),
        heights_N=heights_N,
        widths_N=widths_N,
        is_mirrored_N=places_3N[2] < flip_probability,
    )


def resize_crops(images_NCHW: Tensor, crops: Crops, image_size: int) -> Tensor:
    """Cut a rectangle out of each image and bring it to one size, mirrored where the crop says so.

    Bilinear with antialiasing, the arithmetic of torchvision's resize(antialias=True) on float images.

    Args:
        images_NCHW: Float images.
        crops: Crops of N images, on the same device.
        image_size: Height and width of the result, pixels.

    Returns:
        [N, C, image_size, image_size], new storage.
    """
    count, channels, height, width = images_NCHW.shape
    rows_NOI = _resize_matrices(crops.tops_N, crops.heights_N, height, image_size)
    columns_NOI = _resize_matrices(crops.lefts_N, crops.widths_N, width, image_size, crops.is_mirrored_N)
    narrow = torch.bmm(images_NCHW.reshape(count, channels * height, width), columns_NOI.transpose(1, 2))
    return torch.matmul(rows_NOI[:, None], narrow.view(count, channels, height, image_size))


def draw_sigmas(count: int, settings: ViewSettings, generator: torch.Generator) -> Tensor:
    """Draw the blur's standard deviation for each image, pixels; `SIGMA_WITHOUT_BLUR` where it has none."""
    chances_2N = torch.rand((2, count), generator=generator, device=generator.device)
    smallest, largest = settings.blur_sigma_pixels
    sigmas_N = smallest + (largest - smallest) * chances_2N[1]
    return torch.where(chances_2N[0] < settings.blur_probability, sigmas_N, SIGMA_WITHOUT_BLUR)


def is_blurred(sigmas_N: Tensor) -> Tensor:
    """Return for each of `draw_sigmas` whether it blurs."""
    return sigmas_N > SIGMA_WITHOUT_BLUR


def blur(images_NCHW: Tensor, sigmas_N: Tensor) -> Tensor:
    """Blur each image with a Gaussian of its own, borders mirrored; as torchvision's gaussian_blur.

    Args:
        images_NCHW: Float images, square.
        sigmas_N: Standard deviations, pixels.

    Returns:
        [N, C, H, W], new storage. The kernel has H // 20 * 2 + 1 pixels.
    """
    size = images_NCHW.shape[-1]
    matrices_NOI = _blur_matrices(sigmas_N, size, radius=size // 20)[:, None]
    return matrices_NOI @ images_NCHW @ matrices_NOI.transpose(2, 3)


def to_float(images_NHWC: Tensor) -> Tensor:
    """Return new float32 [N, C, H, W] in [0, 1] of uint8 images, or of float images in [0, 1]."""
    images_NCHW = images_NHWC.permute(0, 3, 1, 2).contiguous()
    return images_NCHW.float().div_(255) if images_NHWC.dtype == torch.uint8 else images_NCHW.float()


def from_float(images_NCHW: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [N, H, W, C] of a dtype; uint8 is rounded to the nearest."""
    # Weights that sum to 1 up to rounding can lead just outside of [0, 1].
    images_NCHW = images_NCHW.clamp(0, 1)
    if dtype == torch.uint8:
        images_NCHW.mul_(255).add_(0.5)
    return images_NCHW.permute(0, 2, 3, 1).contiguous().to(dtype)


def _central_crop(height: int, width: int, aspects: tuple[float, float]) -> tuple[int, int]:
    """Return (height, width) of the largest crop with an allowed aspect."""
    if width / height < aspects[0]:
        return round(width / aspects[0]), width
    if width / height > aspects[1]:
        return height, round(height * aspects[1])
    return height, width


def _resize_matrices(
    starts_N: Tensor, lengths_N: Tensor, input_size: int, output_size: int, is_mirrored_N: Tensor | None = None
) -> Tensor:
    """Return [N, O, I]: each output pixel as a weighted mean of the input pixels of its crop; rows sum to 1."""
    scales_N = lengths_N / output_size
    outputs_O = torch.arange(output_size, device=starts_N.device) + 0.5
    centres_NO = scales_N[:, None] * outputs_O
    if is_mirrored_N is not None:
        centres_NO = torch.where(is_mirrored_N[:, None], lengths_N[:, None] - centres_NO, centres_NO)
    pixels_NI = torch.arange(input_size, device=starts_N.device) - starts_N[:, None]
    is_outside_NI = (pixels_NI < 0) | (pixels_NI >= lengths_N[:, None])
    # A pixel outside the crop is put too far away to have any weight.
    positions_NI = (pixels_NI + 0.5).masked_fill_(is_outside_NI, -1e6)
    distances_NOI = (positions_NI[:, None, :] - centres_NO[:, :, None]).abs_()
    reaches_N11 = scales_N.clamp(min=1)[:, None, None]
    weights_NOI = distances_NOI.div_(-reaches_N11).add_(1).clamp_(min=0)
    return weights_NOI.div_(weights_NOI.sum(dim=2, keepdim=True))


def _blur_matrices(sigmas_N: Tensor, size: int, radius: int) -> Tensor:
    """Return [N, O, I]: a Gaussian cut at `radius` pixels around each output pixel; rows sum to 1."""
    distances = torch.arange(2 * size - 1, device=sigmas_N.device)
    kernels_ND = torch.exp(-0.5 * (distances / sigmas_N[:, None]).square()) * (distances <= radius)
    kernels_ND = kernels_ND / (kernels_ND.sum(dim=1, keepdim=True) * 2 - kernels_ND[:, :1])
    places = torch.arange(size, device=sigmas_N.device)
    output_O1, input_1I = places[:, None], places[None, :]
    direct = (output_O1 - input_1I).abs()
    # Mirrored at the border pixel: -i stands for i, and 2 * (size - 1) - i for i.
    before = torch.where(input_1I > 0, output_O1 + input_1I, 2 * size - 2)
    after = torch.where(input_1I < size - 1, 2 * (size - 1) - output_O1 - input_1I, 2 * size - 2)
    return kernels_ND[:, direct] + kernels_ND[:, before] + kernels_ND[:, after]
