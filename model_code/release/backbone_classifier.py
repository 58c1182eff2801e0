"""A pretrained backbone -> a classifier: a linear layer, or the votes of the nearest training images, behind it.

Shape suffixes: B = images, H = height, W = width, C = the three colour channels, K = classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from model_code.evaluation.features import LabelledFeatures, compute_features
from model_code.evaluation.knn import knn_accuracy
from model_code.evaluation.metrics import choose_batch
from model_code.models.image_input import ImageInput, Rescale
from model_code.models.neighbour_vote import NeighbourVote
from model_code.training.images import TrainingImages
from model_code.training.pretraining import load_backbone, look_anew
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.probe import train_probe

Head = Literal["linear", "knn"]
VOTED_AT_ONCE = 1024


@dataclass(frozen=True)
class BackboneClassifier:
    """A backbone with a head.

    Attributes:
        model: uint8 images [B, H, W, C] in, logits [B, K] out; on the CPU, in evaluation mode.
        head: Kind of the layer behind the backbone.
        accuracies: Share of the validation images that each kind of head labels right, in [0, 1].
        knn_accuracy: Share that the kNN of the training (`model_code.evaluation.knn`) labels right, in [0, 1].
    """

    model: nn.Module
    head: Head
    accuracies: dict[Head, float]
    knn_accuracy: float


def build_classifier(
    config: SimSiamConfig, weights: Path, images: TrainingImages, head: Head | None
) -> BackboneClassifier:
    """Put a head behind a pretrained backbone; heads know the training images only, validation chooses.

    Args:
        config: Config of the run that trained the backbone.
        weights: Its file.
        images: On the CPU.
        head: None takes the one that labels more validation images right.

    Raises:
        TrainingError: The weights do not fit, or the loss of the linear layer is not finite.
    """
    trained = load_backbone(config, weights)
    backbone = _show_middle(config, trained, images.image_size)
    bank, validation = (
        LabelledFeatures(
            compute_features(backbone, each.images_NHWC, batch_size=choose_batch(config.views.image_size)),
            each.labels_N,
            images.classes,
        )
        for each in (images.train, images.validation)
    )
    look = look_anew(config, trained, images.train, torch.device("cpu")) if config.linear_crop_area else None
    linear = train_probe(bank, validation, config.linear, config.seed, look)
    vote = NeighbourVote(
        bank.features_ND, bank.labels_N, len(images.classes), config.knn_neighbours, config.knn_temperature
    )
    voted_N = torch.cat([vote(part_BD).argmax(1) for part_BD in validation.features_ND.split(VOTED_AT_ONCE)])
    is_right_N = voted_N == validation.labels_N
    accuracies: dict[Head, float] = {"linear": linear.test_accuracy, "knn": float(is_right_N.float().mean())}
    better: Head = "knn" if accuracies["knn"] > accuracies["linear"] else "linear"
    chosen = head or better
    model = nn.Sequential(backbone, vote if chosen == "knn" else linear.probe).eval()
    measured = knn_accuracy(bank, validation, config.knn_neighbours, config.knn_temperature)
    return BackboneClassifier(model, chosen, accuracies, measured)


def _show_middle(config: SimSiamConfig, trained: nn.Sequential, packed_side: int) -> nn.Sequential:
    """Return a backbone that sees packed images as its evaluation does: their middle, scaled where that scales."""
    _, network = trained
    side, image_size = int(config.views.image_size * config.evaluation_enlargement), config.views.image_size
    if side == packed_side:
        return nn.Sequential(ImageInput(config.mean, config.std, image_size), network).eval()
    image_input = ImageInput(config.mean, config.std)
    return nn.Sequential(image_input, Rescale(image_input, packed_side, side, image_size), network).eval()
