"""Pseudo-labels: which images get one, and what is learned from.

Shape suffixes: B = images, H = height, W = width, C = the three colour channels.
"""

import numpy as np
import pytest
import torch
from torch import nn

from model_code.data.cache import PackedDataset, PackedSplit
from model_code.errors import TrainingError, UsageError
from model_code.training.images import load_images, load_unlabelled
from model_code.training.processes import ALONE
from model_code.training.pseudo_labels import (
    LABELS_FILE,
    PseudoLabels,
    add_pseudo_labels,
    choose_pseudo_labels,
    load_pseudo_labels,
)
from tests.unit.training.small_runs import CPU, make_config, make_images

PSEUDO = {"pretrained_weights": "recipe:tiny_pets", "pseudo_label_confidence": 0.9}


class ReadsFirstPixel(nn.Module):
    """Logits of four classes: the red of the first pixel is the class, its green the certainty."""

    def forward(self, images_BHWC):
        red_B, green_B, _ = images_BHWC[:, 0, 0].unbind(1)
        return nn.functional.one_hot(red_B.long(), 4) * green_B[:, None].float()


def make_dataset(tmp_path, **counts):
    """Return a data set whose images are numbered by their first pixels; those called unlabelled have no label."""
    splits = {}
    for name, count in counts.items():
        images_NHWC = np.zeros((count, 8, 8, 3), dtype=np.uint8)
        images_NHWC[:, 0, 0, 0] = np.arange(count)
        labels_N = np.full(count, -1) if name == "unlabelled" else np.arange(count) % 4
        splits[name] = PackedSplit(images_NHWC, labels_N)
    return PackedDataset("numbers", ("a", "b", "c", "d"), 8, splits, "c" * 64, "drawn", tmp_path)


def read_numbers(images_NHWC):
    return images_NHWC[:, 0, 0, 0].tolist()


def add(images, unlabelled_NHWC, confidence):
    labels = choose_pseudo_labels(unlabelled_NHWC, ReadsFirstPixel(), confidence, ALONE)
    return add_pseudo_labels(images, unlabelled_NHWC, labels)


def test_the_labels_that_a_run_began_with_stay(tmp_path):
    assert load_pseudo_labels(tmp_path) is None
    PseudoLabels(torch.tensor([0, 2, 3]), torch.tensor([1, 1, 2])).save(tmp_path)
    kept = load_pseudo_labels(tmp_path)
    assert (kept.chosen_N.tolist(), kept.labels_N.tolist()) == ([0, 2, 3], [1, 1, 2])
    assert kept.summarise(("a", "b", "c"), 6) == {
        "unlabelled": 6,
        "labelled": 3,
        "share": 0.5,
        "per_class": {"a": 0, "b": 2, "c": 1},
    }
    (tmp_path / LABELS_FILE).write_bytes(b"x")
    with pytest.raises(TrainingError, match=r"pseudo_labels\.safetensors is damaged; remove"):
        load_pseudo_labels(tmp_path)


def test_only_images_with_a_confident_label_are_added():
    images = make_images()
    unlabelled_NHWC = torch.zeros((4, 8, 8, 3), dtype=torch.uint8)
    # exp(6) / (exp(6) + 3) is 0.993, exp(3) / (exp(3) + 3) is 0.870
    unlabelled_NHWC[:, 0, 0, :2] = torch.tensor([[3, 6], [1, 3], [2, 6], [0, 0]], dtype=torch.uint8)
    more = add(images, unlabelled_NHWC, 0.9)
    assert torch.equal(more.train.images_NHWC[:-2], images.train.images_NHWC)
    assert torch.equal(more.train.images_NHWC[-2:], unlabelled_NHWC[[0, 2]])
    assert more.train.labels_N[-2:].tolist() == [3, 2]
    assert more.validation is images.validation
    every = add(images, unlabelled_NHWC, 0.25)
    assert every.train.labels_N[-4:].tolist() == [3, 1, 2, 0]
    none = add(images, unlabelled_NHWC, 1.0)
    assert len(none.train) == len(images.train)


def test_the_images_without_labels_are_taken_where_there_are_such(tmp_path):
    dataset = make_dataset(tmp_path, train=40, unlabelled=30)
    assert read_numbers(load_unlabelled(dataset, make_config(**PSEUDO), CPU)) == list(range(30))
    assert len(load_unlabelled(dataset, make_config(**PSEUDO, limit_train=20), CPU)) == 20


def test_without_such_they_are_those_beyond_the_limit_and_none_is_learned_from_or_held_out(tmp_path):
    dataset, config = make_dataset(tmp_path, train=40), make_config(**PSEUDO, limit_train=16)
    unlabelled = read_numbers(load_unlabelled(dataset, config, CPU))
    images = load_images(dataset, config, CPU)
    labelled = read_numbers(images.train.images_NHWC) + read_numbers(images.validation.images_NHWC)
    assert sorted(unlabelled + labelled) == list(range(40))
    with pytest.raises(
        UsageError, match=r"^tiny_pets_test gives pseudo-labels .* numbers has none; give --limit-train"
    ):
        load_unlabelled(dataset, make_config(**PSEUDO), CPU)


@pytest.mark.parametrize("weights", [None, "weights.pth", "torchvision"])
def test_pseudo_labels_come_from_the_network_of_a_recipe(weights):
    with pytest.raises(
        ValueError, match="pseudo_label_confidence needs a network that labels; give pretrained_weights=r"
    ):
        make_config(pretrained_weights=weights, pseudo_label_confidence=0.9)
