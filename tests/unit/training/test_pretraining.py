"""The SimSiam loop on a small backbone and drawn images.

Shape suffixes: N = images, B = images of a batch, C = colour channels, H = height, W = width.
"""

from functools import partial

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.optim import SGD

from model_code.data.augmentation import resized_crop
from model_code.data.view_settings import ViewSettings
from model_code.data.views import plain_view
from model_code.errors import TrainingError, UsageError
from model_code.evaluation.features import LabelledFeatures, compute_features
from model_code.evaluation.knn import knn_accuracy
from model_code.models import networks
from model_code.models.image_input import ImageInput
from model_code.training import checkpoints, pretraining
from model_code.training.images import Images, PretrainingImages
from model_code.training.pretraining import (
    build_simsiam,
    evaluate_backbone,
    evaluation_features,
    load_backbone,
    pretrain,
)
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.probe import train_probe
from model_code.training.probe_config import ProbeConfig
from model_code.training.processes import ALONE
from model_code.training.results import Callback

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
CLASSES = ("red", "green", "blue")


class SmallNetwork(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers = []
        for in_channels, out_channels in ((3, 16), (16, 32), (32, 32)):
            convolution = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layers(images_BCHW).mean((2, 3)))


@pytest.fixture(autouse=True)
def _small_network(monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "small", SmallNetwork)
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(was_deterministic)


def draw_images(count: int, seed: int) -> Images:
    """Noise of any brightness with a faint tint, red, green or blue, that is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.arange(count) % 3
    noise = torch.rand((count, 16, 16, 3), generator=generator)
    brightness = torch.rand((count, 1, 1, 1), generator=generator)
    tint = torch.eye(3)[labels_N][:, None, None]
    return Images(((0.475 * (noise + brightness) + 0.05 * tint) * 255).to(torch.uint8), labels_N)


def pretraining_images(count: int = 192) -> PretrainingImages:
    memory = draw_images(count, 1)
    return PretrainingImages(memory.images_NHWC, memory, draw_images(150, 2), memory, draw_images(90, 3), CLASSES)


def small_config(**changes) -> SimSiamConfig:
    settings = {
        "recipe": "test",
        "network": "small",
        "embedding_width": 64,
        "bottleneck_width": 16,
        "views": ViewSettings(image_size=16),
        "epochs": 3,
        "batch_size": 64,
        "monitor_every_epochs": 2,
        "knn_neighbours": 10,
    }
    return SimSiamConfig(**{**settings, **changes})


class Recorder(Callback):
    def __init__(self, stop_after: int | None = None) -> None:
        self.steps, self.epochs, self.resumed, self.stop_after = [], [], [], stop_after

    def on_resume(self, history):
        self.resumed.append(len(history))

    def on_step(self, epoch, step, steps, loss):
        self.steps.append((epoch, step, steps, loss))

    def on_epoch_end(self, metrics):
        self.epochs.append(metrics)
        if metrics.epoch == self.stop_after:
            raise KeyboardInterrupt


def test_one_kernel_for_all_parameters_learns_the_same(tmp_path, monkeypatch):
    def train(name):
        recorder = Recorder()
        pretrain(small_config(), pretraining_images(), tmp_path / name, ALONE, [recorder])
        return [loss for *_, loss in recorder.steps]

    expected = train("plain")
    monkeypatch.setattr(pretraining, "SGD", lambda *given, **more: SGD(*given, **more | {"fused": True}))  # as on CUDA
    assert train("fused") == pytest.approx(expected, rel=1e-4)


def test_a_run_leaves_weights_metrics_and_only_one_best(tmp_path):
    recorder = Recorder()
    result = pretrain(small_config(), pretraining_images(), tmp_path, ALONE, [recorder])
    assert [(epoch, step, steps) for epoch, step, steps, _ in recorder.steps] == [
        (epoch, step, 3) for epoch in (1, 2, 3) for step in (1, 2, 3)
    ]
    assert all(-1 <= loss <= 1 for *_, loss in recorder.steps)
    assert recorder.epochs == list(result.history)
    assert [metrics.knn_accuracy is None for metrics in result.history] == [True, False, False]
    assert all(0 < metrics.feature_std < 1.05 * 64**-0.5 for metrics in result.history)
    assert result.best.knn_accuracy == max(metrics.knn_accuracy for metrics in result.history[1:])
    assert list(tmp_path.glob("best-*")) == [result.best_weights]
    assert result.last_weights.exists()


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path):
    weights = [
        pretrain(small_config(seed=seed), pretraining_images(), tmp_path / name, ALONE).last_weights.read_bytes()
        for name, seed in (("one", 3), ("two", 3), ("three", 4))
    ]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("stop_after", [1, 2])
def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path, stop_after):
    config, images = small_config(), pretraining_images()
    whole = pretrain(config, images, tmp_path / "whole", ALONE)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, images, tmp_path / "parts", ALONE, [Recorder(stop_after)])
    torch.manual_seed(99)
    recorder = Recorder()
    resumed = pretrain(config, images, tmp_path / "parts", ALONE, [recorder])
    assert recorder.resumed == [stop_after]
    assert resumed.last_weights.read_bytes() == whole.last_weights.read_bytes()
    assert resumed.best_weights.read_bytes() == whole.best_weights.read_bytes()
    assert [m.loss for m in resumed.history] == [m.loss for m in whole.history]
    assert [m.feature_std for m in resumed.history] == [m.feature_std for m in whole.history]


def test_rarer_checkpoints_go_on_from_the_last_one(tmp_path):
    config = small_config(epochs=5, monitor_every_epochs=5, checkpoint_every_epochs=2)
    whole = pretrain(config, pretraining_images(), tmp_path / "whole", ALONE)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, pretraining_images(), tmp_path / "parts", ALONE, [Recorder(stop_after=3)])
    recorder = Recorder()
    resumed = pretrain(config, pretraining_images(), tmp_path / "parts", ALONE, [recorder])
    assert recorder.resumed == [2]
    assert resumed.last_weights.read_bytes() == whole.last_weights.read_bytes()


def test_state_of_other_settings_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pretrain(small_config(), pretraining_images(), tmp_path, ALONE, [Recorder(stop_after=1)])
    with pytest.raises(TrainingError, match="other settings"):
        pretrain(small_config(base_learning_rate=0.1), pretraining_images(), tmp_path, ALONE)


def test_neighbours_get_better_than_those_of_the_untrained_backbone(tmp_path):
    views = ViewSettings(
        image_size=16, jitter_probability=1, brightness=0.8, contrast=0.8, saturation=0, hue=0, grayscale_probability=0
    )
    config = small_config(views=views, epochs=5, batch_size=32, base_learning_rate=0.4, monitor_every_epochs=5)
    images = pretraining_images(480)
    still = config.model_copy(update={"epochs": 1, "base_learning_rate": 1e-9})
    untrained = pretrain(still, images, tmp_path / "untrained", ALONE)
    trained = pretrain(config, images, tmp_path / "trained", ALONE)
    assert trained.history[-1].loss < untrained.history[-1].loss - 0.2
    assert trained.best.knn_accuracy > untrained.best.knn_accuracy + 0.1


def test_the_predictor_keeps_its_learning_rate(tmp_path):
    recorder = Recorder()
    config = small_config(epochs=4, warmup_epochs=1)
    pretrain(config, pretraining_images(), tmp_path, ALONE, [recorder])
    assert config.learning_rate == pytest.approx(0.03 * 64 / 256)
    assert recorder.epochs[0].learning_rate == pytest.approx(config.learning_rate)
    assert recorder.epochs[-1].learning_rate < 0.1 * config.learning_rate
    groups = checkpoints.load_state(tmp_path, config.sha256()).optimizer["param_groups"]
    assert groups[1]["lr"] == pytest.approx(config.learning_rate)


def test_the_optimiser_is_sgd_with_momentum(tmp_path):
    config = small_config(epochs=1)
    pretrain(config, pretraining_images(), tmp_path, ALONE)
    for group in checkpoints.load_state(tmp_path, config.sha256()).optimizer["param_groups"]:
        assert group.keys() == SGD([torch.zeros(1)]).state_dict()["param_groups"][0].keys()
        assert (group["momentum"], group["nesterov"]) == (config.momentum, False)
        assert group["weight_decay"] == config.weight_decay


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(tmp_path):
    class Poison(Recorder):
        def on_step(self, epoch, step, steps, loss):
            if (epoch, step) == (2, 1):
                images.images_NHWC.mul_(float("nan"))

    memory = draw_images(192, 1)
    pixels = memory.images_NHWC.float() / 255
    images = PretrainingImages(pixels, memory, draw_images(20, 2), memory, None, CLASSES)
    with pytest.raises(TrainingError, match=r"nan at step 2 of epoch 2.*base_learning_rate=0.003"):
        pretrain(small_config(), images, tmp_path, ALONE, [Poison()])
    assert checkpoints.load_state(tmp_path, small_config().sha256()).epoch == 1


def test_the_best_backbone_loads_and_fits_the_whole_network(tmp_path):
    config, images = small_config(), pretraining_images()
    result = pretrain(config, images, tmp_path, ALONE)
    backbone = load_backbone(config, result.best_weights)
    features = evaluation_features(config, backbone, images.validation, CLASSES)
    assert features.features_ND.shape == (150, 32)
    checkpoints.load_pretrained(networks.build_network("small", 5), str(result.best_weights))


@pytest.mark.parametrize("has_test", [True, False])
def test_a_backbone_is_measured_with_all_labelled_images_on_those_that_chose_nothing(tmp_path, has_test):
    linear = ProbeConfig(epochs=5, warmup_epochs=1, base_learning_rate=1.0)
    config = small_config(epochs=1, evaluation_enlargement=1.5, linear=linear, seed=4)
    memory, asked, more = draw_images(60, 1), draw_images(90, 2), draw_images(80, 5)
    labelled = Images(*(torch.cat(both) for both in zip(vars(memory).values(), vars(more).values(), strict=True)))
    test = draw_images(75, 3) if has_test else None
    images = PretrainingImages(draw_images(64, 7).images_NHWC, memory, asked, labelled, test, CLASSES)
    result = pretrain(config, images, tmp_path, ALONE)
    report = evaluate_backbone(config, result.best_weights, images, CPU)
    backbone = load_backbone(config, result.best_weights)

    def look(some):
        plain = partial(plain_view, image_size=16, enlargement=1.5)
        return LabelledFeatures(compute_features(backbone, some.images_NHWC, plain), some.labels_N, CLASSES)

    bank, queries = (labelled, test) if has_test else (memory, asked)
    assert (report.split, report.count) == (("test", 75) if has_test else ("validation", 90))
    assert report.knn_accuracy == knn_accuracy(look(bank), look(queries), config.knn_neighbours)
    assert report.knn_top5_accuracy == knn_accuracy(look(bank), look(queries), config.knn_neighbours, top_k=5)
    probe = train_probe(look(bank), look(queries), linear, seed=4)
    assert vars(report.linear) | {"probe": None} == vars(probe) | {"probe": None}
    assert report.augmented_linear is None
    assert set(report.list_metrics()) == {
        *(f"{report.split}/{name}" for name in ("knn_accuracy", "knn_top5_accuracy", "pictures")),
        *(f"{report.split}/{name}" for name in ("linear_accuracy", "linear_top5_accuracy")),
        "train/linear_accuracy",
    }


def test_the_augmented_linear_layer_learns_from_crops_and_is_measured_on_the_plain_view(tmp_path, monkeypatch):
    linear = ProbeConfig(epochs=4, warmup_epochs=1, base_learning_rate=1.0, batch_size=20)
    config = small_config(epochs=1, linear=linear, linear_crop_area=(0.08, 1.0))
    images = pretraining_images()
    result = pretrain(config, images, tmp_path, ALONE)
    seen = []

    def crop(images_BHWC, image_size, crop_area, generator):
        seen.append(images_BHWC)
        assert (image_size, crop_area) == (16, (0.08, 1.0))
        return resized_crop(images_BHWC, image_size, crop_area, generator)

    monkeypatch.setattr(pretraining, "resized_crop", crop)
    report = evaluate_backbone(config, result.best_weights, images, CPU)
    bank = images.memory if images.test is None else images.labelled
    assert sum(map(len, seen)) == 4 * len(bank)
    plain = evaluate_backbone(config.model_copy(update={"linear_crop_area": None}), result.best_weights, images, CPU)
    assert vars(report.linear) | {"probe": None} == vars(plain.linear) | {"probe": None}
    layer, fixed = report.augmented_linear.probe.weight, plain.linear.probe.weight
    assert not torch.equal(layer, fixed)
    whole = config.model_copy(update={"linear_crop_area": (1.0, 1.0)})
    again = evaluate_backbone(config, result.best_weights, images, CPU)
    assert torch.equal(again.augmented_linear.probe.weight, layer)
    monkeypatch.setattr(pretraining, "resized_crop", lambda images_BHWC, *_: images_BHWC)
    monkeypatch.setattr(pretraining, "crop_and_flip", lambda images_BHWC, *_: images_BHWC)
    uncropped = evaluate_backbone(whole, result.best_weights, images, CPU)
    assert torch.allclose(uncropped.augmented_linear.probe.weight, fixed, atol=1e-5)
    assert f"{report.split}/augmented_linear_top5_accuracy" in report.list_metrics()


def test_the_untrained_backbone_is_measured_before_the_first_step(tmp_path):
    config, images = small_config(epochs=1, monitor_every_epochs=1), pretraining_images()
    still = pretrain(config.model_copy(update={"base_learning_rate": 1e-12}), images, tmp_path / "still", ALONE)
    trained = pretrain(config, images, tmp_path / "trained", ALONE)
    assert trained.untrained_knn_accuracy == still.untrained_knn_accuracy
    resumed = pretrain(config, images, tmp_path / "trained", ALONE)
    assert resumed.untrained_knn_accuracy == trained.untrained_knn_accuracy
    torch.manual_seed(config.seed)
    backbone = nn.Sequential(ImageInput(config.mean, config.std), build_simsiam(config).backbone)
    bank, queries = (
        evaluation_features(config, backbone, some, CLASSES) for some in (images.memory, images.validation)
    )
    assert trained.untrained_knn_accuracy == knn_accuracy(bank, queries, config.knn_neighbours)


def test_a_run_starts_from_the_backbone_of_another_one(tmp_path):
    config, images = small_config(), pretraining_images()
    source = pretrain(config, images, tmp_path / "source", ALONE)
    further = small_config(pretrained_weights="recipe:another", seed=8, monitor_every_epochs=1)
    start = str(source.best_weights)
    with pytest.raises(KeyboardInterrupt):
        pretrain(further, images, tmp_path / "further", ALONE, [Recorder(stop_after=1)], pretrained=start)
    result = pretrain(further, images, tmp_path / "further", ALONE, pretrained=start)
    assert result.untrained_knn_accuracy == source.best.knn_accuracy
    whole = pretrain(further, images, tmp_path / "whole", ALONE, pretrained=start)
    assert whole.last_weights.read_bytes() == result.last_weights.read_bytes()


def test_bfloat16_trains(tmp_path):
    result = pretrain(small_config(epochs=1, engine={"precision": "bfloat16"}), pretraining_images(), tmp_path, ALONE)
    assert -1 <= result.history[0].loss <= 1


def test_a_memory_smaller_than_the_neighbours_votes_as_a_whole(tmp_path):
    images = pretraining_images()
    whole, more = (
        pretrain(
            small_config(epochs=1, monitor_every_epochs=1, knn_neighbours=count), images, tmp_path / str(count), ALONE
        )
        for count in (len(images.memory), 10_000)
    )
    assert whole.best.score == more.best.score


def test_too_few_images(tmp_path):
    with pytest.raises(UsageError, match="192 training images are fewer than one batch of 200"):
        pretrain(small_config(batch_size=200), pretraining_images(), tmp_path, ALONE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "resnet19"}, "did you mean resnet18"),
        ({"std": (0.2, 0.0, 0.2)}, "above 0"),
        ({"epochs": 3, "warmup_epochs": 3}, "must be below epochs=3"),
        ({"learning_rate": 0.1}, "learning_rate"),
        ({"views": {"hue": 0.9}}, "hue"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(ValidationError, match=message):
        small_config(**changes)


def test_the_defaults_are_the_papers():
    config = SimSiamConfig(recipe="test")
    assert config.learning_rate == pytest.approx(0.06)
    assert config.sha256() != SimSiamConfig(recipe="test", seed=1).sha256()
