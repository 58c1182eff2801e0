"""Pseudo-labels: labels that a trained network gives to images without any, where it is confident.

Source: Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks".

Shape suffixes: N = images, H = height, W = width, C = the three colour channels.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from model_code.evaluation.metrics import predict_logits
from model_code.training.images import Images, TrainingImages
from model_code.training.processes import Processes


def add_pseudo_labels(
    images: TrainingImages, unlabelled_NHWC: Tensor, model: nn.Module, confidence: float, processes: Processes
) -> TrainingImages:
    """Return the images of a run with those added to its training images that a network labels with confidence.

    Args:
        images: Labelled images of the run.
        unlabelled_NHWC: uint8, images without labels; where those of `images` are.
        model: uint8 images in, logits out; is left in evaluation mode.
        confidence: Least probability of the label of an image that is added.
        processes: Processes that train together; each labels its share.
    """
    mine = processes.share(len(unlabelled_NHWC))
    logits_NK = processes.gather(predict_logits(model, unlabelled_NHWC[mine]))
    confident = torch.softmax(logits_NK, dim=1).max(dim=1)
    chosen_N = (confident.values >= confidence).nonzero()[:, 0]
    labels_N = confident.indices[chosen_N].to(images.train.labels_N.device)
    added_NHWC = unlabelled_NHWC[chosen_N.to(unlabelled_NHWC.device)]
    train = Images(
        torch.cat([images.train.images_NHWC, added_NHWC]),
        torch.cat([images.train.labels_N, labels_N]),
    )
    return replace(images, train=train)
