"""Stages `study`, `fast`, `swin` and `simsiam`: whole recipes to their accuracies, with a journal of their epochs."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.proof import Figures, Stage
from model_code.data.cache import PackedDataset, PackedSplit, open_dataset
from model_code.data.sources.images import PixelSplit
from model_code.data.sources.shapes import generate_shapes
from model_code.errors import UsageError
from model_code.evaluation.metrics import measure, predict_logits
from model_code.recipes.catalog import build_config, has_setting
from model_code.training.config import TrainingConfig
from model_code.training.images import load_images, load_pretraining_images
from model_code.training.pretraining import evaluate_backbone, pretrain
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.processes import Processes
from model_code.training.results import Callback, FinishedEpoch, TrainingResult
from model_code.training.supervised import fit, load_model

NINE = tuple(f"resnet18_cifar10_exp{number if number > 1 else ''}" for number in range(1, 10))
# Seconds that the budget keeps for the evaluation after the last step.
KEPT_S = 15.0
ENGINE = {"engine.precision": "auto", "engine.kernels": "fastest", "engine.compile": "step"}
JOURNAL_FILE = "journal.jsonl"


class Journal(Callback):
    """Appends each epoch to a file, and wants to stop when the time is over; a repetition goes on."""

    def __init__(self, stage: Stage, recipe: str) -> None:
        self._stage, self._recipe = stage, recipe
        self._file = stage.folder / stage.name / JOURNAL_FILE
        self._file.parent.mkdir(parents=True, exist_ok=True)

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Look at the clock."""
        self.wants_stop = self._stage.seconds_left < KEPT_S

    def on_epoch_end(self, metrics: FinishedEpoch) -> None:
        """Write the epoch, whole, to the file."""
        line = {"time": time.time(), "run": self._recipe, "epoch": metrics.epoch, **metrics.list_metrics()}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def study(stage: Stage) -> None:
    """Train the nine runs of the ResNet-18 study."""
    for recipe in NINE:
        stage.measure(recipe, partial(_train, stage, recipe))
    done = [figures for recipe in NINE if "training_s" in (figures := stage.entries.get(recipe, {}))]
    if len(done) == len(NINE):
        stage.measure("nine runs", lambda: {name: sum(run[name] for run in done) for name in ("epochs", "training_s")})


def fast(stage: Stage) -> None:
    """Train the fast network and the strong ResNet-18."""
    for recipe in ("fastnet_cifar10", "fastnet_cifar10_long", "resnet18_cifar10_strong"):
        stage.measure(recipe, partial(_train, stage, recipe))


def swin(stage: Stage) -> None:
    """Train Swin for the article's 20 epochs."""
    stage.measure("swin_cifar10_published", lambda: _train(stage, "swin_cifar10_published"))


def simsiam(stage: Stage) -> None:
    """Pretrain SimSiam; several repetitions, each of the budget."""
    stage.measure("simsiam_cifar10", lambda: _train(stage, "simsiam_cifar10"))


def _open_images(stage: Stage, name: str) -> PackedDataset:
    if not stage.is_dry:
        return open_dataset(name, stage.cache_dir)
    shapes = generate_shapes(train_per_class=6, test_per_class=2)
    splits = {
        split: PackedSplit(pixels.images_NHWC, pixels.labels_N)
        for split, pixels in shapes.splits.items()
        if isinstance(pixels, PixelSplit)
    }
    return PackedDataset(name, shapes.classes, 32, splits, "0" * 64, shapes.description, stage.folder)


def _configure(stage: Stage, recipe: str) -> TrainingConfig | SimSiamConfig:
    small: dict[str, Any] = {
        "epochs": 1,
        "batch_size": 8,
        "warmup_epochs": 0,
        "whitening_images": 4,
        "views.image_size": 32,
    }
    small |= {"knn_neighbours": 5, "linear.epochs": 1, "linear.warmup_epochs": 0}
    if "resnet18" in str(build_config(recipe).flatten()["network"]):
        small["network"] = "resnet18"
    if not build_config(recipe).flatten().get("whitening_images"):
        del small["whitening_images"]
    changes: dict[str, Any] = ENGINE | (small if stage.is_dry else {})
    if build_config(recipe).flatten().get("pretrained_weights") == "torchvision":
        if stage.pretrained is None and not stage.is_dry:
            raise UsageError("it starts from torchvision's weights; give their file with --pretrained")
        changes["pretrained_weights"] = None if stage.pretrained is None else str(stage.pretrained)
    config = build_config(recipe, changes={key: value for key, value in changes.items() if has_setting(recipe, key)})
    assert isinstance(config, TrainingConfig | SimSiamConfig)
    return config


def _train(stage: Stage, recipe: str) -> Figures | None:
    """Train or go on; None where the time is over before the end."""
    config, processes = _configure(stage, recipe), Processes(stage.device)
    dataset = _open_images(stage, config.dataset)
    run_dir, journal = stage.folder / stage.name / recipe, Journal(stage, recipe)
    run: Callable[[], TrainingResult[Any]]
    finish: Callable[[Path], Figures]
    if isinstance(config, SimSiamConfig):
        run, finish = _prepare_pretraining(config, dataset, run_dir, processes, journal)
    else:
        run, finish = _prepare_training(config, dataset, run_dir, processes, journal)
    try:
        result = run()
    except KeyboardInterrupt:
        if not journal.wants_stop:
            raise
        return None
    best = result.best
    return {
        **finish(result.best_weights),
        "epochs": len(result.history),
        "training_s": sum(epoch.seconds for epoch in result.history),
        "images_per_s": max(epoch.pictures_per_s for epoch in result.history),
        "engine": result.engine,
        "best_epoch": result.best_epoch,
        "validation_score": best.score,
    }


def _prepare_training(
    config: TrainingConfig, dataset: PackedDataset, run_dir: Path, processes: Processes, journal: Journal
) -> tuple[Callable[[], TrainingResult[Any]], Callable[[Path], Figures]]:
    images = load_images(dataset, config, processes.device)

    def finish(weights: Path) -> Figures:
        split, chosen = images.final
        model = load_model(config, len(images.classes), images.image_size, weights).to(processes.device)
        report = measure(predict_logits(model, chosen.images_NHWC), chosen.labels_N)
        return {f"{split}_accuracy": report.accuracy_fraction, "n_images": report.count}

    return lambda: fit(config, images, run_dir, processes, [journal]), finish


def _prepare_pretraining(
    config: SimSiamConfig, dataset: PackedDataset, run_dir: Path, processes: Processes, journal: Journal
) -> tuple[Callable[[], TrainingResult[Any]], Callable[[Path], Figures]]:
    images = load_pretraining_images(dataset, config, processes.device)

    def finish(weights: Path) -> Figures:
        report = evaluate_backbone(config, weights, images, processes.device)
        return {
            f"{report.split}_knn_accuracy": report.knn_accuracy,
            f"{report.split}_linear_accuracy": report.linear.test_accuracy,
            "n_images": report.count,
        }

    return lambda: pretrain(config, images, run_dir, processes, [journal]), finish


STAGES: dict[str, Callable[[Stage], None]] = {"study": study, "fast": fast, "swin": swin, "simsiam": simsiam}
