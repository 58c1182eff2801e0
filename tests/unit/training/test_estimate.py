"""The estimate of a run's time: what it counts, and its distance from the time that a training takes."""

import time

import pytest
import torch

from model_code.data.add import add_dataset
from model_code.recipes.catalog import build_config
from model_code.training import estimate
from model_code.training.estimate import estimate_seconds
from model_code.training.images import load_images
from model_code.training.processes import ALONE
from model_code.training.supervised import fit

RATE = 100.0


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimate")
    return add_dataset("shapes", cache_dir=folder / "cache", data_dir=folder / "data", progress=False).dataset


def count(dataset):
    return {name: len(split.labels_N) for name, split in dataset.splits.items()}


@pytest.fixture
def _known_rate(monkeypatch):
    monkeypatch.setattr(estimate, "measure_images_per_s", lambda name, size, batch, precision, is_trained: RATE)


@pytest.mark.usefixtures("_known_rate")
@pytest.mark.parametrize(
    ("recipe", "changes", "passes"),
    [
        # 3,000 training images of which a fifth is held out, 1,000 test images.
        ("resnet18_cifar10_exp", {"epochs": 5}, 5 * 3000 + 1000),
        ("resnet18_cifar10_exp", {"epochs": 5, "limit_train": 500, "limit_test": 10}, 5 * 500 + 10),
        ("fastnet_cifar10", {"epochs": 2, "batch_size": 64, "validation_fraction": 0.2}, 2 * 3000 + 6 * 1000),
        ("simsiam_cifar10", {"epochs": 20, "network": "resnet18"}, 20 * 2 * 3000 + 3 * 3000 + 1000),
        ("resnet18_cifar10_random", {}, 4000),
        ("pixels_cifar10_random", {}, 0),
    ],
)
def test_every_pass_of_an_image_counts(shapes, recipe, changes, passes):
    config = build_config(recipe, changes={"dataset": "shapes", **changes})
    assert estimate_seconds(config, count(shapes), 32) == pytest.approx(passes / RATE)


@pytest.mark.usefixtures("_known_rate")
def test_an_interrupted_run_takes_the_epochs_that_are_left(shapes):
    config = build_config("resnet18_cifar10_exp", changes={"dataset": "shapes", "epochs": 5})
    assert estimate_seconds(config, count(shapes), 32, 4) == pytest.approx((3000 + 1000) / RATE)
    config = build_config("simsiam_cifar10", changes={"dataset": "shapes", "epochs": 20, "network": "resnet18"})
    left = estimate_seconds(config, count(shapes), 32, 10)
    assert left == pytest.approx((10 * 2 * 3000 + 2 * 3000 + 1000) / RATE)


@pytest.mark.usefixtures("_known_rate")
def test_limits_hold_for_unlabelled_and_validation_images_too():
    sizes = {"train": 500, "unlabelled": 3000, "validation": 400, "test": 300}
    small = {"limit_train": 200, "limit_test": 50}
    pretrained = build_config("simsiam_food11", changes={"epochs": 2, "monitor_every_epochs": 2, **small})
    assert estimate_seconds(pretrained, sizes, 64) == pytest.approx((2 * 2 * 200 + 2 * 200 + 50) / RATE)
    supervised = build_config("resnet18_food11", changes={"epochs": 2, **small})
    assert estimate_seconds(supervised, sizes, 64) == pytest.approx((2 * (200 + 50) + 50) / RATE)


@pytest.mark.slow
def test_an_estimate_is_near_the_time_that_a_training_takes(shapes, tmp_path):
    config = build_config(
        "resnet18_cifar10_exp3_nopool",
        changes={"dataset": "shapes", "epochs": 1, "limit_train": 600, "limit_test": 10, "batch_size": 50},
    )
    estimate.measure_images_per_s.cache_clear()
    estimated_s = estimate_seconds(config, count(shapes), 32)
    start_s = time.perf_counter()
    fit(config, load_images(shapes, config, ALONE.device), tmp_path, ALONE)
    assert 0.2 < estimated_s / (time.perf_counter() - start_s) < 5


def test_training_takes_longer_than_answering():
    estimate.measure_images_per_s.cache_clear()
    rates = [
        estimate.measure_images_per_s("resnet18", 32, 8, torch.float32, is_trained) for is_trained in (True, False)
    ]
    assert rates[0] < rates[1]


@pytest.mark.parametrize(
    ("device", "batch_size", "batch"), [("cpu", 128, 8), ("cpu", 4, 4), ("cuda", 128, 128), ("cuda", 1024, 256)]
)
def test_the_measured_batch_is_the_runs_as_far_as_the_device_gains_from_it(monkeypatch, device, batch_size, batch):
    measured = []
    config = build_config("resnet18_cifar10_exp", changes={"batch_size": batch_size})
    engine = estimate.choose_engine(config, ALONE)
    monkeypatch.setattr(estimate, "choose_device", lambda _: torch.device(device))
    monkeypatch.setattr(estimate, "choose_engine", lambda *_: engine)
    monkeypatch.setattr(estimate, "measure_images_per_s", lambda *given: measured.append(given[2]) or RATE)
    estimate_seconds(config, {"train": 10, "test": 10}, 32)
    assert measured == [batch, batch]


def test_a_batch_that_does_not_fit_into_the_memory_is_halved(monkeypatch):
    build, built = estimate.build_network, []

    def build_small(*arguments):
        network = build(*arguments)
        network.register_forward_pre_hook(refuse)
        return network

    def refuse(_, inputs):
        built.append(len(inputs[0]))
        if len(inputs[0]) > 16:
            raise torch.OutOfMemoryError("full")

    estimate.measure_images_per_s.cache_clear()
    monkeypatch.setattr(estimate, "build_network", build_small)
    assert estimate.measure_images_per_s("resnet18", 32, 64, torch.float32, False) > 0
    assert built[:3] == [64, 32, 16]
