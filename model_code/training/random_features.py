"""Quality of an untrained network's features: nearest neighbours and probes on them, beside controls.

An untrained last layer on random features is at chance; a trained one on the same features need not be.

Shape suffixes: N = images, B = images of one batch, H = height, W = width, C = the three colour channels,
D = features.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model_code.errors import TrainingError
from model_code.evaluation.batch_norm import calibrate_batch_norm
from model_code.evaluation.features import LabelledFeatures, compute_features
from model_code.evaluation.knn import NEIGHBOURS, knn_accuracy
from model_code.evaluation.metrics import LARGEST_BATCH
from model_code.models.probes import build_untrained_head
from model_code.training.images import Images
from model_code.training.probe import train_probe
from model_code.training.probe_config import RANDOM_FEATURES_LINEAR, RANDOM_FEATURES_MLP, ProbeConfig


@dataclass(frozen=True)
class RandomFeaturesResult:
    """What one frozen backbone's features are worth on the test images.

    Attributes:
        knn_accuracy: Accuracy of the weighted nearest neighbours among the training images, in [0, 1].
        linear_accuracy: Accuracy of a learned linear layer.
        mlp_accuracy: Accuracy of a learned MLP.
        untrained_head_accuracy: Accuracy of an untrained linear layer; None for raw pixels.
        feature_width: Features of one image.
    """

    knn_accuracy: float
    linear_accuracy: float
    mlp_accuracy: float
    untrained_head_accuracy: float | None
    feature_width: int


class _RawPixels(nn.Module):
    def forward(self, images_BHWC: Tensor) -> Tensor:
        return images_BHWC.flatten(1).float() / 255


def measure_random_features(
    model: nn.Module | None,
    train: Images,
    test: Images,
    classes: tuple[str, ...],
    *,
    prepare: Callable[[Tensor], Tensor] | None = None,
    is_calibrated: bool = False,
    neighbours: int = NEIGHBOURS,
    linear: ProbeConfig = RANDOM_FEATURES_LINEAR,
    mlp: ProbeConfig = RANDOM_FEATURES_MLP,
    seed: int = 0,
    batch_size: int = LARGEST_BATCH,
) -> RandomFeaturesResult:
    """Compute a frozen backbone's features once and measure them in four ways.

    Args:
        model: uint8 images [B, H, W, C] in, features [B, D] out, on the images' device; is not changed but for
            being left in evaluation mode. None takes the raw pixels in [0, 1] as features.
        train: Images to learn from, also the neighbours.
        test: Images to measure on.
        classes: Names in label order.
        prepare: Brings each batch of uint8 images to the size that the model reads; None leaves it.
        is_calibrated: True if BatchNorm's statistics are estimated on the training images; otherwise they are those
            of `model`, mean 0 and variance 1 where it is untrained. Says nothing about raw pixels.
        neighbours: Number of neighbours that vote.
        linear: Settings of the linear probe.
        mlp: Settings of the MLP probe.
        seed: Seed of the probes and the untrained linear layer.
        batch_size: Images at once.

    Raises:
        UsageError: A setting is impossible for these images.
        TrainingError: Features are not finite, or a probe's loss is not.
    """
    backbone: nn.Module = _RawPixels() if model is None else model
    if is_calibrated and model is not None:
        backbone = copy.deepcopy(model)
        calibrate_batch_norm(backbone, train.images_NHWC, prepare, batch_size)
    learned = _label_features(backbone, train, classes, prepare, batch_size)
    measured = _label_features(backbone, test, classes, prepare, batch_size)
    return RandomFeaturesResult(
        knn_accuracy=knn_accuracy(learned, measured, neighbours),
        linear_accuracy=train_probe(learned, measured, linear, seed).test_accuracy,
        mlp_accuracy=train_probe(learned, measured, mlp, seed).test_accuracy,
        untrained_head_accuracy=None if model is None else _ask_untrained_head(measured, seed),
        feature_width=learned.features_ND.shape[1],
    )


def _label_features(
    backbone: nn.Module,
    images: Images,
    classes: tuple[str, ...],
    prepare: Callable[[Tensor], Tensor] | None,
    batch_size: int,
) -> LabelledFeatures:
    features_ND = compute_features(backbone, images.images_NHWC, prepare, batch_size)
    broken = int((~features_ND.isfinite().all(dim=1)).sum())
    if broken:
        raise TrainingError(
            f"the features of {broken} of {len(images)} images are not finite; calibrate BatchNorm or take "
            "another seed of the network"
        )
    return LabelledFeatures(features_ND, images.labels_N, classes)


@torch.no_grad()
def _ask_untrained_head(images: LabelledFeatures, seed: int) -> float:
    """Return the share of right answers of an untrained last layer, in [0, 1]."""
    generator = torch.Generator(device=images.features_ND.device).manual_seed(seed)
    head = build_untrained_head(images.features_ND.shape[1], len(images.classes), generator)
    return int((head(images.features_ND).argmax(dim=1) == images.labels_N).sum()) / len(images)
