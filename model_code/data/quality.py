"""Images that show little: blank, dark, bright or blurred.

Shape suffixes: N = images, C = colour channels, H = height, W = width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Flaw = Literal["dark", "bright", "blank", "blurred"]
# Of 255: a standard deviation below which nothing is seen, and brightness that 95 % of the pixels stay under or over.
BLANK_STD, DARK_LEVEL, BRIGHT_LEVEL = 4.0, 40.0, 225.0
# Variance of the Laplacian over the variance of the image: the share of its contrast that is fine detail.
BLURRED_SHARE = 0.025
_LUMA_C = (0.299, 0.587, 0.114)
_LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


@dataclass(frozen=True)
class FlawedImage:
    """An image that shows little.

    Attributes:
        index: Its place among the images.
        flaw: Kind.
        score: Severity in [0, 1], 1 for the worst.
    """

    index: int
    flaw: Flaw
    score: float


@torch.no_grad()
def find_flaws(images_NCHW: Tensor) -> list[FlawedImage]:
    """Return the images with a flaw, each once with its first: dark, bright, blank, blurred; the worst first.

    Args:
        images_NCHW: float32 images of one size in [0, 255]; blur is judged at that size.
    """
    luma_N1HW = (images_NCHW * torch.tensor(_LUMA_C)[:, None, None]).sum(1, keepdim=True)
    values_NP = luma_N1HW.flatten(1)
    low_N, high_N = (values_NP.quantile(share, dim=1) for share in (0.05, 0.95))
    variance_N = values_NP.var(1)
    laplacian_N = F.conv2d(luma_N1HW, torch.tensor(_LAPLACIAN)[None, None]).flatten(1).var(1)
    scores: dict[Flaw, Tensor] = {
        "dark": 1 - high_N / DARK_LEVEL,
        "bright": (low_N - BRIGHT_LEVEL) / (255 - BRIGHT_LEVEL),
        "blank": 1 - variance_N.sqrt() / BLANK_STD,
        "blurred": 1 - laplacian_N / variance_N.clamp(min=1e-6) / BLURRED_SHARE,
    }
    found: dict[int, FlawedImage] = {}
    for flaw, score_N in scores.items():
        for index in torch.nonzero(score_N > 0).flatten().tolist():
            found.setdefault(index, FlawedImage(index, flaw, float(score_N[index])))
    return sorted(found.values(), key=lambda one: (one.flaw, -one.score, one.index))
