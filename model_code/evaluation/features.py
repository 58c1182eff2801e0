"""Features of images from a network without its last layer, and the watch for their collapse.

Shape suffixes: N = images, B = images of one batch, H = height, W = width, C = colour channels, D = features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_code.data.disk_images import DiskImages
from model_code.evaluation.metrics import LARGEST_BATCH, compute_in_batches, find_device


@dataclass(frozen=True)
class LabelledFeatures:
    """What a network sees in some images, and what they are.

    Attributes:
        features_ND: Float, any scale.
        labels_N: int64, indices into `classes`, on the features' device.
        classes: Names in label order.
    """

    features_ND: Tensor
    labels_N: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.features_ND) != len(self.labels_N):
            raise ValueError(f"{len(self.features_ND)} features for {len(self.labels_N)} labels; both must be equal")

    def __len__(self) -> int:
        return len(self.labels_N)


@torch.no_grad()
def compute_features(
    model: nn.Module,
    images_NHWC: Tensor | DiskImages,
    prepare: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = LARGEST_BATCH,
) -> Tensor:
    """Return the model's output float32 [N, D] on its device; the model is left in evaluation mode.

    Args:
        model: Images [B, H, W, C] in, [B, D] out.
        images_NHWC: uint8 images; each batch is moved to the model's device.
        prepare: Brings each batch to the size that the model reads; None leaves it.
        batch_size: Images at once.
    """
    model.eval()
    device = find_device(model, images_NHWC)

    def compute(batch: Tensor) -> Tensor:
        batch = batch.to(device)
        features_BD: Tensor = model(prepare(batch) if prepare else batch)
        return features_BD

    return compute_in_batches(compute, images_NHWC, batch_size)


def feature_std(features_ND: Tensor) -> float:
    """Return how far L2-normalised features spread: the standard deviation of each dimension, and their mean.

    0 means collapse: every image has the same features. 1 / sqrt(D) is what features spread evenly over the sphere
    have. Source: Chen & He 2021, arXiv:2011.10566, Sec. 4.1, where it is watched on the projector's output.

    Args:
        features_ND: Float, any scale; N at least 2.

    Raises:
        ValueError: There are fewer than two images.
    """
    if len(features_ND) < 2:
        raise ValueError(f"the spread of {len(features_ND)} images is not defined; give at least 2")
    return float(F.normalize(features_ND.detach().float(), dim=1).std(dim=0).mean())
