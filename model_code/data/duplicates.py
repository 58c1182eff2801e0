"""Near-duplicates: images with the same small, centred thumbnail, mirrored or not.

Shape suffixes: N = images, C = colour channels, H = height, W = width, D = values of a thumbnail, B = images of
one block, P = pairs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Cosine of two centred thumbnails: coarse to find candidates, fine to confirm them (docs/data-check.md has figures).
COARSE, FINE = 0.95, 0.9
_COARSE_SIDE, _BLOCK, _MOST_NEIGHBOURS = 8, 1024, 10
# Standard deviation of a thumbnail below which it shows too little to be compared, of 255.
_FLAT = 8.0


class DuplicatePair(NamedTuple):
    """Two images that are nearly the same.

    Attributes:
        first: Place of one.
        second: Place of the other, larger.
        similarity: Cosine of their centred thumbnails, at most 1.
    """

    first: int
    second: int
    similarity: float


@torch.no_grad()
def find_duplicates(images_NCHW: Tensor) -> list[DuplicatePair]:
    """Return pairs of near-duplicates, the most similar first; of each image the 10 nearest candidates are compared.

    Args:
        images_NCHW: float32 images of one small size in [0, 255] (`model_code.evaluation.patch_features.shrink`).
    """
    coarse_NCHW = F.interpolate(images_NCHW, (_COARSE_SIDE, _COARSE_SIDE), mode="area")
    is_flat_N = coarse_NCHW.flatten(1).std(1) < _FLAT
    bank_ND = _centre(coarse_NCHW)
    bank_ND[is_flat_N] = 0
    found: dict[tuple[int, int], float] = {}
    for is_mirrored in (False, True):
        queries_ND = _centre(coarse_NCHW.flip(3)) if is_mirrored else bank_ND
        for start in range(0, len(bank_ND), _BLOCK):
            similarity_BN = queries_ND[start : start + _BLOCK] @ bank_ND.T
            values_BK, nearest_BK = similarity_BN.topk(min(_MOST_NEIGHBOURS + 1, len(bank_ND)), dim=1)
            rows, columns = torch.nonzero(values_BK >= COARSE, as_tuple=True)
            one, other = rows + start, nearest_BK[rows, columns]
            kept = one != other  # of many copies each has only some of the others among its nearest
            firsts, seconds = torch.minimum(one, other)[kept], torch.maximum(one, other)[kept]
            _confirm(images_NCHW, firsts, seconds, is_mirrored, found)
    pairs = [DuplicatePair(*places, similarity) for places, similarity in found.items()]
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair))


def group(pairs: Sequence[DuplicatePair]) -> dict[int, int]:
    """Return for each image of a pair the first image that it is connected with, perhaps over others."""
    roots: dict[int, int] = {}

    def find(place: int) -> int:
        while roots.setdefault(place, place) != place:
            place = roots[place]
        return place

    for pair in pairs:
        first, second = sorted((find(pair.first), find(pair.second)))
        roots[second] = first
    return {place: find(place) for place in roots}


def _confirm(
    images_NCHW: Tensor, firsts: Tensor, seconds: Tensor, is_mirrored: bool, found: dict[tuple[int, int], float]
) -> None:
    """Enter the pairs that are still alike at full size."""
    one_PCHW, other_PCHW = images_NCHW[firsts], images_NCHW[seconds]
    fine_P = (_centre(one_PCHW.flip(3) if is_mirrored else one_PCHW) * _centre(other_PCHW)).sum(1)
    for first, second, value in zip(firsts.tolist(), seconds.tolist(), fine_P.tolist(), strict=True):
        if value >= FINE:
            found[first, second] = max(value, found.get((first, second), 0.0))


def _centre(images_NCHW: Tensor) -> Tensor:
    """Return thumbnails [N, D] without the mean of their channels, of length 1."""
    return F.normalize((images_NCHW - images_NCHW.mean((2, 3), keepdim=True)).flatten(1), dim=1)
