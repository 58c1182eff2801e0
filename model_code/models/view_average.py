"""Test-time augmentation: predictions for mirrored and shifted views of an image, averaged.

Shape suffixes: V = views, B = images, H = height, W = width, C = the three colour channels, K = classes.
"""

import torch
from torch import Tensor, nn


class ViewAverage(nn.Module):
    """A trained model that averages its predictions for several views of each image.

    All views are one batch for the model, so that an exported graph holds the model's operations once. The image as it
    is, with its mirror image, weighs as much as all shifted views together.

    Args:
        model: uint8 images [B, H, W, C] in, logits [B, K] out.
        has_mirror: True if each view is also looked at mirrored left to right.
        shift_pixels: Two more views are shifted so far up and left, down and right; what comes in is the image's own
            edge, mirrored. 0 leaves them out.

    Source: Jordan 2024, arXiv:2404.00498, Sec. 3.6 (which averages logits instead of probabilities).
    """

    def __init__(self, model: nn.Module, has_mirror: bool = True, shift_pixels: int = 0) -> None:
        super().__init__()
        self.model, self._has_mirror, self._shift_pixels = model, has_mirror, shift_pixels
        weights_V = torch.tensor([1 / 2, 1 / 4, 1 / 4] if shift_pixels else [1.0])
        if has_mirror:
            weights_V = weights_V.repeat(2) / 2
        self.register_buffer("_log_weights_V11", weights_V.log().view(-1, 1, 1), persistent=False)

    _log_weights_V11: Tensor

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Return the logarithm of the mean of the probabilities, float32 [B, K]; its softmax is that mean."""
        views = [images_BHWC]
        if self._shift_pixels:
            views += [shift(images_BHWC, by) for by in (-self._shift_pixels, self._shift_pixels)]
        if self._has_mirror:
            views += [view_BHWC.flip(2) for view_BHWC in views]
        answers = self.model(torch.cat(views)).float().log_softmax(dim=1)
        answers_VBK = answers.unflatten(0, (len(views), -1)) + self._log_weights_V11
        mean_BK: Tensor = answers_VBK.logsumexp(dim=0)
        return mean_BK


def shift(images_BHWC: Tensor, pixels: int) -> Tensor:
    """Move images down and right, with a negative number up and left; the edge is mirrored into the gap.

    Args:
        images_BHWC: Any dtype.
        pixels: Less than height and width.
    """
    for dim in (1, 2):
        size, gap = images_BHWC.shape[dim], abs(pixels)
        kept = images_BHWC.narrow(dim, max(0, -pixels), size - gap)
        edge = images_BHWC.narrow(dim, 1 if pixels > 0 else size - 1 - gap, gap).flip(dim)
        images_BHWC = torch.cat([edge, kept] if pixels > 0 else [kept, edge], dim)
    return images_BHWC
