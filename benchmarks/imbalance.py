"""Class weights, balanced sampling and fine-tuning on a 1:100 long-tailed set, beside the plain run.

    python -m benchmarks.imbalance [--seeds N] [--images N] [--epochs N] [--out FILE]

The images are the data set cifar10 under DARKROOM_HOME: five classes make the long-tailed set, whose images a seed
chooses; fine-tuned runs start from a network that has learned the other five classes.
Prints a table: macro-F1 on balanced test images, the difference to the plain run paired by seed with a 95 % interval.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from model_code.data.cache import PackedDataset, PackedSplit, open_dataset
from model_code.evaluation.metrics import Report, measure, predict_logits
from model_code.recipes.catalog import build_config
from model_code.report.verdicts import measure_interval
from model_code.settings import load_settings
from model_code.training.config import TrainingConfig
from model_code.training.device import describe_device
from model_code.training.images import load_images
from model_code.training.processes import ALONE
from model_code.training.supervised import fit, load_model

RECIPE = "fastnet_cifar10"
RECIPE_BATCH, RECIPE_RATE = 1024, 1.5
TAIL_CLASSES = ("automobile", "cat", "dog", "horse", "truck")
OTHER_CLASSES = ("airplane", "bird", "deer", "frog", "ship")
IMBALANCE = 100
VALIDATION_IMAGES = 20
BATCH = 64
# The same for all: what pretrained weights would replace is left out, and so are the averaged views, for time.
COMMON: dict[str, Any] = {
    "batch_size": BATCH,
    "learning_rate": RECIPE_RATE * BATCH / RECIPE_BATCH,
    "whitening_images": 0,
    "has_partial_identity": False,
    "has_frozen_norm_scale": False,
    "norm_bias_rate_factor": 1,
    "has_flip_averaging": False,
    "shift_averaging_pixels": 0,
}
PLAIN = "plain"
WEIGHTS = {"class_weights": "balanced"}
SAMPLING = {"sampling": "balanced"}
# The file of pretrained weights is added.
FINE_TUNED = {"backbone_rate_factor": 0.1}
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "class weights": WEIGHTS,
    "balanced sampling": SAMPLING,
    "fine-tuned": FINE_TUNED,
    "fine-tuned, class weights": FINE_TUNED | WEIGHTS,
}


def count_tail(most: int, classes: int) -> list[int]:
    """Return the images of each class, falling exponentially to a hundredth (Cui et al. 2019, arXiv:1901.05555)."""
    return [round(most * IMBALANCE ** (-label / (classes - 1))) for label in range(classes)]


def take_classes(dataset: PackedDataset, classes: tuple[str, ...], counts: list[int], seed: int) -> PackedDataset:
    """Return some classes of a data set: so many training images of each, a few for validation, all test images."""
    random = np.random.default_rng(seed)
    numbers = [dataset.classes.index(name) for name in classes]
    train_labels_N = dataset.splits["train"].labels_N
    drawn = [random.permutation(np.flatnonzero(train_labels_N == number)) for number in numbers]
    chosen = {
        "train": [
            rows[VALIDATION_IMAGES : VALIDATION_IMAGES + count] for rows, count in zip(drawn, counts, strict=True)
        ],
        "validation": [rows[:VALIDATION_IMAGES] for rows in drawn],
        "test": [np.flatnonzero(dataset.splits["test"].labels_N == number) for number in numbers],
    }
    splits = {
        name: _take_rows(dataset.splits["test" if name == "test" else "train"], rows) for name, rows in chosen.items()
    }
    return replace(dataset, classes=classes, splits=splits)


def _take_rows(split: PackedSplit, rows_by_label: list[npt.NDArray[np.int64]]) -> PackedSplit:
    labels_N = np.repeat(np.arange(len(rows_by_label)), [len(rows) for rows in rows_by_label])
    return PackedSplit(split.images_NHWC[np.concatenate(rows_by_label)], labels_N)


def train_once(dataset: PackedDataset, changes: Mapping[str, Any], run_dir: Path) -> tuple[Report, Path]:
    """Return the report on the test images, and the weights."""
    config = build_config(RECIPE, changes=COMMON | dict(changes))
    assert isinstance(config, TrainingConfig)
    images = load_images(dataset, config, ALONE.device)
    assert images.test is not None, "take_classes keeps them"
    training = fit(config, images, run_dir, ALONE)
    model = load_model(config, len(images.classes), images.image_size, training.best_weights)
    return measure(predict_logits(model, images.test.images_NHWC), images.test.labels_N), training.best_weights


def summarise(name: str, reports: list[Report], plain: list[Report]) -> dict[str, Any]:
    """Return means over the seeds, and the paired difference of macro-F1 to the plain runs with its 95 % interval."""
    differences = [one.macro_f1 - other.macro_f1 for one, other in zip(reports, plain, strict=True)]
    return {
        "variant": name,
        "n": len(reports),
        "macro_f1s": [one.macro_f1 for one in reports],
        "macro_f1": statistics.mean(one.macro_f1 for one in reports),
        "accuracy": statistics.mean(one.accuracy_fraction for one in reports),
        "rarest_recall": statistics.mean(one.per_class_accuracy[-1] for one in reports),
        "difference": statistics.mean(differences),
        "interval": measure_interval(differences) if len(differences) > 1 else None,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000, help="training images of the most frequent class")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    dataset = open_dataset("cifar10", load_settings().cache_dir)
    counts = count_tail(options.images, len(TAIL_CLASSES))
    reports: dict[str, list[Report]] = {name: [] for name in VARIANTS}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        others = take_classes(dataset, OTHER_CLASSES, [options.images] * len(OTHER_CLASSES), seed=0)
        report, pretrained = train_once(others, {"epochs": options.epochs, "seed": 0}, Path(scratch) / "pretrained")
        print(f"pretrained on the other classes: accuracy {report.accuracy_fraction:.4f}", flush=True)
        for seed in range(options.seeds):
            tail = take_classes(dataset, TAIL_CLASSES, counts, seed)
            for name, changes in VARIANTS.items():
                changed = changes | {"epochs": options.epochs, "seed": seed}
                if changes.items() >= FINE_TUNED.items():
                    changed["pretrained_weights"] = str(pretrained)
                report, _ = train_once(tail, changed, Path(scratch) / f"{name} {seed}")
                reports[name].append(report)
                print(f"seed {seed}  {name}: macro-F1 {report.macro_f1:.4f}", flush=True)
                rows = [summarise(one, found, reports[PLAIN][: len(found)]) for one, found in reports.items() if found]
                if options.out:
                    machine = f"{describe_device(ALONE.device)}, torch {torch.__version__}"
                    record = {"machine": machine, "images": counts, "epochs": options.epochs, "rows": rows}
                    options.out.write_text(json.dumps(record, indent=1))
    table = Table("variant", "n", "macro-F1", "difference (95 % CI)", "accuracy", "rarest class", box=box.SIMPLE_HEAD)
    for row in rows:
        difference = "" if row["variant"] == PLAIN else f"{row['difference']:+.3f}"
        if difference and row["interval"]:
            difference += f" ({row['interval'][0]:+.3f} to {row['interval'][1]:+.3f})"
        figures = [f"{row[key]:.3f}" for key in ("macro_f1", "accuracy", "rarest_recall")]
        table.add_row(row["variant"], str(row["n"]), figures[0], difference, *figures[1:])
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
