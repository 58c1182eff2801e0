"""Training from disk: one order whatever reads it, exact resume, damage by name, and memory that does not grow."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from model_code.data import disk_images, shards
from model_code.data.cache import open_dataset
from model_code.data.disk_images import DiskImages
from model_code.data.packing import pack_dataset
from model_code.data.sources.images import ImageSource, PixelSplit
from model_code.errors import DataError, UsageError
from model_code.evaluation.metrics import predict_logits
from model_code.training.images import load_images, load_pretraining_images
from model_code.training.pretraining import evaluate_backbone, pretrain
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.processes import ALONE
from model_code.training.results import Callback
from model_code.training.run_config import override
from model_code.training.supervised import build_model, fit, load_model
from tests.unit.training.small_runs import CLASSES, CPU, draw_images, make_config

SIDE = 8
ROW_BYTES = 3 * SIDE**2
COUNT = 150


@pytest.fixture
def small_files(monkeypatch):
    """Three images in a block, four blocks in a shard, about 24 images in a window."""
    monkeypatch.setattr(shards, "BLOCK_BYTES", 3 * ROW_BYTES)
    monkeypatch.setattr(shards, "SHARD_BYTES", 12 * ROW_BYTES)
    monkeypatch.setattr(disk_images, "WINDOW_BYTES", 24 * ROW_BYTES)


def pack(root, splits, name="pets"):
    source = ImageSource("drawn", CLASSES, {split: PixelSplit(*content) for split, content in splits.items()})
    side = splits["train"][0].shape[1]
    return pack_dataset(
        name, source, image_size=side, source_fingerprint="f", cache_dir=root / "cache", is_progress_shown=False
    )


@pytest.fixture
def dataset(tmp_path, small_files):
    """Images class by class, as folders have them; the first pixel is the image's number."""
    drawn = draw_images(COUNT)
    order = torch.argsort(drawn.labels_N, stable=True)
    images_NHWC = drawn.images_NHWC[order].numpy()
    images_NHWC[:, 0, 0, 0] = np.arange(COUNT)
    return pack(tmp_path, {"train": (images_NHWC, drawn.labels_N[order].numpy())})


def from_disk(readers=1, **settings):
    return make_config(dataset="pets", engine={"pictures": "disk", "readers": readers}, **settings)


def list_weights(run_dir):
    return {file.name: file.read_bytes() for file in run_dir.glob("*.safetensors")}


def read_numbers(images_NHWC):
    return images_NHWC[:, 0, 0, 0].tolist()


class Stop(Callback):
    """Wants the run to stop after a step."""

    def __init__(self, epoch, step):
        self.place, self.wants_stop = (epoch, step), False

    def on_step(self, epoch, step, steps, loss):
        self.wants_stop = (epoch, step) == self.place


def test_images_on_disk_are_those_in_memory(dataset):
    for settings in ({}, {"limit_train": 60}):
        resident = load_images(dataset, make_config(**settings), CPU)
        disk = load_images(dataset, from_disk(**settings), CPU)
        for one, other in ((resident.train, disk.train), (resident.validation, disk.validation)):
            assert isinstance(other.images_NHWC, DiskImages)
            assert torch.equal(other.read(), one.images_NHWC)
            assert torch.equal(other.labels_N, one.labels_N)
            assert (len(other), other.images_NHWC.shape) == (len(one), tuple(one.images_NHWC.shape))
            assert other.images_NHWC.nbytes == one.images_NHWC.nbytes
            assert torch.equal(other.take(slice(3, 9)).read(), one.images_NHWC[3:9])
        model = build_model(make_config(), 4, SIDE)
        logits = [predict_logits(model, one.validation.images_NHWC) for one in (resident, disk)]
        assert torch.equal(*logits)


def test_an_order_visits_every_image_once_and_every_block_in_one_window(dataset):
    images = load_images(dataset, from_disk(validation_fraction=0.1), CPU).train.images_NHWC
    orders = []
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        orders.append(images.shuffle_in_windows(torch.randperm(len(images), generator=generator), 8, generator))
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    order_N = orders[0]
    assert sorted(order_N.tolist()) == list(range(len(images)))
    rows_N = torch.tensor(read_numbers(images[order_N].to("cpu")))
    windows = [set((window_N // 3).tolist()) for window_N in rows_N.split(24)]
    # 50 blocks; at most one is cut in two at the end of a window.
    assert sum(map(len, windows)) <= 50 + len(windows) - 1
    # A window's blocks lie all over the set, where images of a class lie side by side.
    assert all(len({row // 38 for row in window_N.tolist()}) >= 3 for window_N in rows_N.split(24)[:-1])
    inside = rows_N[:24]
    assert not torch.equal(inside, inside.sort().values)


@pytest.mark.parametrize("first", [0, 2, 3, 7])
def test_readers_yield_the_same_batches(dataset, first):
    images = load_images(dataset, from_disk(), CPU).train.images_NHWC
    order_N = images.shuffle_in_windows(torch.randperm(len(images)), 8, torch.Generator().manual_seed(0))
    expected = images[order_N].to("cpu")
    for readers in (1, 3):
        batches = list(images.iterate_batches(order_N, 8, first, readers))
        assert len(batches) == len(images) // 8 - first
        assert torch.equal(torch.cat(batches), expected[8 * first : len(images) // 8 * 8])


def test_any_order_can_be_read(dataset):
    images = load_images(dataset, from_disk(), CPU).train.images_NHWC
    order_N = torch.randint(len(images), (len(images),))
    batches = torch.cat(list(images.iterate_batches(order_N, 8, 1, 2)))
    assert torch.equal(batches, images[order_N].to("cpu")[8:120])


def test_one_order_for_one_and_three_readers_and_resume_in_the_middle_of_an_epoch(dataset, tmp_path):
    images = load_images(dataset, from_disk(), CPU)
    fit(from_disk(), images, tmp_path / "one", ALONE)
    fit(from_disk(readers=3), images, tmp_path / "three", ALONE)
    for epoch, step in ((1, 4), (2, 11), (3, 15)):
        with pytest.raises(KeyboardInterrupt):
            fit(from_disk(), images, tmp_path / "parts", ALONE, [Stop(epoch, step)])
    fit(from_disk(), load_images(dataset, from_disk(), CPU), tmp_path / "parts", ALONE)
    expected = list_weights(tmp_path / "one")
    assert list_weights(tmp_path / "three") == expected == list_weights(tmp_path / "parts")
    fit(make_config(), load_images(dataset, make_config(), CPU), tmp_path / "resident", ALONE)
    assert list_weights(tmp_path / "resident") != expected


def test_every_setting_that_looks_at_images_works_from_disk(dataset, tmp_path):
    config = from_disk(epochs=2, sampling="balanced", flip="alternating", has_flip_averaging=True)
    images = load_images(dataset, config, CPU)
    result = fit(config, images, tmp_path / "run", ALONE)
    model = load_model(config, 4, SIDE, result.best_weights)
    assert predict_logits(model, images.validation.images_NHWC).shape == (len(images.validation), 4)


def test_pretraining_from_disk(dataset, tmp_path):
    weights, reports = [], []
    for name, engine in {
        "one": {"engine.pictures": "disk"},
        "three": {"engine.pictures": "disk", "engine.readers": 3},
    }.items():
        config = SimSiamConfig(recipe="t", dataset="pets", network="resnet18", epochs=1, batch_size=16, device="cpu")
        small = {"views.image_size": 8, "knn_neighbours": 4, "linear.epochs": 1, "linear.warmup_epochs": 0}
        config = override(config, {"limit_train": 40, "linear_crop_area": (0.5, 1), **small, **engine})
        images = load_pretraining_images(dataset, config, CPU)
        assert isinstance(images.images_NHWC, DiskImages)
        result = pretrain(config, images, tmp_path / name, ALONE)
        weights.append(list_weights(tmp_path / name))
        reports.append(evaluate_backbone(config, result.best_weights, images, CPU).list_metrics())
    assert weights[0] == weights[1]
    resident = load_pretraining_images(dataset, override(config, {"engine.pictures": "resident"}), CPU)
    reports.append(evaluate_backbone(config, result.best_weights, resident, CPU).list_metrics())
    assert reports[0] == reports[1] == reports[2]


def test_a_flipped_byte_ends_the_training_and_is_named(dataset, tmp_path, monkeypatch):
    file = dataset.path / "train-images-00003.npy"
    content = bytearray(file.read_bytes())
    content[200] ^= 4
    file.write_bytes(content)
    images = load_images(open_dataset("pets", tmp_path / "cache"), from_disk(), CPU)
    with pytest.raises(
        DataError, match=r"'pets' is damaged \(.*train-images-00003\.npy: images 0 to 2 .*data add pets"
    ):
        fit(from_disk(), images, tmp_path / "run", ALONE)
    monkeypatch.setattr(shards, "_DENSE_SHARE", 0.5)  # one image of three is read by itself
    with pytest.raises(DataError, match=r"train-images-00003\.npy: images 0 to 2 "):
        open_dataset("pets", tmp_path / "cache").splits["train"].shards[[37]]


def test_pseudo_labels_from_disk_are_refused():
    config = make_config(pseudo_label_confidence=0.9, pretrained_weights="recipe:tiny")
    with pytest.raises(
        UsageError, match=r"^engine\.pictures=disk goes without pseudo-labels.*engine\.pictures=streamed$"
    ):
        override(config, {"engine.pictures": "disk"})


MEMORY_SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
from model_code.data import disk_images, shards
shards.BLOCK_BYTES, shards.SHARD_BYTES, disk_images.WINDOW_BYTES = 2**16, 2**21, 2**21
from model_code.data.cache import open_dataset
from model_code.training.images import load_images
from model_code.training.processes import ALONE
from model_code.training.supervised import fit
from tests.unit.training.small_runs import CPU, make_config, tiny_network_entered

def read_peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

with tiny_network_entered():
    for run, name in enumerate(("few", "few", "many")):
        config = make_config(dataset=name, batch_size=256, epochs=1, engine={"pictures": sys.argv[2], "readers": 2})
        images = load_images(open_dataset(name, Path(sys.argv[1])), config, CPU)
        fit(config, images, Path(sys.argv[1]) / f"{sys.argv[2]}-{run}", ALONE)
        print(json.dumps([images.train.images_NHWC.nbytes, read_peak()]))
"""


@pytest.mark.parametrize("place", ["disk", "resident"])
def test_memory_does_not_grow_with_the_images_on_disk(tmp_path, monkeypatch, place):
    """123 MB of images after 8 MB of them, in windows of 2 MB."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 2**21)
    monkeypatch.setattr(shards, "BLOCK_BYTES", 2**16)
    draw = np.random.default_rng(0)
    for name, count in (("few", 2_500), ("many", 40_000)):
        images_NHWC = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        pack(tmp_path, {"train": (images_NHWC, np.arange(count) % 4)}, name)
    printed = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, tmp_path / "cache", place], check=True, capture_output=True, text=True
    ).stdout
    _, (few_bytes, few_peak), (many_bytes, many_peak) = map(json.loads, printed.splitlines())
    grown = (many_peak - few_peak) / (many_bytes - few_bytes)
    # The network's own memory grows by up to 30 MB in its first steps.
    assert (grown < 0.5) is (place == "disk"), grown
