"""Colour changes of batched float images, each image with factors and an order of its own.

Brightness, contrast and saturation are one operation: a blend of the image with black, with its mean grey, or with
its grey version. So a batch in which every image has its own order needs no loop over images: three blends before
the hue is turned and three after it, where a blend that an image does not need has factor 1.

Shape suffixes: N = images, C = the three colour channels, red first, H = height, W = width, S = blends, the first
three before the hue.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model_code.data.view_settings import ViewSettings

# ITU-R BT.601 luma, as torchvision rounds it.
LUMA = (0.2989, 0.587, 0.114)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
BLENDS = 3


@dataclass(frozen=True)
class ColorFactors:
    """What happens to the colours of N images.

    Attributes:
        blends_3N: Factors of brightness, contrast and saturation, 0 and above; 1 changes nothing.
        hue_N: Turn of the colour circle, in full turns, -0.5 to 0.5; 0 changes nothing.
        places_4N: int64; the place, 0 to 3, at which brightness, contrast, saturation and hue are applied.
    """

    blends_3N: Tensor
    hue_N: Tensor
    places_4N: Tensor

    def take(self, chosen: Tensor) -> "ColorFactors":
        """Return the factors of some of the images, by index."""
        return ColorFactors(self.blends_3N[:, chosen], self.hue_N[chosen], self.places_4N[:, chosen])

    def order_by_schedule(self) -> Tensor:
        """Return indices of all images, those side by side that turn the hue at the same place, or not at all."""
        return torch.where(self.hue_N == 0, HUE + 1, self.places_4N[HUE]).argsort(stable=True)


def draw_color_factors(count: int, settings: ViewSettings, generator: torch.Generator) -> ColorFactors:
    """Draw as torchvision's ColorJitter does inside RandomApply(jitter_probability), for each image on its own.

    Args:
        count: Images N.
        settings: Strengths and probability.
        generator: Source of randomness; the factors are on its device.
    """
    device = generator.device
    chances_9N = torch.rand((9, count), generator=generator, device=device)
    is_jittered_N = chances_9N[0] < settings.jitter_probability
    changes_3N = 2 * chances_9N[1:4] - 1
    # Number by number: a tensor of them would be copied to the device in every step.
    for changes_N, strength in zip(
        changes_3N, (settings.brightness, settings.contrast, settings.saturation), strict=True
    ):
        changes_N.mul_(strength)
    hue_N = (2 * chances_9N[4] - 1) * settings.hue
    return ColorFactors(
        blends_3N=1 + changes_3N * is_jittered_N,
        hue_N=hue_N * is_jittered_N,
        places_4N=chances_9N[5:9].argsort(dim=0),
    )


def jitter_colors(images_NCHW: Tensor, factors: ColorFactors) -> Tensor:
    """Change brightness, contrast, saturation and hue, each image by its own factors in its own order.

    For each image the result is that of torchvision's adjust_brightness, adjust_contrast, adjust_saturation and
    adjust_hue on float images, one after the other.

    Args:
        images_NCHW: Float images in [0, 1]; they are overwritten.
        factors: Factors of N images, on the same device.

    Returns:
        `images_NCHW`, changed in place.
    """
    weights_SN, is_contrast_SN, is_saturation_SN = _schedule_blends(factors)
    # Looking at the factors is free on a CPU; elsewhere it would wait for the device.
    can_look = images_NCHW.device.type == "cpu"
    for slot in range(2 * BLENDS):
        if slot == BLENDS and not (can_look and not factors.hue_N.any()):
            turn_hue(images_NCHW, factors.hue_N)
        if not (can_look and not weights_SN[slot].any()):
            _blend(images_NCHW, weights_SN[slot], is_contrast_SN[slot], is_saturation_SN[slot])
    return images_NCHW


def grayscale(images_NCHW: Tensor) -> Tensor:
    """Return luma [N, 1, H, W] of float images."""
    red, green, blue = images_NCHW.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).unsqueeze(1)


def turn_hue(images_NCHW: Tensor, hue_N: Tensor) -> Tensor:
    """Turn the colour circle, keeping saturation and value (HSV); float images in [0, 1] are changed in place."""
    red, green, blue = images_NCHW.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    # Hue in sixths of the circle: 0 red, 2 green, 4 blue. A grey pixel has none, and needs none. On a CPU, float masks
    # choose several times as fast as torch.where, and as exactly.
    is_green, is_red = high.clone().eq_(green), high.clone().eq_(red)
    sixths = (red - green).lerp_(blue - red, is_green).lerp_(green - blue, is_red)
    sixths.div_(chroma.clamp(min=torch.finfo(chroma.dtype).tiny))
    sixths.add_((4 - 2 * is_green).mul_(1 - is_red)).add_(6 * hue_N[:, None, None])
    sixths.sub_(sixths.div(6).floor_().mul_(6))
    torch.addcmul(low, chroma, (sixths - 3).abs_().sub_(1).clamp_(0, 1), out=red)
    torch.addcmul(high, chroma, (sixths - 2).abs_().sub_(1).clamp_(0, 1), value=-1, out=green)
    torch.addcmul(high, chroma, (sixths - 4).abs_().sub_(1).clamp_(0, 1), value=-1, out=blue)
    return images_NCHW


def _schedule_blends(factors: ColorFactors) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each slot and image how much of the other image is blended in, and whether that one is grey."""
    places_3N, hue_place_N = factors.places_4N[:HUE], factors.places_4N[HUE]
    is_after_hue_3N = places_3N > hue_place_N
    # Blend number 0 to 2 among the blends alone; those after the hue move three slots on.
    slots_3N = places_3N - is_after_hue_3N.long() + BLENDS * is_after_hue_3N
    is_used_S3N = slots_3N == torch.arange(2 * BLENDS, device=slots_3N.device)[:, None, None]
    weights_SN = ((1 - factors.blends_3N) * is_used_S3N).sum(1)
    return weights_SN, is_used_S3N[:, CONTRAST], is_used_S3N[:, SATURATION]


def _blend(images_NCHW: Tensor, weights_N: Tensor, is_contrast_N: Tensor, is_saturation_N: Tensor) -> None:
    """Move images towards black, their mean grey or their grey version, in place; a negative weight moves away."""
    gray_N1HW = grayscale(images_NCHW)
    mean_N111 = gray_N1HW.mean(dim=(2, 3), keepdim=True) * is_contrast_N[:, None, None, None]
    target_N1HW = gray_N1HW.mul_(is_saturation_N[:, None, None, None]).add_(mean_N111)
    images_NCHW.lerp_(target_N1HW, weights_N[:, None, None, None]).clamp_(0, 1)
