"""Stages `check` and `engine`: the tests, the ways to compute a step side by side, streams, checkpoints.

Shape suffixes: N = images, H = height, W = width, C = the three colour channels.
"""

import copy
import importlib.util
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from benchmarks.gpu.proof import Figures, NotMeasurableError, Stage
from benchmarks.workload import draw_images, synchronise
from model_code.evaluation.untrained import evaluate_untrained
from model_code.models.image_input import ImageInput
from model_code.models.networks import build_network
from model_code.recipes.catalog import build_config
from model_code.training import checkpoints
from model_code.training.checkpoint_writer import CheckpointWriter, Snapshot
from model_code.training.config import TrainingConfig
from model_code.training.images import Images, TrainingImages
from model_code.training.processes import Processes
from model_code.training.results import EpochMetrics
from model_code.training.supervised import fit

RECIPE = "resnet18_cifar10_exp6"  # 3x3 stem, batch 128
ENGINES = {
    "eager": {},
    "compiled": {"engine.compile": "on"},
    "CUDA graphs": {"engine.compile": "cuda_graphs"},
    "whole step": {"engine.compile": "step"},
}
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
SYNCHRONISATIONS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
# Settings that a CPU lacks, or (compiling) takes longer over than a dry run may.
CUDA_ONLY = {"on", "cuda_graphs", "fastest", "tf32"}
CLASSES = tuple("abcdefghij")


def check(stage: Stage) -> None:
    """Run the tests that need a GPU, then compare the engines."""
    stage.measure("tests/gpu", lambda: _run_tests(stage))
    for name, changes in ENGINES.items():
        for precision in ("float32", "bfloat16"):
            settings = {**changes, "engine.precision": precision}
            stage.measure(f"{name}, {precision}", partial(_measure_engine, stage, settings))


def engine(stage: Stage) -> None:
    """Compare kernels and precisions, runs side by side on streams, and the cost of checkpoints."""
    for kernels in ("deterministic", "fastest"):
        for precision in ("float32", "tf32", "bfloat16"):
            settings = {"engine.kernels": kernels, "engine.precision": precision}
            stage.measure(f"{kernels}, {precision}", partial(_measure_speed, stage, settings))
    for count in (1, 2) if stage.is_dry else (1, 3, 9):
        stage.measure(f"{count} runs at once", partial(_measure_streams, stage, count))
    stage.measure("checkpoint", lambda: _measure_checkpoint(stage))
    stage.measure("vit_l_16 untrained, bfloat16", lambda: _measure_untrained(stage))


def _run_tests(stage: Stage) -> Figures:
    stage.need_cuda()
    if importlib.util.find_spec("pytest") is None:
        raise NotMeasurableError("pytest is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"exit_status": done.returncode, "summary": lines[-1], "failed": failed}


def train_drawn(
    stage: Stage, steps: int, epochs: int, changes: dict[str, Any], run_dir: Path
) -> tuple[EpochMetrics, ...]:
    """Train the recipe on drawn images and return its epochs."""
    config = build_config(RECIPE, changes={**changes, "epochs": epochs, **_shrink(stage)})
    assert isinstance(config, TrainingConfig)
    images_NHWC = draw_images(steps * config.batch_size).to(stage.device)
    labels_N = torch.arange(len(images_NHWC), device=stage.device) % len(CLASSES)
    learned = Images(images_NHWC, labels_N)
    images = TrainingImages(learned, learned.take(slice(0, 8)), None, CLASSES, "0" * 64)
    return fit(config, images, run_dir, Processes(stage.device)).history


def _shrink(stage: Stage) -> dict[str, Any]:
    return {"network": "resnet18", "batch_size": 4} if stage.is_dry else {}


def _measure_engine(stage: Stage, changes: dict[str, Any]) -> Figures:
    return _measure_speed(stage, changes) | _count_in_a_step(stage, changes)


def _measure_speed(stage: Stage, changes: dict[str, Any]) -> Figures:
    if CUDA_ONLY & set(changes.values()):
        stage.need_cuda()
    with tempfile.TemporaryDirectory() as scratch:
        # The first epoch compiles, records and looks for kernels.
        epochs = train_drawn(stage, 2 if stage.is_dry else 200, 3, changes, Path(scratch))
    rates = sorted(metrics.pictures_per_s for metrics in epochs[1:])
    batch = 4 if stage.is_dry else 128
    return {"ms_a_step": 1000 * batch / rates[-1], "images_per_s": rates[-1], "first_epoch_s": epochs[0].seconds}


class _OperationCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        self.count += 1
        return func(*args, **(kwargs or {}))


def _count_in_a_step(stage: Stage, changes: dict[str, Any]) -> Figures:
    """Return what a step launches and waits for: the difference between two runs of different length."""
    few, many = (2, 4) if stage.is_dry else (10, 20)

    def count(steps: int) -> Counter[str]:
        counter = _OperationCounter()
        is_eager = not CUDA_ONLY & set(changes.values())
        watch: AbstractContextManager[Any] = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
        with (
            tempfile.TemporaryDirectory() as scratch,
            watch if stage.is_cuda else nullcontext() as profiler,
            counter if is_eager and not stage.is_cuda else nullcontext(),
        ):
            train_drawn(stage, steps, 1, changes, Path(scratch))
        counted = Counter({"operations": counter.count})
        for event in profiler.key_averages() if profiler is not None else ():
            counted["launches"] += event.count * (event.key in LAUNCHES)
            counted["synchronisations"] += event.count * (event.key in SYNCHRONISATIONS)
            counted["copies"] += event.count * event.key.startswith("cudaMemcpy")
        return counted

    before, after = count(few), count(many)
    names = ("launches", "synchronisations", "copies") if stage.is_cuda else ("operations",)
    return {f"{name}_a_step": (after[name] - before[name]) / (many - few) for name in names}


def _measure_streams(stage: Stage, count: int) -> Figures:
    """Train several runs at once, each on a thread and a stream of its own."""
    steps = 2 if stage.is_dry else 200
    changes = {"engine.precision": "bfloat16"}
    rates: list[float] = []

    def train(number: int) -> None:
        stream = torch.cuda.stream(torch.cuda.Stream()) if stage.is_cuda else nullcontext()
        with stream, tempfile.TemporaryDirectory() as scratch:
            epochs = train_drawn(stage, steps, 2, {**changes, "seed": number}, Path(scratch))
            rates.append(epochs[-1].pictures_per_s)

    threads = [threading.Thread(target=train, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(rates) < count:
        raise NotMeasurableError(f"{count - len(rates)} of {count} runs failed; see their lines")
    return {"images_per_s": sum(rates), "images_per_s_slowest": min(rates)}


def _measure_checkpoint(stage: Stage) -> Figures:
    """Return what a checkpoint costs the training, and what its thread then takes."""
    changes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch)
        train_drawn(stage, 2, 1, changes, run_dir)
        config = build_config(RECIPE, changes={**changes, "epochs": 1, **_shrink(stage)})
        state = checkpoints.load_state(run_dir, config.sha256())
        assert state is not None, "a finished fit leaves its state"
        there = checkpoints.TrainingState(
            **tree_map_only(torch.Tensor, lambda tensor: tensor.to(stage.device), vars(state))
        )
        copies_s, writes_s = [], []
        for _ in range(2 if stage.is_dry else 7):
            writer = CheckpointWriter(run_dir, stage.device)
            synchronise(stage.device)
            start_s = time.perf_counter()
            copied = copy.deepcopy(there)
            writer.keep(Snapshot(copied, copied.network, copied.network))
            synchronise(stage.device)
            copies_s.append(time.perf_counter() - start_s)
            writer.close()
            writes_s.append(time.perf_counter() - start_s)
        size_bytes = sum(file.stat().st_size for file in run_dir.iterdir() if file.is_file())
    return {
        "ms_of_training": 1000 * float(np.median(copies_s)),
        "ms_until_on_disk": 1000 * float(np.median(writes_s)),
        "mb_written": size_bytes / 1e6,
    }


def _measure_untrained(stage: Stage) -> Figures:
    """Return the speed of the largest untrained network on drawn images of 224 pixels."""
    network, count, batch = ("resnet18", 4, 2) if stage.is_dry else ("vit_l_16", 5120, 256)
    side = 32 if stage.is_dry else 224
    model = torch.nn.Sequential(ImageInput((0.5,) * 3, (0.5,) * 3), build_network(network, 1000, side))
    images_NHWC = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    report = evaluate_untrained(
        model, images_NHWC, np.zeros(count, np.int64), lambda batch: batch, batch, stage.device, torch.bfloat16
    )
    return {"images_per_s": report.pictures_per_s, "s_for_50000": 50_000 / report.pictures_per_s}


STAGES: dict[str, Callable[[Stage], None]] = {"check": check, "engine": engine}
