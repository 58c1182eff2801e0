"""Settings of recipes for other images than their own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flows.jobs.training import Train
from model_code.data.cache import PackedDataset, PackedSplit
from model_code.errors import UsageError
from model_code.models.networks import check_image_size
from model_code.recipes.catalog import RECIPES, build_config
from model_code.training.adaptation import adapt, measure_channels

TRAINED = [name for name, entry in RECIPES.items() if entry.build().kind in ("supervised", "simsiam")]


def make_dataset(size=64, count=200):
    images_NHWC = np.random.default_rng(0).integers(0, 128, (count, size, size, 3), dtype=np.uint8)
    images_NHWC[..., 2] += 100
    split = PackedSplit(images_NHWC, np.arange(count) % 4)
    return PackedDataset("flowers", ("a", "b", "c", "d"), size, {"train": split}, "0" * 64, "drawn", Path())


def test_mean_and_deviation_are_those_of_the_pixels():
    dataset = make_dataset(8, 300)
    pixels_PC = dataset.splits["train"].images_NHWC.reshape(-1, 3) / 255
    mean, std = measure_channels(dataset)
    assert mean == pytest.approx(pixels_PC.mean(0), abs=1e-4)
    assert std == pytest.approx(pixels_PC.std(0), abs=1e-4)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("size", [64, 97])
def test_every_recipe_reads_the_images(name, size):
    changes = adapt(build_config(name), make_dataset(size, 40))
    config = build_config(name, changes=changes)
    seen = config.views.image_size if config.kind == "simsiam" else config.image_size or size
    check_image_size(config.network, seen)
    assert seen <= size
    assert config.batch_size <= 40
    assert config.mean[2] > config.mean[0]
    if config.kind == "simsiam":
        assert int(seen * config.evaluation_enlargement) == size  # what a release asks for


def test_a_recipe_that_crops_sees_the_same_share():
    own = build_config("resnet18_food10")
    assert own.image_size == 64  # of 72
    assert adapt(own, make_dataset(144))["image_size"] == 128


def test_what_is_given_stays():
    changes = adapt(build_config("fastnet_cifar10"), make_dataset(count=100), {"mean", "batch_size"})
    assert "mean" not in changes
    assert "batch_size" not in changes
    assert "std" in changes


def test_a_smaller_batch_has_a_smaller_learning_rate():
    config = build_config("resnet18_cifar10_exp4")
    changes = adapt(config, make_dataset(32, 400))
    assert (changes["batch_size"], changes["learning_rate"]) == (32, pytest.approx(0.1 * 32 / 128))
    assert "batch_size" not in adapt(config, make_dataset(8 * 4, 1600))


def test_images_that_are_too_small_are_one_line():
    message = r"cannot read images of 8 pixels; .*: pack flowers anew with --image-size, or take another recipe$"
    with pytest.raises(UsageError, match=message):
        adapt(build_config("fastnet_cifar10"), make_dataset(8))


def test_a_recipe_on_its_own_images_is_the_documented_run(tmp_path, monkeypatch):
    from model_code.data.add import add_dataset
    from model_code.settings import load_settings

    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    add_dataset("shapes", cache_dir=load_settings().cache_dir, data_dir=tmp_path, progress=False)
    smoke = Train(recipe="fastnet_cifar10", dataset="shapes", profile="smoke").config
    assert (smoke.profile, smoke.dataset) == ("smoke", "shapes")
    assert smoke.mean != build_config("fastnet_cifar10").mean
    with pytest.raises(UsageError, match="--data shapes and --set dataset=cifar10 contradict"):
        assert Train(recipe="fastnet_cifar10", dataset="shapes", settings=("dataset=cifar10",)).config
    own = replace(make_dataset(), name="cifar10")
    assert adapt(build_config("fastnet_cifar10"), own) == {"dataset": "cifar10"}
