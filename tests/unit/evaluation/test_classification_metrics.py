import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import nn

from model_code.evaluation.metrics import choose_batch, measure, measure_top_k, predict_logits


def make_logits(predictions, classes, seed=0):
    """Random logits whose largest is at the given predictions."""
    logits_NK = torch.rand(len(predictions), classes, generator=torch.Generator().manual_seed(seed))
    logits_NK[torch.arange(len(predictions)), torch.tensor(predictions)] += 1
    return logits_NK


def test_by_hand():
    # true 0: two right, one taken for 1; true 1: right; true 2: taken for 0.
    report = measure(make_logits([0, 0, 1, 1, 0], 3), torch.tensor([0, 0, 0, 1, 2]))
    assert report.count == 5
    assert report.accuracy_fraction == pytest.approx(3 / 5)
    assert report.confusion_KK.tolist() == [[2, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert report.confusion_KK.dtype == np.int64
    assert report.per_class_accuracy == pytest.approx((2 / 3, 1.0, 0.0))
    assert report.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_loss_is_the_mean_cross_entropy():
    logits_NK = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    report = measure(logits_NK, torch.tensor([0, 1]))
    assert report.loss == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_against_sklearn():
    generator = torch.Generator().manual_seed(0)
    logits_NK = torch.randn(500, 7, generator=generator)
    labels_N = torch.randint(0, 7, (500,), generator=generator)
    report = measure(logits_NK, labels_N)
    true, predicted = labels_N.numpy(), logits_NK.argmax(1).numpy()
    assert report.accuracy_fraction == pytest.approx(sklearn_metrics.accuracy_score(true, predicted))
    assert report.macro_f1 == pytest.approx(sklearn_metrics.f1_score(true, predicted, average="macro"))
    assert report.per_class_accuracy == pytest.approx(sklearn_metrics.recall_score(true, predicted, average=None))
    assert np.array_equal(report.confusion_KK, sklearn_metrics.confusion_matrix(true, predicted))
    probabilities = torch.softmax(logits_NK.double(), dim=1).numpy()
    assert report.loss == pytest.approx(sklearn_metrics.log_loss(true, probabilities), rel=1e-5)


def test_top_5_by_hand_and_against_sklearn():
    scores_NK = torch.tensor([[6.0, 5, 4, 3, 2, 1], [6.0, 5, 4, 3, 2, 1], [1.0, 1, 1, 1, 1, 1]])
    labels_N = torch.tensor([4, 5, 4])
    assert measure_top_k(scores_NK, labels_N, 5) == 2 / 3
    assert measure_top_k(scores_NK, labels_N, 6) == measure_top_k(scores_NK, labels_N, 60) == 1
    assert measure_top_k(scores_NK, labels_N) == 0
    generator = torch.Generator().manual_seed(0)
    logits_NK = torch.randn(500, 9, generator=generator)
    labels_N = torch.randint(0, 9, (500,), generator=generator)
    expected = sklearn_metrics.top_k_accuracy_score(labels_N.numpy(), logits_NK.numpy(), k=5)
    assert measure(logits_NK, labels_N).top5_accuracy == pytest.approx(expected)
    assert 0.5 < expected < 0.6, "not the fifth class alone"


def test_classes_without_images():
    report = measure(make_logits([0, 3, 3], 5), torch.tensor([0, 0, 3]))
    assert report.confusion_KK.shape == (5, 5)
    assert report.per_class_accuracy[0] == 0.5
    assert report.per_class_accuracy[3] == 1.0
    assert [math.isnan(value) for value in report.per_class_accuracy] == [False, True, True, False, True]
    assert report.accuracy_fraction == pytest.approx(2 / 3)
    assert report.macro_f1 == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_a_class_without_images_costs_the_others_precision_and_recall_only():
    # Class 2 has no image; the answer 2 is one that class 0 lost, and class 1 is never answered.
    report = measure(make_logits([0, 2, 0], 3), torch.tensor([0, 0, 1]))
    assert report.macro_f1 == pytest.approx((2 / 4 + 0) / 2)


def test_one_class_that_is_always_right():
    report = measure(make_logits([0, 0], 1), torch.tensor([0, 0]))
    assert (report.accuracy_fraction, report.macro_f1, report.loss) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize(("predictions", "labels"), [(0, 0), (3, 0), (2, 3), (3, 2)])
def test_nothing_to_compare(predictions, labels):
    with pytest.raises(ValueError, match=rf"^{predictions} predictions for {labels} labels"):
        measure(torch.zeros(predictions, 4), torch.zeros(labels, dtype=torch.int64))


class ColourNetwork(nn.Module):
    """Convolution, batch normalisation and dropout: what an evaluation in training mode would show."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5)
        )
        self.fc = nn.Linear(8, 5)

    def forward(self, images_BHWC):
        return self.fc(self.layers(images_BHWC.permute(0, 3, 1, 2).float() / 255))


def test_predictions_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    network = ColourNetwork().train()
    images_NHWC = torch.randint(0, 256, (23, 8, 8, 3), dtype=torch.uint8)
    whole = predict_logits(network, images_NHWC)
    assert whole.shape == (23, 5)
    assert whole.dtype == torch.float32
    assert not network.training
    assert not whole.requires_grad
    for one, expected in zip(images_NHWC, whole, strict=True):
        torch.testing.assert_close(predict_logits(network, one[None])[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("image_size", "count"), [(8, 500), (32, 500), (64, 500), (128, 125), (224, 40), (4096, 1)])
def test_fewer_large_images_are_evaluated_at_once(image_size, count):
    assert choose_batch(image_size) == count


def test_predicting_leaves_the_network_as_it_was():
    network = ColourNetwork()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    predict_logits(network, torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
