"""Growth of costs with what a home holds: `python -m benchmarks.scale [--only NAME] [--json FILE]`.

Each quantity is measured at three sizes, in a home of its own, after a run at the smallest size that is not counted.
The exponent is the slope between the two largest sizes on logarithmic axes: near 0 for a constant, near 1 for a cost
for each. The last column goes on in a straight line through these two. It is an extrapolation, and says nothing about
limits that three sizes do not reach.
"""

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from flows.operations.canary import compare_canary
from flows.operations.removal import measure as measure_bytes
from model_code.data.add import add_dataset
from model_code.data.cache import open_dataset
from model_code.recipes.catalog import add_recipe, build_config, list_recipes
from model_code.report.collection import collect_runs
from model_code.settings import load_settings
from model_code.sweeps.space import Range
from model_code.sweeps.trials import Sweep
from model_code.tracking.finished_runs import find_finished_runs
from model_code.tracking.store import EXPERIMENT, open_store
from serving.bundle.store import ChallengerReference, Change, Pointer, write_challenger, write_pointer
from serving.listing import Column, print_listing
from serving.observation.review import ReviewQueue

Costs = dict[str, float]

EPOCHS = 20
SPACE = {"batch_size": Range(low=32, high=512, step=32), "weight_decay": Range(low=1e-5, high=1e-2, log=True)}


@contextmanager
def _timing(costs: Costs, name: str) -> Iterator[None]:
    start_s = time.perf_counter()
    yield
    costs[name] = time.perf_counter() - start_s


def measure_images(home: Path, count: int) -> Costs:
    """Pack PNG files of 32 pixels, and open the packed data set."""
    settings, costs, draw = load_settings(), Costs(), np.random.default_rng(0)
    source = home / "images"
    for number in range(count):
        folder = source / f"class{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{number}.png")
    with _timing(costs, "packing, s"):
        add_dataset("mine", [source], cache_dir=settings.cache_dir, data_dir=home, image_size=32, progress=False)
    costs["packed, bytes"] = measure_bytes(settings.cache_dir)
    with _timing(costs, "opening, s"):
        open_dataset("mine", settings.cache_dir)
    return costs


def measure_recipes(home: Path, count: int) -> Costs:
    """List recipes of one's own."""
    costs = Costs()
    for number in range(count):
        add_recipe(f"own-{number}", "fastnet_cifar10", "", {"epochs": 1 + number})
    with _timing(costs, "listing, s"):
        list_recipes()
    return costs


def measure_runs(home: Path, count: int) -> Costs:
    """Enter runs into MLflow, find the best of a recipe among them, and read all for the report."""
    from mlflow.entities import Metric, RunTag

    client, costs = open_store(load_settings()), Costs()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None, "open_store makes it"
    before_bytes = (home / "mlflow.db").stat().st_size
    start_s = time.perf_counter()
    for number in range(count):
        tags = {"recipe": f"recipe-{number % 50}", "kind": "supervised", "profile": "full", "budget": "full"}
        tags |= {"dataset": "cifar10", "seed": str(number // 50), "data_checksum": "c" * 64}
        run_id = client.create_run(experiment.experiment_id).info.run_id
        points = [
            Metric(name, 0.5 + 0.4 * step / EPOCHS, step, step)
            for name in ("train/loss", "train/accuracy", "validation/loss", "validation/accuracy")
            for step in range(1, EPOCHS + 1)
        ]
        points += [Metric("validation/best_accuracy", 0.9, 0, 0), Metric("test/accuracy", 0.9, 0, 0)]
        client.log_batch(run_id, metrics=points, tags=[RunTag(*tag) for tag in tags.items()])
        client.set_terminated(run_id)
    costs["entering one, s"] = (time.perf_counter() - start_s) / count
    costs["database for one, bytes"] = ((home / "mlflow.db").stat().st_size - before_bytes) / count
    with _timing(costs, "best of a recipe, s"):
        find_finished_runs(client, "recipe-7", "*")
    with _timing(costs, "reading for the report, s"):
        collect_runs(client)
    return costs


def measure_trials(home: Path, count: int) -> Costs:
    """Fill a sweep's journal, open it again and ask for one more trial."""
    config, costs = build_config("fastnet_cifar10", "smoke", {"seed": 0}), Costs()

    def run_trial(sweep: Sweep) -> None:
        with sweep.claim(None) as trial:
            assert trial is not None
            for epoch in range(1, EPOCHS + 1):
                sweep.report(trial.number, epoch, 0.01 * epoch + 0.001 * (trial.number % 7))
            sweep.complete(trial.number, 0.2 + 0.001 * (trial.number % 7))

    sweep = Sweep(home / "sweep", config, "a" * 64, SPACE, 2)
    for _ in range(count):
        run_trial(sweep)
    costs["journal, bytes"] = measure_bytes(home / "sweep")
    with _timing(costs, "opening, s"):
        again = Sweep(home / "sweep", config, "a" * 64, SPACE, 2)
    with _timing(costs, "one more trial, s"):
        run_trial(again)
    return costs


def measure_requests(home: Path, count: int) -> Costs:
    """Read logged answers for the review queue and for the comparison of a canary."""
    bundles_dir, costs = load_settings().bundles_dir, Costs()
    (bundles_dir / "mine").mkdir(parents=True)
    bundle = {"bundle": "b", "manifest_sha256": "0" * 64}
    change = Change(number=1, action="promote", from_version=None, to_version="1", at="", by="", why="", verdict="")
    write_pointer(bundles_dir, "mine", Pointer(version="1", **bundle, change=change))
    write_challenger(bundles_dir, "mine", ChallengerReference(version="2", **bundle, share=0.5))
    log = home / "requests"
    log.mkdir()
    now = datetime.now(UTC)
    record = {"time": now.isoformat(timespec="milliseconds"), "model": "mine", "label": "cat", "probability": 0.9}
    record |= {"model_sha256": "0" * 64, "precision": "fp32", "is_confident": True, "is_kept": True}
    with (log / f"{now.date().isoformat()}.jsonl").open("w") as file:
        for number in range(count):
            line = record | {
                "request": f"{number:016x}",
                "picture_sha256": f"{number:064x}",
                "version": str(1 + number % 2),
            }
            file.write(json.dumps(line) + "\n")
    costs["log, bytes"] = measure_bytes(log)
    with _timing(costs, "review queue, s"):
        ReviewQueue(log).list_unsure("mine")
    with _timing(costs, "comparing a canary, s"):
        comparison = compare_canary("mine")
    assert comparison.champion.images + comparison.canary.images == count
    return costs


# Name -> (function, three sizes, size that is asked about).
QUANTITIES: dict[str, tuple[Callable[[Path, int], Costs], tuple[int, int, int], int]] = {
    "images": (measure_images, (1_000, 4_000, 16_000), 100_000_000),
    "recipes": (measure_recipes, (10, 50, 250), 1_000),
    "runs": (measure_runs, (10, 100, 1_000), 100_000),
    "trials": (measure_trials, (10, 100, 400), 10_000),
    "requests": (measure_requests, (1_000, 10_000, 100_000), 2_000_000),
}


def extrapolate(sizes: tuple[int, ...], costs: list[float], asked: int) -> tuple[float, float]:
    """Return the exponent between the two largest sizes, and the cost at a size on the straight line through them."""
    (small, large), (little, much) = sizes[-2:], costs[-2:]
    exponent = math.log(much / little) / math.log(large / small)
    return exponent, much + (asked - large) * (much - little) / (large - small)


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=QUANTITIES, help="repeatable")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    records = []
    for name in options.only or QUANTITIES:
        measure, sizes, asked = QUANTITIES[name]
        found: list[Costs] = []
        for size in (sizes[0], *sizes):
            with tempfile.TemporaryDirectory() as home:
                # The place of every measurement, also where the one before has set an address.
                for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "DARKROOM_INBOX"):
                    os.environ.pop(variable, None)
                os.environ["DARKROOM_HOME"] = home
                found.append(measure(Path(home), size))
            print(f"{name}: {size:,} are measured", flush=True)
        for cost in found[0]:
            measured = [one[cost] for one in found[1:]]
            exponent, expected = extrapolate(sizes, measured, asked)
            record = {"what": name, "cost": cost, "sizes": sizes, "measured": measured, "exponent": exponent}
            records.append(record | {"asked": asked, "expected": expected})
    columns = (
        Column("what", "what"),
        Column("cost", "cost"),
        Column("sizes", "sizes", lambda sizes: ", ".join(f"{size:,}" for size in sizes)),
        Column("measured", "measured", lambda measured: ", ".join(f"{one:,.3g}" for one in measured)),
        Column("exponent", "exponent", lambda exponent: f"{exponent:.2f}"),
        Column("at", "asked", lambda asked: f"{asked:,}"),
        Column("expected", "expected", lambda expected: f"{expected:,.3g}"),
    )
    print_listing(columns, records)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
