"""Stages `check` and `engine`: the tests, the ways to compute a step side by side, streams, checkpoints.

Shape suffixes: N = images, H = height, W = width, C = the three colour channels.
"""

import copy
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from benchmarks.gpu.proof import Figures, Stage
from benchmarks.workload import draw_images, synchronise
from model_code.errors import DarkroomError, TrainingError, UsageError
from model_code.evaluation.untrained import evaluate_untrained
from model_code.models.image_input import ImageInput
from model_code.models.networks import build_network
from model_code.recipes.catalog import build_config
from model_code.training import checkpoints
from model_code.training.checkpoint_writer import CheckpointWriter, Snapshot
from model_code.training.config import TrainingConfig
from model_code.training.images import Images, TrainingImages
from model_code.training.processes import Processes
from model_code.training.results import Callback, EpochMetrics, FinishedEpoch, TrainingResult
from model_code.training.supervised import fit

ROOT = Path(__file__).parents[2]
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
        stage.measure(f"{count} runs at once", partial(measure_streams, stage, count))
    stage.measure("checkpoint", lambda: _measure_checkpoint(stage))
    stage.measure("vit_l_16 untrained, bfloat16", lambda: _measure_untrained(stage))


def _run_tests(stage: Stage) -> Figures:
    stage.need_cuda()
    if importlib.util.find_spec("pytest") is None:
        raise UsageError("pytest is not installed")
    # The engines get the other half.
    return run_tests(ROOT / "tests" / "gpu", stage.seconds_left / 2, stage.folder / stage.name / "tests.txt")


def run_tests(folder: Path, limit_s: float, output: Path) -> Figures:
    """Run the tests of a folder with pytest alone: neither its plugins nor the settings in pyproject.toml.

    Args:
        folder: Folder of tests.
        limit_s: Seconds after which they are ended, with all that they have started.
        output: File of what pytest prints.

    Raises:
        DarkroomError: A test failed, none was found, or the time was over.
    """
    options = ["-q", "-rfEs", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "ignore:Unknown pytest.mark"]
    places = ["-c", "/dev/null", "--rootdir", str(ROOT), "--confcutdir", str(ROOT), str(folder)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *places],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            raise DarkroomError(f"not over after {limit_s:.0f} s; give more --minutes ({output})") from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lines = output.read_text().strip().splitlines() or ["no output"]
    if status:
        failed = [line.split(" - ")[0].split()[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
        raise DarkroomError(f"exit status {status}: {': '.join([lines[-1], *[', '.join(failed)] * bool(failed)])}")
    return {"tests": lines[-1]}


def train_drawn(
    stage: Stage,
    steps: int,
    epochs: int,
    changes: dict[str, Any],
    run_dir: Path,
    callbacks: Sequence[Callback] = (),
) -> TrainingResult[EpochMetrics]:
    """Train the recipe on drawn images."""
    config = build_config(RECIPE, changes={**changes, "epochs": epochs, **_shrink(stage)})
    assert isinstance(config, TrainingConfig)
    images_NHWC = draw_images(steps * config.batch_size).to(stage.device)
    labels_N = torch.arange(len(images_NHWC), device=stage.device) % len(CLASSES)
    learned = Images(images_NHWC, labels_N)
    images = TrainingImages(learned, learned.take(slice(0, 8)), None, CLASSES, "0" * 64)
    return fit(config, images, run_dir, Processes(stage.device), callbacks)


def _shrink(stage: Stage) -> dict[str, Any]:
    return {"network": "resnet18", "batch_size": 4} if stage.is_dry else {}


def _measure_engine(stage: Stage, changes: dict[str, Any]) -> Figures:
    return _measure_speed(stage, changes) | _count_in_a_step(stage, changes)


def _measure_speed(stage: Stage, changes: dict[str, Any]) -> Figures:
    if CUDA_ONLY & set(changes.values()):
        stage.need_cuda()
    with tempfile.TemporaryDirectory() as scratch:
        # The first epoch compiles, records and looks for kernels.
        result = train_drawn(stage, 2 if stage.is_dry else 200, 3, changes, Path(scratch))
    epochs = result.history
    rates = sorted(metrics.pictures_per_s for metrics in epochs[1:])
    batch = 4 if stage.is_dry else 128
    return {
        "ms_a_step": 1000 * batch / rates[-1],
        "images_per_s": rates[-1],
        "first_epoch_s": epochs[0].seconds,
        "engine": result.engine,
    }


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


class _Together(Callback):
    """Begins the second epoch when every run has finished its first, and notes when it ends."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self._barrier = barrier
        self.end_s = 0.0

    def on_epoch_end(self, metrics: FinishedEpoch) -> None:
        """Wait for the others, or note the time."""
        if metrics.epoch == 1:
            self._barrier.wait()
        self.end_s = time.perf_counter()


def measure_streams(stage: Stage, count: int) -> Figures:
    """Train several runs at once, each on a thread and a stream of its own; one clock for all of them.

    Raises:
        TrainingError: A run failed.
    """
    steps, batch = (2, 4) if stage.is_dry else (200, 128)
    starts_s: list[float] = []
    errors: list[Exception] = []
    results: list[TrainingResult[EpochMetrics]] = []
    barrier = threading.Barrier(count, lambda: starts_s.append(time.perf_counter()))
    watchers = [_Together(barrier) for _ in range(count)]

    def train(number: int) -> None:
        stream = torch.cuda.stream(torch.cuda.Stream()) if stage.is_cuda else nullcontext()
        changes = {"engine.precision": "bfloat16", "seed": number}
        try:
            with stream, tempfile.TemporaryDirectory() as scratch:
                results.append(train_drawn(stage, steps, 2, changes, Path(scratch), [watchers[number]]))
        except threading.BrokenBarrierError:
            pass  # another one failed
        except Exception as error:  # noqa: BLE001 - told below
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=train, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise TrainingError(f"{len(errors)} of {count} runs failed: {errors[0]}") from errors[0]
    slowest_s = max(watcher.end_s for watcher in watchers) - starts_s[0]
    return {
        "images_per_s": count * steps * batch / slowest_s,
        "images_per_s_slowest": steps * batch / slowest_s,
        "engine": results[0].engine,
    }


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
