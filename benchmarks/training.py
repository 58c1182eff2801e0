"""Training speed side by side: `make bench-train`, or `python -m benchmarks.training [--json FILE] [--repeats N]`.

Each comparison has a process of its own and alternates its contenders in it; the tables give medians, least and most.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison import Comparison, alternate, print_report
from benchmarks.comparisons import augmentation, epochs, hardware, neighbours, several_runs
from benchmarks.workload import BATCH, NETWORK
from model_code.tracking.provenance import read_git_sha, read_versions
from model_code.training.device import choose_device, describe_device, keep_freed_memory

COMPARISONS: dict[str, Callable[[torch.device, Path], Comparison]] = {
    f"supervised augmentation, batch {BATCH}": augmentation.compare_crops,
    f"two SimSiam views, batch {BATCH}": augmentation.compare_views,
    f"supervised epoch of {NETWORK}, batch {BATCH}": epochs.compare_supervised,
    f"SimSiam epoch of {NETWORK}, batch {BATCH}": epochs.compare_simsiam,
    f"steps of two runs of {NETWORK}, batch {BATCH}": several_runs.compare_runs,
    f"first step of {NETWORK}, batch {BATCH}": several_runs.compare_compiling,
    "kNN of 5,000 against 50,000 x 512": neighbours.compare_knn,
    f"checkpoint of {NETWORK} with momentum": epochs.compare_checkpoint,
    "arithmetic": hardware.compare_arithmetic,
    "memory traffic": hardware.compare_traffic,
}


def main() -> None:
    """Measure everything, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--repeats", type=int, default=5, help="of every contender; default 5")
    parser.add_argument("--only", default="", help="comparisons whose title holds this text")
    options = parser.parse_args()
    chosen = [title for title in COMPARISONS if options.only in title]
    if not chosen or options.repeats < 1:
        parser.error(f"nothing to measure; --repeats must be at least 1, and the titles are {'; '.join(COMPARISONS)}")
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "git_sha": read_git_sha(),
        "versions": read_versions() | read_contender_versions(),
        "repeats": options.repeats,
    }
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        report["comparisons"] = [processes.submit(measure, title, options.repeats).result() for title in chosen]
    print_report(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(title: str, repeats: int) -> dict[str, Any]:
    """Return the record of one comparison."""
    # The default again: a process that was spawned would spawn DataLoader's workers too.
    multiprocessing.set_start_method("fork", force=True)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        return alternate(title, COMPARISONS[title](choose_device("auto"), Path(scratch)), repeats)


def describe_machine() -> dict[str, Any]:
    """What the figures were measured on, and how busy it was before."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "cpu": next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "load_average_at_start": os.getloadavg()[0],
        "device": describe_device(choose_device("auto")),
    }


def read_contender_versions() -> dict[str, str]:
    """Return the versions of the libraries that are measured against; absent ones are left out."""
    versions = {}
    for library in ("kornia", "lightly", "scikit-learn"):
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions


if __name__ == "__main__":
    main()
