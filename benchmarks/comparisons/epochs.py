"""Whole epochs with their data, the articles' loops beside ours, and what a checkpoint costs beside an epoch."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks import contenders
from benchmarks.comparison import OURS, SECONDS, Comparison
from benchmarks.workload import BATCH, NETWORK, WORKERS, draw_images, save_images, time_once
from model_code.models.networks import build_network
from model_code.recipes.catalog import build_config
from model_code.training.checkpoints import LAST_FILE, best_file, load_state, load_weights, save_state, save_weights
from model_code.training.images import Images, PretrainingImages, TrainingImages
from model_code.training.pretraining import build_simsiam, pretrain
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.processes import Processes
from model_code.training.supervised import fit

IMAGES = 1280
FULL_EPOCH = 40_000
CLASSES = tuple("abcdefghij")
Train = Callable[[DataLoader[Any], nn.Module, torch.device], float]


def compare_supervised(device: torch.device, scratch: Path) -> Comparison:
    """One epoch of the ResNet article."""
    config, images = _supervised_run(device)

    def ours() -> float:
        with tempfile.TemporaryDirectory(dir=scratch) as run_dir:
            return fit(config, images, Path(run_dir), Processes(device)).history[0].pictures_per_s

    transform = contenders.torchvision_v1(contenders.crop_steps(transforms))
    return _compare(ours, transform, contenders.train_supervised, lambda: build_network(NETWORK, 10), device, scratch)


def compare_simsiam(device: torch.device, scratch: Path) -> Comparison:
    """One epoch of the SimSiam article."""
    learned = _draw_images(device)
    few = Images(learned.images_NHWC[:10], learned.labels_N[:10])
    images = PretrainingImages(learned.images_NHWC, few, few, few, None, CLASSES)
    changes = {"epochs": 1, "network": NETWORK, "batch_size": BATCH, "knn_neighbours": 5}
    config = build_config("simsiam_cifar10", changes=changes)
    assert isinstance(config, SimSiamConfig)

    def ours() -> float:
        with tempfile.TemporaryDirectory(dir=scratch) as run_dir:
            return pretrain(config, images, Path(run_dir), Processes(device)).history[0].pictures_per_s

    transform = contenders.twice(contenders.torchvision_v1(contenders.view_steps(transforms)))
    return _compare(ours, transform, contenders.train_simsiam, lambda: build_simsiam(config), device, scratch)


def compare_checkpoint(device: torch.device, scratch: Path) -> Comparison:
    """The files that an epoch leaves, best and last weights and state with momentum, beside the epoch itself."""
    config, images = _supervised_run(device)
    run_dir = scratch / "run"
    result = fit(config, images, run_dir, Processes(device))
    state = load_state(run_dir, config.sha256())
    assert state is not None
    network = build_network(NETWORK, 10).to(device)
    load_weights(network, result.last_weights)

    def save() -> None:
        save_weights(network.state_dict(), best_file(run_dir, 1))
        save_weights(network.state_dict(), run_dir / LAST_FILE)
        save_state(run_dir, state)

    def train() -> float:
        with tempfile.TemporaryDirectory(dir=scratch) as other_dir:
            return FULL_EPOCH / fit(config, images, Path(other_dir), Processes(device)).history[0].pictures_per_s

    epoch = f"epoch of {FULL_EPOCH:,} images"
    found = {"checkpoint": lambda: time_once(save, device), epoch: train}
    notes = {
        "checkpoint": "best and last weights and state.pt, on the disk of temporary files",
        epoch: f"from the images/s of {IMAGES:,}",
    }
    return Comparison(SECONDS, found, notes, wholes=(epoch,))


def _compare(
    ours: Callable[[], float],
    transform: contenders.View,
    train: Train,
    build: Callable[[], nn.Module],
    device: torch.device,
    scratch: Path,
) -> Comparison:
    """Our epoch beside an article's, whose images are files."""
    images_NHWC = draw_images(IMAGES)
    labels = [index % 10 for index in range(IMAGES)]
    dataset = contenders.ImageFiles(save_images(images_NHWC, scratch / "images"), labels, transform)

    def theirs(workers: int) -> float:
        loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers)
        return train(loader, build().to(device), device)

    found = {
        OURS: ours,
        "the article's loop": lambda: theirs(0),
        "the article's loop, 2 workers": lambda: theirs(WORKERS),
    }
    return Comparison("images/s", found)


def _supervised_run(device: torch.device) -> tuple[Any, TrainingImages]:
    learned = _draw_images(device)
    asked = Images(learned.images_NHWC[:10], learned.labels_N[:10])
    config = build_config("resnet18_cifar10_exp2", changes={"epochs": 1, "network": NETWORK})
    return config, TrainingImages(learned, asked, None, CLASSES, "random")


def _draw_images(device: torch.device) -> Images:
    return Images(draw_images(IMAGES).to(device), torch.arange(IMAGES, device=device) % 10)
