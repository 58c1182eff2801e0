"""Pseudo-labels: labels that a trained network gives to images without any, where it is confident.

Source: Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks".

Shape suffixes: N = images, H = height, W = width, C = the three colour channels.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from model_code.disk import write_atomically
from model_code.errors import TrainingError
from model_code.evaluation.metrics import predict_logits
from model_code.training.images import Images, TrainingImages
from model_code.training.processes import Processes

LABELS_FILE = "pseudo_labels.safetensors"


@dataclass(frozen=True)
class PseudoLabels:
    """Labels that a network gives with confidence.

    Attributes:
        chosen_N: Indices of the labelled images among those without labels, int64, on the CPU.
        labels_N: Their labels, int64, on the CPU.
    """

    chosen_N: Tensor
    labels_N: Tensor

    def save(self, run_dir: Path) -> None:
        """Keep them in a run's folder, whose run learns from them whenever it is resumed.

        Raises:
            DiskFullError: There is no room.
        """
        write_atomically(run_dir / LABELS_FILE, safetensors.torch.save(vars(self)))

    def summarise(self, classes: tuple[str, ...], unlabelled: int) -> dict[str, object]:
        """Return how many of the images without labels were labelled, and of each class."""
        counts_K = torch.bincount(self.labels_N, minlength=len(classes)).tolist()
        return {
            "unlabelled": unlabelled,
            "labelled": len(self.labels_N),
            "share": len(self.labels_N) / unlabelled,
            "per_class": dict(zip(classes, counts_K, strict=True)),
        }


def load_pseudo_labels(run_dir: Path) -> PseudoLabels | None:
    """Return the labels that a run has begun with; None if it has none yet.

    Raises:
        TrainingError: The file is damaged.
    """
    file = run_dir / LABELS_FILE
    if not file.exists():
        return None
    try:
        return PseudoLabels(**safetensors.torch.load(file.read_bytes()))
    except (SafetensorError, TypeError, ValueError) as error:
        raise TrainingError(f"{file} is damaged; remove {run_dir} and train again") from error


def choose_pseudo_labels(
    unlabelled_NHWC: Tensor, model: nn.Module, confidence: float, processes: Processes
) -> PseudoLabels:
    """Return the labels that a network gives with confidence.

    Args:
        unlabelled_NHWC: uint8, images without labels.
        model: uint8 images in, logits out; is left in evaluation mode.
        confidence: Least probability of the label of an image that is chosen.
        processes: Processes that train together; each labels its share.
    """
    mine = processes.share(len(unlabelled_NHWC))
    logits_NK = processes.gather(predict_logits(model, unlabelled_NHWC[mine]))
    confident = torch.softmax(logits_NK, dim=1).max(dim=1)
    chosen_N = (confident.values >= confidence).nonzero()[:, 0]
    return PseudoLabels(chosen_N.cpu(), confident.indices[chosen_N].cpu())


def add_pseudo_labels(images: TrainingImages, unlabelled_NHWC: Tensor, labels: PseudoLabels) -> TrainingImages:
    """Return the images of a run with those added to its training images that have pseudo-labels.

    Args:
        images: Labelled images of the run.
        unlabelled_NHWC: uint8, images without labels; where those of `images` are.
        labels: Which of them are added, and as what.
    """
    learned_NHWC = images.train.images_NHWC
    assert isinstance(learned_NHWC, Tensor), "the config refuses pseudo-labels for images on disk"
    added_NHWC = unlabelled_NHWC[labels.chosen_N.to(unlabelled_NHWC.device)]
    train = Images(
        torch.cat([learned_NHWC, added_NHWC]),
        torch.cat([images.train.labels_N, labels.labels_N.to(images.train.labels_N.device)]),
    )
    return replace(images, train=train)
