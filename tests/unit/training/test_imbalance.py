"""Class weights and balanced sampling."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from model_code.training import supervised
from model_code.training.images import Images
from model_code.training.processes import ALONE
from model_code.training.supervised import balance_classes, fit
from tests.unit.training.small_runs import make_config, make_images


def make_rare(images, rare=2):
    """Keep all training images of class 0, and few of every other."""
    labels_N = images.train.labels_N
    positions_N = torch.stack([(labels_N[: i + 1] == label).sum() for i, label in enumerate(labels_N)])
    kept_N = torch.nonzero((labels_N == 0) | (positions_N <= rare))[:, 0]
    return replace(images, train=Images(images.train.images_NHWC[kept_N], labels_N[kept_N]))


def test_weights_are_inverse_to_counts_with_a_mean_of_one():
    labels_N = torch.tensor([0, 0, 0, 0, 0, 0, 1, 3, 3])
    weights_K = balance_classes(labels_N, 5)
    assert weights_K.tolist() == pytest.approx([9 / 18, 9 / 3, 0, 9 / 6, 0])
    assert weights_K[labels_N].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_each_label_counts_with_its_weight_also_where_images_are_mixed(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits_BK = torch.randn(5, 3, generator=generator)
    own_B, pasted_B, share_B = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([2, 2, 0, 1, 1]), torch.rand(5)
    weights_K = torch.tensor([0.5, 2.0, 4.0])

    def expect(labels_B):
        one_by_one = [
            cross_entropy(logits_BK[i : i + 1], labels_B[i : i + 1], label_smoothing=smoothing) for i in range(5)
        ]
        return weights_K[labels_B] * torch.stack(one_by_one)

    plain = supervised._Targets(own_B).compare(logits_BK, smoothing, weights_K)
    assert plain.item() == pytest.approx(expect(own_B).mean().item())
    mixed = supervised._Targets(own_B, pasted_B, share_B).compare(logits_BK, smoothing, weights_K)
    expected = (share_B * expect(own_B) + (1 - share_B) * expect(pasted_B)).mean()
    assert mixed.item() == pytest.approx(expected.item())


@pytest.mark.parametrize(("sampling", "low", "high"), [("once", 0.85, 0.95), ("balanced", 0.15, 0.35)])
def test_balanced_sampling_shows_each_class_as_often(tmp_path, monkeypatch, sampling, low, high):
    seen = []
    real = supervised._SupervisedLoop._augment
    monkeypatch.setattr(
        supervised._SupervisedLoop, "_augment", lambda self, *given: (seen.append(given[1]), real(self, *given))[1]
    )
    images = make_rare(make_images(train=200))
    fit(make_config(sampling=sampling, epochs=8), images, tmp_path, ALONE)
    assert low < (torch.cat(seen) == 0).float().mean() < high


@pytest.mark.parametrize("setting", [{"class_weights": "balanced"}, {"sampling": "balanced"}])
def test_rare_classes_are_learned_better(tmp_path, setting):
    images = make_rare(make_images(train=200, validation=200))
    plain, balanced = (
        fit(make_config(epochs=10, kept_epoch="last", **given), images, tmp_path / name, ALONE).history[-1]
        for name, given in (("plain", {}), ("balanced", setting))
    )
    assert balanced.validation_macro_f1 > plain.validation_macro_f1 + 0.1
