"""Features without training: responses to the commonest small patches of the images themselves.

Source: Coates, Ng & Lee 2011, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning", AISTATS; k-means
on whitened patches, triangle activation, sums over quadrants.

Shape suffixes: N = images, B = images of one batch, H = height, W = width, C = colour channels, P = patches,
E = pixels of a patch, K = centroids, D = features.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model_code.data.shards import ImageArray

SIDE = 32
_PATCH, _SAMPLED_PATCHES, _ROUNDS, _BATCH = 6, 40_000, 10, 64
# Keep flat patches flat, and whitening from enlarging noise; for pixels in [0, 255] and the paper's.
_CONTRAST_FLOOR, _WHITENING_FLOOR = 10.0, 0.1


def shrink(images_NHWC: ImageArray, side: int = SIDE) -> Tensor:
    """Return images as float32 [N, C, side, side] in [0, 255], each pixel the mean of those that it covers."""
    parts = (images_NHWC[start : start + 1024] for start in range(0, len(images_NHWC), 1024))
    batches = (torch.from_numpy(np.array(part)).permute(0, 3, 1, 2).float() for part in parts)
    return torch.cat([F.interpolate(batch, (side, side), mode="area") for batch in batches])


@torch.no_grad()
def compute_patch_features(images_NCHW: Tensor, centroid_count: int = 200, seed: int = 0) -> Tensor:
    """Return float32 [N, 4 * centroid_count], each dimension with mean 0 and variance 1.

    Args:
        images_NCHW: Images from `shrink`.
        centroid_count: Number of patches that are learned.
        seed: Seed of the choice of patches.
    """
    generator = torch.Generator().manual_seed(seed)
    patches_PE = _sample_patches(images_NCHW, generator)
    mean_E = patches_PE.mean(0)
    covariance_EE = torch.cov(patches_PE.T)
    values_E, vectors_EE = torch.linalg.eigh(covariance_EE)
    whitening_EE = vectors_EE @ torch.diag((values_E + _WHITENING_FLOOR).rsqrt()) @ vectors_EE.T
    centroids_KE = _cluster((patches_PE - mean_E) @ whitening_EE, centroid_count, generator)
    features_ND = torch.cat([_encode(batch, mean_E, whitening_EE, centroids_KE) for batch in images_NCHW.split(_BATCH)])
    std_D, mean_D = torch.std_mean(features_ND, dim=0)
    return (features_ND - mean_D) / std_D.clamp(min=1e-6)


def _cut(images_BCHW: Tensor) -> Tensor:
    """Return all patches [B, P, E] with mean 0 and one contrast."""
    patches_BPE = F.unfold(images_BCHW, _PATCH).transpose(1, 2)
    centred_BPE = patches_BPE - patches_BPE.mean(2, keepdim=True)
    return centred_BPE / (centred_BPE.var(2, keepdim=True) + _CONTRAST_FLOOR).sqrt()


def _sample_patches(images_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    per_image = max(1, _SAMPLED_PATCHES // len(images_NCHW))
    chosen = torch.randperm(len(images_NCHW), generator=generator)[: _SAMPLED_PATCHES // per_image]
    found = []
    for batch in images_NCHW[chosen].split(_BATCH):
        patches_BPE = _cut(batch)
        picks = torch.randint(patches_BPE.shape[1], (len(batch), per_image), generator=generator)
        found.append(patches_BPE[torch.arange(len(batch))[:, None], picks].flatten(0, 1))
    return torch.cat(found)


def _cluster(patches_PE: Tensor, count: int, generator: torch.Generator) -> Tensor:
    centroids_KE = patches_PE[torch.randperm(len(patches_PE), generator=generator)[:count]].clone()
    for _ in range(_ROUNDS):
        nearest_P = _measure(patches_PE, centroids_KE).argmin(1)
        sums_KE = torch.zeros_like(centroids_KE).index_add_(0, nearest_P, patches_PE)
        sizes_K = torch.bincount(nearest_P, minlength=len(centroids_KE)).float()
        centroids_KE = torch.where(sizes_K[:, None] > 0, sums_KE / sizes_K[:, None].clamp(min=1), centroids_KE)
    return centroids_KE


def _encode(images_BCHW: Tensor, mean_E: Tensor, whitening_EE: Tensor, centroids_KE: Tensor) -> Tensor:
    patches_BPE = (_cut(images_BCHW) - mean_E) @ whitening_EE
    count, places, width = patches_BPE.shape
    distances_BPK = _measure(patches_BPE.reshape(-1, width), centroids_KE).clamp(min=0).sqrt().view(count, places, -1)
    active_BPK = (distances_BPK.mean(2, keepdim=True) - distances_BPK).clamp(min=0)
    side = int(places**0.5)
    return F.adaptive_avg_pool2d(active_BPK.transpose(1, 2).reshape(count, -1, side, side), 2).flatten(1)


def _measure(patches_PE: Tensor, centroids_KE: Tensor) -> Tensor:
    """Return squared distances [P, K]."""
    return (patches_PE**2).sum(1, keepdim=True) - 2 * patches_PE @ centroids_KE.T + (centroids_KE**2).sum(1)
