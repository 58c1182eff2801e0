"""What each kind of run hands to the library; `flows.experiments` needs no Prefect."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import nn

from flows.experiments import open_experiment, random_features, supervised, untrained
from model_code.data.cache import PackedDataset, PackedSplit
from model_code.models.networks import NETWORKS
from model_code.recipes.catalog import build_config, has_setting
from model_code.training import epoch_loop
from model_code.training.checkpoints import save_weights
from model_code.training.probe_config import ProbeConfig
from model_code.training.processes import ALONE, Processes
from model_code.training.pseudo_labels import PseudoLabels, load_pseudo_labels
from model_code.training.random_features import RandomFeaturesResult
from model_code.training.random_features_config import RandomFeaturesConfig
from model_code.training.untrained_config import UntrainedConfig

CPU = torch.device("cpu")
RESULT = RandomFeaturesResult(0.1, 0.2, 0.3, 0.4, 3)


@dataclass
class Log:
    """A tracker that keeps what it is told."""

    metrics: dict = field(default_factory=dict)

    def log_metrics(self, metrics):
        self.metrics |= metrics


@pytest.fixture
def dataset(tmp_path):
    generator = np.random.default_rng(0)
    splits = {
        name: PackedSplit(generator.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8), np.arange(count) % 4)
        for name, count in (("train", 40), ("validation", 20), ("test", 12))
    }
    return PackedDataset("noise", ("a", "b", "c", "d"), 16, splits, "c" * 64, "drawn", tmp_path)


@pytest.fixture
def seen(monkeypatch):
    """The batches that the network `watching` was asked about."""
    batches = []

    class Watching(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.fc = nn.Linear(3, num_classes)

        def forward(self, images_BCHW):
            batches.append(images_BCHW.detach())
            return self.fc(self.norm(images_BCHW).mean((2, 3)))

    monkeypatch.setitem(NETWORKS, "watching", Watching)
    return batches


def ask_untrained(dataset, seen, **settings):
    defaults = {"recipe": "test", "dataset": "noise", "network": "watching", "image_size": 8, "batch_size": 8}
    seen.clear()
    log = Log()
    open_experiment(UntrainedConfig(**defaults | settings), dataset, ALONE, None).run(None, log)
    return torch.cat(seen), log.metrics


def test_untrained_networks_see_normalised_random_crops_of_the_validation_images(dataset, seen):
    normal, metrics = ask_untrained(dataset, seen)
    raw, _ = ask_untrained(dataset, seen, mean=(0, 0, 0), std=(1, 1, 1))
    assert normal.shape == (20, 3, 8, 8)
    assert (raw.min() >= 0, raw.max() <= 1) == (True, True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(normal, (raw - mean[:, None, None]) / std[:, None, None], atol=1e-5, rtol=0)
    whole, _ = ask_untrained(dataset, seen, crop_area=(1, 1), mean=(0, 0, 0), std=(1, 1, 1))
    assert not torch.equal(whole, raw)
    assert metrics["validation/pictures"] == 20
    few, metrics = ask_untrained(dataset, seen, limit_test=8)
    assert len(few) == metrics["validation/pictures"] == 8


@pytest.mark.parametrize(
    ("initialization", "largest_bias", "largest_weight"),
    [("own", 0.58, 0.58), ("gaussian", 0, 0.1), ("gaussian_head", 0, 0.1)],
)
def test_untrained_networks_start_as_the_config_says_and_are_counted(
    dataset, seen, monkeypatch, initialization, largest_bias, largest_weight
):
    models = []
    real = untrained.evaluate_untrained
    monkeypatch.setattr(
        untrained, "evaluate_untrained", lambda *args, **more: models.append(args[0]) or real(*args, **more)
    )
    _, metrics = ask_untrained(dataset, seen, initialization=initialization)
    [_, network] = models[0]
    assert metrics["network/parameters"] == 2 * 3 + 4 * 3 + 4
    assert 0.8 * largest_bias <= network.fc.bias.abs().max() <= largest_bias
    assert 0.2 * largest_weight < network.fc.weight.abs().max() < largest_weight


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_untrained_networks_record_their_precision(dataset, seen, precision):
    config = UntrainedConfig(recipe="test", dataset="noise", network="watching", image_size=8, precision=precision)
    assert open_experiment(config, dataset, ALONE, None).engine_line == precision


def test_random_features_are_those_of_train_and_test(dataset, seen, monkeypatch):
    asked = []
    real = random_features.measure_random_features
    monkeypatch.setattr(
        random_features,
        "measure_random_features",
        lambda *args, **options: asked.append((args, options)) or real(*args, **options),
    )
    probe = ProbeConfig(epochs=2, warmup_epochs=1, base_learning_rate=0.1)
    config = RandomFeaturesConfig(
        recipe="test",
        dataset="noise",
        network="watching",
        knn_neighbours=5,
        seed=3,
        linear=probe,
        mlp=probe.model_copy(update={"hidden_width": 4}),
    )
    results = []
    for is_calibrated in (False, True):
        log = Log()
        changed = config.model_copy(update={"is_calibrated": is_calibrated})
        open_experiment(changed, dataset, ALONE, None).run(None, log)
        results.append(log.metrics)
    for (_, train, test, classes), options in asked:
        assert np.array_equal(train.images_NHWC.numpy(), dataset.splits["train"].images_NHWC)
        assert np.array_equal(test.images_NHWC.numpy(), dataset.splits["test"].images_NHWC)
        assert classes == dataset.classes
        assert (options["neighbours"], options["seed"], options["linear"]) == (5, 3, probe)
    assert [options["is_calibrated"] for _, options in asked] == [False, True]
    assert results[0]["test/pictures"] == 12


def test_of_a_single_split_probes_learn_from_one_part_and_are_measured_on_the_other(dataset, seen, monkeypatch):
    asked = []
    monkeypatch.setattr(random_features, "measure_random_features", lambda *args, **_: asked.append(args) or RESULT)
    numbers_N = np.arange(60, dtype=np.uint8)
    images_NHWC = np.ascontiguousarray(np.broadcast_to(numbers_N[:, None, None, None], (60, 16, 16, 3)))
    alone = replace(dataset, splits={"validation": PackedSplit(images_NHWC, np.arange(60) % 4)})
    config = RandomFeaturesConfig(recipe="test", dataset="noise", network="watching", batch_size=8)
    for changes in ({}, {"limit_train": 8, "limit_test": 4}):
        log = Log()
        open_experiment(config.model_copy(update=changes), alone, ALONE, None).run(None, log)
    (_, train, test, _), (_, few_train, few_test, _) = asked
    learned, measured = (set(part.images_NHWC[:, 0, 0, 0].tolist()) for part in (train, test))
    assert (len(learned), len(measured), learned & measured) == (48, 12, set())
    assert test.labels_N.bincount().tolist() == [3] * 4
    assert (few_train.labels_N.bincount().tolist(), few_test.labels_N.bincount().tolist()) == ([2] * 4, [1] * 4)
    assert set(few_train.images_NHWC[:, 0, 0, 0].tolist()) <= learned
    assert log.metrics["network/parameters"] == 2 * 3


def test_pseudo_labels_are_those_of_the_network_that_is_started_from(dataset, tmp_path, monkeypatch, capsys):
    class Constant(nn.Module):
        """Answers the class of its largest bias, to every image."""

        def __init__(self, num_classes):
            super().__init__()
            self.fc = nn.Linear(3, num_classes)

        def forward(self, images_BCHW):
            return self.fc(0 * images_BCHW.mean((2, 3)))

    monkeypatch.setitem(NETWORKS, "constant", Constant)
    network = Constant(4)
    network.fc.bias.data = torch.tensor([0.0, 0, 9, 0])
    save_weights(network.state_dict(), tmp_path / "best.safetensors")
    changes = {"dataset": "noise", "limit_train": 16, "network": "constant", "pseudo_label_confidence": 0.95}
    changes |= {"pretrained_weights": "recipe:resnet18_cifar10_exp", "batch_size": 8}
    config = build_config("resnet18_cifar10_exp2", "smoke", changes)
    weights = str(tmp_path / "best.safetensors")
    experiment = open_experiment(config, dataset, ALONE, weights)
    assert experiment.images_line.startswith("16 training, 24 unlabelled, 20 validation")
    experiment.train(tmp_path / "new", [])
    assert experiment._images.train.labels_N[16:].tolist() == [2] * 24
    assert load_pseudo_labels(tmp_path / "new").labels_N.tolist() == [2] * 24
    assert "pseudo-labels for 24 of 24 images" in capsys.readouterr().out

    PseudoLabels(torch.tensor([0, 5]), torch.tensor([1, 3])).save(tmp_path / "run")
    monkeypatch.setattr(supervised, "choose_pseudo_labels", lambda *_: pytest.fail("chosen again"))
    resumed = open_experiment(config, dataset, ALONE, weights)
    resumed.train(tmp_path / "run", [])
    assert resumed._images.train.labels_N[16:].tolist() == [1, 3], "a resumed run learns from those that it has"


def test_an_experiment_is_opened_without_the_other_processes(dataset, tmp_path):
    """Under torchrun the others open theirs when the first one has opened its own and made the run's folder."""
    changes = {"dataset": "noise", "limit_train": 16, "pseudo_label_confidence": 0.95, "batch_size": 8}
    config = build_config(
        "resnet18_cifar10_exp2", "smoke", changes | {"pretrained_weights": "recipe:resnet18_cifar10_exp"}
    )
    assert open_experiment(config, dataset, Processes(CPU, rank=0, count=2), str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize("kind", ["supervised", "simsiam"])
def test_the_engine_is_chosen_once(kind, dataset, tmp_path, monkeypatch):
    """The loop takes the engine that the line at the start describes."""

    def refuse(*_):
        raise AssertionError("chosen again")

    recipe = {"supervised": "resnet18_cifar10_exp2", "simsiam": "simsiam_cifar10"}[kind]
    changes = {"dataset": "noise", "epochs": 1, "batch_size": 8, "knn_neighbours": 4, "views.image_size": 16}
    changes |= {"network": "resnet18", "linear.epochs": 1, "linear.warmup_epochs": 0, "warmup_epochs": 0}
    known = {key: value for key, value in changes.items() if has_setting(recipe, key)}
    experiment = open_experiment(build_config(recipe, "smoke", known), dataset, ALONE, None)
    monkeypatch.setattr(epoch_loop, "choose_engine", refuse)
    assert experiment.train(tmp_path, []).history
