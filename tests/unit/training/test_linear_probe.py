import pytest
import torch
from pydantic import ValidationError

from model_code.errors import TrainingError, UsageError
from model_code.evaluation.features import LabelledFeatures
from model_code.training.linear_probe import LinearProbeConfig, train_linear_probe

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("a", "b", "c")
QUICK = LinearProbeConfig(epochs=20, warmup_epochs=2, batch_size=64)


def clusters(count: int, seed: int, distance: float = 4.0) -> LabelledFeatures:
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.randint(0, 3, (count,), generator=generator)
    features_ND = distance * torch.eye(16)[labels_N] + 0.3 * torch.randn((count, 16), generator=generator)
    return LabelledFeatures(features_ND, labels_N, CLASSES)


def test_separable_features_are_all_learned():
    result = train_linear_probe(clusters(300, 1), clusters(100, 2), QUICK)
    assert result.train_accuracy == result.test_accuracy == 1.0


def test_features_without_information_stay_at_chance():
    result = train_linear_probe(clusters(300, 1, distance=0), clusters(600, 2, distance=0), QUICK)
    assert result.test_accuracy == pytest.approx(1 / 3, abs=0.08)


def test_the_seed_decides_whatever_torch_drew_before():
    torch.manual_seed(1)
    first = train_linear_probe(clusters(300, 1), clusters(100, 2), QUICK)
    torch.manual_seed(2)
    again = train_linear_probe(clusters(300, 1), clusters(100, 2), QUICK)
    other = train_linear_probe(clusters(300, 1), clusters(100, 2), QUICK.model_copy(update={"seed": 5}))
    assert torch.equal(first.layer.weight, again.layer.weight)
    assert not torch.equal(first.layer.weight, other.layer.weight)


def test_partial_batches_count():
    train = LabelledFeatures(4 * torch.eye(3), torch.arange(3), CLASSES)
    result = train_linear_probe(train, train, LinearProbeConfig(epochs=30, warmup_epochs=1, batch_size=2))
    assert result.train_accuracy == 1.0


def test_other_classes_and_empty_sets():
    train = clusters(30, 1)
    other = LabelledFeatures(train.features_ND, train.labels_N, ("x", "y", "z"))
    empty = LabelledFeatures(train.features_ND[:0], train.labels_N[:0], CLASSES)
    for test in (other, empty):
        with pytest.raises(UsageError, match="two splits of one data set"):
            train_linear_probe(train, test, QUICK)


def test_a_loss_that_is_not_finite_names_the_epoch():
    train = clusters(64, 1)
    broken = LabelledFeatures(train.features_ND * float("inf"), train.labels_N, CLASSES)
    with pytest.raises(TrainingError, match="nan in epoch 1"):
        train_linear_probe(broken, train, QUICK)


def test_warmup_must_end_before_the_run():
    with pytest.raises(ValidationError, match="must be below epochs=5"):
        LinearProbeConfig(epochs=5)
