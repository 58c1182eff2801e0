"""Runs of every kind, entered into a store as trainings do it, with figures made up by a formula."""

import hashlib
import json
import math
from dataclasses import dataclass, field

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from model_code.report.collection import Collection, Group, Run
from model_code.tracking.store import EXPERIMENT

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOOD11 = (
    "Bread",
    "Dairy product",
    "Dessert",
    "Egg",
    "Fried food",
    "Meat",
    "Noodles-Pasta",
    "Rice",
    "Seafood",
    "Soup",
    "Vegetable-Fruit",
)
DEVICE = "cuda (NVIDIA H200)"
PROJECTION_STD = 1 / math.sqrt(2048)


@dataclass
class Store:
    """Enters runs; `enter` gives a run's id back."""

    client: MlflowClient
    run_ids: list[str] = field(default_factory=list)
    minutes: int = 0

    def enter(
        self,
        recipe,
        metrics=None,
        histories=None,
        report=None,
        status="FINISHED",
        budget="full",
        seed=0,
        kind="supervised",
        dataset="cifar10",
        checksum="c" * 64,
        epochs=100,
        params=None,
        tags=None,
    ):
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        self.minutes += 1
        start = 1_790_000_000_000 + self.minutes * 60_000
        all_tags = {
            "recipe": recipe,
            "kind": kind,
            "profile": budget.split(":")[0],
            "budget": budget,
            "dataset": dataset,
            "seed": str(seed),
            "device": DEVICE,
            "config_sha256": "a" * 64,
            "data_checksum": checksum,
            "git_sha": "0123456789abcdef0123456789abcdef01234567",
            "weights_sha256": "d" * 64,
            **(tags or {}),
        }
        run_id = self.client.create_run(experiment.experiment_id, start_time=start).info.run_id
        points = [Metric(key, value, start, 0) for key, value in (metrics or {}).items()]
        for key, values in (histories or {}).items():
            points += [Metric(key, value, start + step, step) for step, value in values.items()]
        entries = {"epochs": epochs, "recipe": recipe, **(params or {})}
        self.client.log_batch(
            run_id,
            metrics=points,
            params=[Param(key, str(value)) for key, value in entries.items() if value is not None],
            tags=[RunTag(key, value) for key, value in all_tags.items() if value is not None],
        )
        if report is not None:
            self.client.log_text(run_id, report, "reports/test.json")
        if status != "RUNNING":
            self.client.set_terminated(run_id, status, end_time=start + 50_000)
        self.run_ids.append(run_id)
        return run_id

    def enter_supervised(self, recipe, accuracy, seed=0, classes=CIFAR10, images=10_000, epochs=100, **settings):
        shapes = 1 - np.exp(-(3 + seed) * np.arange(1, epochs + 1) / epochs)
        shapes /= shapes[-1]
        test = accuracy - 0.004 + 0.001 * math.sin(seed)
        return self.enter(
            recipe,
            {
                "validation/best_accuracy": accuracy,
                "validation/best_epoch": epochs,
                "test/accuracy": test,
                "test/loss": 1 - test,
                "test/macro_f1": test,
                "train/pictures": 40_000,
                "validation/pictures": images,
                "test/pictures": images,
            },
            {
                "train/seconds": {step: 30 + 10 / step for step in range(1, epochs + 1)},
                "train/loss": {step: 2.3 * (1 - 0.9 * shape) for step, shape in enumerate(shapes, 1)},
                "train/accuracy": {step: min(1, accuracy * shape + 0.05) for step, shape in enumerate(shapes, 1)},
                "validation/loss": {step: 2.3 * (1 - accuracy * shape) for step, shape in enumerate(shapes, 1)},
                "validation/accuracy": {step: accuracy * shape for step, shape in enumerate(shapes, 1)},
            },
            make_report(classes, test, images),
            seed=seed,
            epochs=epochs,
            **settings,
        )

    def enter_simsiam(self, recipe, accuracy, seed=0, epochs=200, **settings):
        monitored = range(10, epochs + 1, 10)
        return self.enter(
            recipe,
            {
                "validation/best_accuracy": accuracy,
                "validation/best_epoch": epochs,
                "validation/untrained_knn_accuracy": 0.31 + 0.01 * seed,
                "test/knn_accuracy": accuracy - 0.01,
                "test/linear_accuracy": accuracy + 0.02,
            },
            {
                "train/loss": {step: -0.9 * (1 - math.exp(-step / 40)) for step in range(1, epochs + 1)},
                "train/feature_std": {
                    step: PROJECTION_STD * (1 - math.exp(-step / 5)) for step in range(1, epochs + 1)
                },
                "validation/knn_accuracy": {
                    step: accuracy * (1 - math.exp(-step / (40 + 15 * seed))) for step in monitored
                },
            },
            seed=seed,
            kind="simsiam",
            epochs=epochs,
            **{"params": {"embedding_width": 2048}, **settings},
        )

    def enter_untrained(self, recipe, correct, seed=0, images=50_000, seconds=20.0, distinct=1, **settings):
        return self.enter(
            recipe,
            {
                "validation/correct": correct,
                "validation/accuracy": correct / images,
                "validation/distinct_classes": distinct,
                "validation/top_class_share": 1 / distinct,
                "validation/pictures": images,
                "validation/seconds": seconds,
                "validation/pictures_per_s": images / seconds,
                "validation/peak_memory_bytes": 2_500_000_000,
            },
            seed=seed,
            kind="untrained",
            dataset="imagenet-val",
            epochs=None,
            **settings,
        )

    def enter_random_features(self, recipe, knn, linear, mlp, head=0.1, seed=0, **settings):
        return self.enter(
            recipe,
            {
                "test/knn_accuracy": knn,
                "test/linear_accuracy": linear,
                "test/mlp_accuracy": mlp,
                "test/untrained_head_accuracy": head,
                "test/pictures": 10_000,
            },
            seed=seed,
            kind="random_features",
            epochs=None,
            **settings,
        )


def make_report(classes, accuracy, images):
    """The text of reports/test.json: class k is taken for the next one as often as it is mistaken."""
    count = images // len(classes)
    right = [round(count * min(1, accuracy + 0.02 * math.sin(index))) for index in range(len(classes))]
    confusion = np.zeros((len(classes), len(classes)), dtype=int)
    for index, number in enumerate(right):
        confusion[index, index] = number
        confusion[index, (index + 1) % len(classes)] += count - number
    return json.dumps(
        {
            "pictures": count * len(classes),
            "accuracy": sum(right) / (count * len(classes)),
            "macro_f1": accuracy,
            "loss": 1 - accuracy,
            "per_class_accuracy": {name: number / count for name, number in zip(classes, right, strict=True)},
            "confusion": confusion.tolist(),
        }
    )


def make_run(recipe, seed=0, budget="full", **settings):
    """A run as the collection holds it, without a store."""
    defaults = {
        "run_id": hashlib.md5(f"{recipe} {seed} {budget}".encode()).hexdigest(),
        "experiment_id": "1",
        "kind": "supervised",
        "dataset": "cifar10",
        "epochs": 100,
        "device": DEVICE,
        "data_checksum": "c" * 64,
        "git_sha": "0" * 40,
        "seconds": 50.0,
        "ended_ms": seed,
        "metrics": {},
        "params": {},
    }
    return Run(recipe=recipe, seed=seed, budget=budget, **{**defaults, **settings})


def make_collection(*groups):
    """A collection of lists of runs, each of one recipe and budget, the best budget first."""
    by_recipe = {}
    for runs in groups:
        group = Group(runs[0].recipe, runs[0].budget, tuple(runs))
        by_recipe[group.recipe] = (*by_recipe.get(group.recipe, ()), group)
    return Collection(by_recipe, tuple(run for runs in groups for run in runs))


def enter_every_kind(store):
    """Fill a store with three seeds of nearly every recipe, some custom, some smoke, some missing."""
    accuracies = {"exp": 0.829, "exp2": 0.848, "exp3": 0.915, "exp4": 0.905, "exp6": 0.926, "exp9": 0.861}
    networks = {"exp": "resnet18_torchvision", "exp2": "resnet18"}
    for name, accuracy in accuracies.items():
        for seed in range(3):
            store.enter_supervised(
                f"resnet18_cifar10_{name}",
                accuracy + 0.002 * math.cos(5 * seed + accuracy * 99),
                seed,
                params={"network": networks.get(name, "resnet18_improved")},
            )
    for name, accuracy in {
        "exp2_fan_out": 0.845,
        "exp_default": 0.846,
        "exp3_nopool": 0.938,
        "exp6_nopool": 0.948,
    }.items():
        for seed in range(3):
            store.enter_supervised(
                f"resnet18_cifar10_{name}", accuracy + 0.003 * math.cos(3 * seed + 1), seed, params={"network": name}
            )
    store.enter_supervised("resnet18_cifar10_exp5", 0.61, epochs=5, budget="custom: epochs=5, limit_train=10000")
    store.enter_supervised("resnet18_cifar10_exp7", 0.25, epochs=2, budget="smoke")
    for seed in range(2):
        store.enter_supervised("swin_cifar10_published", 0.671 + 0.003 * seed, seed, images=5000, epochs=20)
    store.enter_supervised("resnet18_food11", 0.583, classes=FOOD11, dataset="food11", checksum="f" * 64)
    for seed in range(3):
        pretrained = store.enter_simsiam("simsiam_cifar10", 0.89 + 0.003 * seed, seed)
    for seed in range(3):
        store.enter_supervised(
            "simsiam_cifar10_finetuned",
            0.951 + 0.001 * seed,
            seed,
            tags={"pretrained_run_id": pretrained, "pretrained_sha256": "e" * 64},
        )
    store.enter_simsiam("simsiam_food11", 0.44, epochs=20, budget="custom: epochs=20", dataset="food11")
    for network, correct in {"resnet50": 50, "resnet101": 50, "vit_b_16": 50, "swin_t": 47}.items():
        for seed in range(3):
            distinct = 211 if network == "swin_t" else 1
            for suffix in ("", "_raw"):
                count = correct + seed if network == "swin_t" and suffix else correct
                store.enter_untrained(f"{network}_imagenet_untrained{suffix}", count, seed, distinct=distinct)
    store.enter_untrained("vit_l_16_imagenet_untrained", 1, images=1000, budget="custom: limit_images=1000")
    for seed in range(3):
        store.enter_random_features("pixels_cifar10_random", 0.34, 0.39, 0.52, 0.1, seed)
        wobble = 0.004 * math.cos(seed)
        store.enter_random_features("resnet18_cifar10_random", 0.35, 0.42 + wobble, 0.5 + wobble, seed=seed)
        store.enter_random_features("resnet18_cifar10_random_calibrated", 0.36, 0.44 - wobble, 0.51, seed=seed)
        store.enter_random_features("vit_b_16_cifar10_random", 0.29, 0.36 + wobble, 0.41, 0.1 + wobble, seed)
    store.enter_supervised("resnet18_cifar10_exp6", 0.99, 5, status="FAILED")
