import copy

import pytest
import torch
from torch import nn

from model_code.data.sources.shapes import SHAPE_CLASSES, generate_shapes
from model_code.errors import TrainingError
from model_code.evaluation.batch_norm import calibrate_batch_norm
from model_code.evaluation.features import LabelledFeatures, compute_features
from model_code.evaluation.knn import knn_accuracy
from model_code.training.images import Images
from model_code.training.probe import train_probe
from model_code.training.probe_config import ProbeConfig
from model_code.training.random_features import measure_random_features
from tests.unit.training.small_runs import CLASSES, draw_images

LINEAR = ProbeConfig(epochs=20, warmup_epochs=2, base_learning_rate=0.1, is_standardised=True)
MLP = LINEAR.model_copy(update={"hidden_width": 32})


class TinyBackbone(nn.Module):
    def __init__(self, side=8):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 16, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.side = side

    def forward(self, images_BHWC):
        assert images_BHWC.shape[1] == self.side
        features = self.convolution(images_BHWC.permute(0, 3, 1, 2).float() / 255)
        return self.norm(features).relu().mean(dim=(2, 3))


@pytest.fixture(scope="module")
def coloured():
    return draw_images(200, seed=1), draw_images(100, seed=2)


def measure(model, images, classes=CLASSES, **options):
    return measure_random_features(model, *images, classes, **({"linear": LINEAR, "mlp": MLP} | options))


def test_learned_layers_read_random_features_and_an_untrained_one_does_not(coloured):
    result = measure(TinyBackbone(), coloured, neighbours=20)
    assert result.feature_width == 16
    assert min(result.knn_accuracy, result.linear_accuracy, result.mlp_accuracy) > 0.85
    assert result.untrained_head_accuracy <= 0.5


def test_each_figure_is_that_of_its_own_function(coloured):
    model, (train, test) = TinyBackbone(), coloured
    result = measure(model, coloured, neighbours=20, is_calibrated=True)
    calibrate_batch_norm(model, train.images_NHWC)
    learned, measured = (
        LabelledFeatures(compute_features(model, some.images_NHWC), some.labels_N, CLASSES) for some in (train, test)
    )
    assert result.knn_accuracy == knn_accuracy(learned, measured, 20)
    assert result.linear_accuracy == train_probe(learned, measured, LINEAR).test_accuracy
    assert result.mlp_accuracy == train_probe(learned, measured, MLP).test_accuracy


@pytest.mark.parametrize("is_calibrated", [False, True])
def test_the_model_stays_as_it_is(coloured, is_calibrated):
    model = TinyBackbone()
    before = copy.deepcopy(model.state_dict())
    measure(model, coloured, is_calibrated=is_calibrated)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_calibration_makes_another_network(coloured):
    default, calibrated = (measure(TinyBackbone(), coloured, is_calibrated=choice) for choice in (False, True))
    assert default.untrained_head_accuracy != calibrated.untrained_head_accuracy


def test_raw_pixels_have_no_last_layer(coloured):
    result = measure(None, coloured, neighbours=20, is_calibrated=True)
    assert result.feature_width == 8 * 8 * 3
    assert result.untrained_head_accuracy is None
    assert result.linear_accuracy > 0.9


def test_everything_is_seeded(coloured):
    def ask():
        result = measure(TinyBackbone(), coloured)
        return result.linear_accuracy, result.mlp_accuracy, result.untrained_head_accuracy

    first = ask()
    torch.manual_seed(77)
    assert ask() == first
    heads = [measure(TinyBackbone(), coloured, is_calibrated=True, seed=seed) for seed in range(5)]
    assert len({head.untrained_head_accuracy for head in heads}) > 1


def test_fewer_training_images_than_neighbours_vote_as_a_whole(coloured):
    train, test = coloured
    few = Images(train.images_NHWC[:12], train.labels_N[:12])
    model = TinyBackbone()
    whole, default = measure(model, (few, test), neighbours=12), measure(model, (few, test))
    assert default.knn_accuracy == whole.knn_accuracy > 0


def test_drawn_images_are_brought_to_the_networks_size():
    source = generate_shapes(16, train_per_class=8, test_per_class=3)
    images = [
        Images(torch.from_numpy(split.images_NHWC), torch.from_numpy(split.labels_N))
        for split in (source.splits["train"], source.splits["test"])
    ]
    result = measure(
        TinyBackbone(),
        images,
        SHAPE_CLASSES,
        prepare=lambda batch: batch[:, ::2, ::2],
        is_calibrated=True,
        batch_size=30,
        neighbours=10,
    )
    assert result.feature_width == 16
    assert 0 <= result.mlp_accuracy <= 1


def test_features_that_are_not_finite_are_refused(coloured):
    model = TinyBackbone()
    nn.init.constant_(model.norm.running_mean, torch.inf)
    nn.init.constant_(model.norm.weight, -1)
    with pytest.raises(TrainingError, match="the features of 200 of 200 images are not finite"):
        measure(model, coloured)
