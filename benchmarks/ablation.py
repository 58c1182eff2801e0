"""Ablation of FastNet: the recipe with one part off at a time, at a short budget, over several seeds.

    python -m benchmarks.ablation [--seeds N] [--images N] [--epochs N] [--batch N] [--out FILE]

The images are the data set cifar10 under DARKROOM_HOME.
Prints a table: mean test accuracy, the difference to the whole recipe paired by seed with a 95 % interval, seconds.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from model_code.data.cache import open_dataset
from model_code.evaluation.metrics import measure, predict_logits
from model_code.recipes.catalog import build_config
from model_code.settings import load_settings
from model_code.training.config import TrainingConfig
from model_code.training.device import describe_device
from model_code.training.engine import choose_engine
from model_code.training.images import TrainingImages, load_images
from model_code.training.processes import ALONE
from model_code.training.supervised import fit, load_model

RECIPE = "fastnet_cifar10"
RECIPE_BATCH, RECIPE_RATE = 1024, 1.5
WHOLE = "whole recipe"
PARTS: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "without whitened first convolution": {"whitening_images": 0},
    "without partial identity": {"has_partial_identity": False},
    "random instead of alternating flips": {"flip": "random"},
    "without flips": {"has_flip": False, "flip": "random"},
    "without translation": {"crop_padding_pixels": 0},
    "black instead of reflected border": {"crop_border": "black"},
    "trained BatchNorm scales": {"has_frozen_norm_scale": False},
    "BatchNorm biases at the rate of all": {"norm_bias_rate_factor": 1},
    "without label smoothing": {"label_smoothing": 0},
    "constant instead of triangular rate": {"schedule": "multistep"},
    "without Lookahead": {"has_lookahead": False},
    "one view instead of six": {"has_flip_averaging": False, "shift_averaging_pixels": 0},
    "float32 instead of bfloat16": {"engine.precision": "float32"},
}


def configure(changes: dict[str, Any]) -> TrainingConfig:
    """Return the recipe's settings with changes."""
    config = build_config(RECIPE, changes=changes)
    assert isinstance(config, TrainingConfig)
    return config


def load_tested(config: TrainingConfig) -> TrainingImages:
    """Return the images of a training, which need labelled test images."""
    images = load_images(open_dataset(config.dataset, load_settings().cache_dir), config, ALONE.device)
    if images.test is None:
        raise SystemExit(f"{config.dataset} has no test images with labels; add them: darkroom data add")
    return images


def train_once(config: TrainingConfig, images: TrainingImages) -> tuple[float, float]:
    """Return test accuracy and the seconds of processor time that the training took."""
    assert images.test is not None, "load_tested asks for them"
    start_s = time.process_time()
    with tempfile.TemporaryDirectory() as run_dir:
        training = fit(config, images, Path(run_dir), ALONE)
        seconds = time.process_time() - start_s
        model = load_model(config, len(images.classes), images.image_size, training.best_weights)
        report = measure(predict_logits(model, images.test.images_NHWC), images.test.labels_N)
    return report.accuracy_fraction, seconds


def summarise(name: str, runs: list[tuple[float, float]], whole: list[tuple[float, float]]) -> dict[str, Any]:
    """Return mean accuracy, the paired difference to the whole recipe with its 95 % interval, and median seconds."""
    accuracies = [accuracy for accuracy, _ in runs]
    differences = [accuracy - other for accuracy, (other, _) in zip(accuracies, whole, strict=True)]
    half = float("nan")  # one seed has no spread
    if len(runs) > 1:
        half = student.ppf(0.975, len(runs) - 1) * statistics.stdev(differences) / len(runs) ** 0.5
    mean = statistics.mean(differences)
    return {
        "part": name,
        "n": len(runs),
        "accuracies": accuracies,
        "accuracy": statistics.mean(accuracies),
        "difference": mean,
        "interval": (mean - half, mean + half),
        "cpu_seconds": statistics.median(seconds for _, seconds in runs),
    }


def add_budget_options(parser: argparse.ArgumentParser) -> None:
    """Add what the budget of short trainings is made from, and the file for the results."""
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=6000, help="training images")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=256, help="the learning rate goes with it")
    parser.add_argument("--out", type=Path, help="JSON file")


def read_budget(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a short training."""
    return {
        "limit_train": options.images,
        "epochs": options.epochs,
        "batch_size": options.batch,
        "learning_rate": RECIPE_RATE * options.batch / RECIPE_BATCH,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_budget_options(parser)
    options = parser.parse_args()
    budget = read_budget(options)
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in PARTS}
    for seed in range(options.seeds):
        for name, changes in PARTS.items():
            config = configure({**budget, **changes, "seed": seed})
            runs[name].append(train_once(config, load_tested(config)))
            print(f"seed {seed}  {name}: {runs[name][-1][0]:.4f}, {runs[name][-1][1]:.0f} s", flush=True)
            rows = [summarise(one, found, runs[WHOLE][: len(found)]) for one, found in runs.items() if found]
            if options.out:
                engine = choose_engine(configure({}), ALONE).describe()
                machine = f"{describe_device(ALONE.device)}, torch {torch.__version__}, {engine}"
                options.out.write_text(json.dumps({"machine": machine, "budget": budget, "rows": rows}, indent=1))
    table = Table("part", "n", "test accuracy", "difference (95 % CI)", "CPU seconds", box=box.SIMPLE_HEAD)
    for row in rows:
        low, high = row["interval"]
        difference = "" if row["part"] == WHOLE else f"{row['difference']:+.2%} ({low:+.2%} to {high:+.2%})"
        table.add_row(row["part"], str(row["n"]), f"{row['accuracy']:.2%}", difference, f"{row['cpu_seconds']:.0f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
