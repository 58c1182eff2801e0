"""Stage `serving`: one network in onnxruntime beside torch, eager and compiled.

Shape suffixes: N = images, H = height, W = width, C = the three colour channels, K = classes.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.gpu.proof import Figures, Stage
from benchmarks.workload import synchronise
from model_code.errors import UsageError
from model_code.models.image_input import ImageInput
from model_code.models.networks import build_network

BATCHES = (1, 8, 64, 256)
SIDE, CLASSES = 32, 10
Batch = npt.NDArray[np.uint8]
Answer = Callable[[Batch], npt.NDArray[np.float32]]
NOT_MEASURED = {
    "onnxruntime, int8": "int8 is released for CPUs only",
    "service over HTTP (80 % target)": "this stage starts no service",
}


def serving(stage: Stage) -> None:
    """Compare answers and speed of the same network, images on the host, answers on the host."""
    torch.manual_seed(0)
    network = build_network("resnet18" if stage.is_dry else "resnet18_improved", CLASSES, SIDE)
    model = torch.nn.Sequential(ImageInput((0.5,) * 3, (0.25,) * 3), network).eval()
    batches = (1, 2) if stage.is_dry else BATCHES
    images_NHWC = np.random.default_rng(0).integers(0, 256, (max(batches), SIDE, SIDE, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        for precision in ("fp32", "fp16"):
            for has_graphs in (False, True):
                name = f"onnxruntime, {precision}{', recorded graphs' if has_graphs else ''}"
                work = partial(_measure_onnx, stage, model, file, precision, has_graphs, images_NHWC, batches)
                stage.measure(name, work)
    stage.measure("torch, float32", lambda: _measure_torch(stage, model, images_NHWC, batches, torch.float32))
    stage.measure("torch, bfloat16", lambda: _measure_torch(stage, model, images_NHWC, batches, torch.bfloat16))
    stage.measure("torch.compile, bfloat16", lambda: _measure_compiled(stage, model, images_NHWC, batches))
    for name, reason in NOT_MEASURED.items():
        stage.name_unmeasured(name, reason)


def _measure_onnx(
    stage: Stage,
    model: torch.nn.Module,
    file: Path,
    precision: str,
    has_graphs: bool,
    images_NHWC: Batch,
    batches: tuple[int, ...],
) -> Figures:
    """Return parity with torch and speed; with graphs as the service answers."""
    from model_code.release.onnx_export import export_onnx
    from model_code.release.precisions import make_fp16
    from serving.bundle.session import CPU, CUDA, has_cuda, open_session, run_session
    from serving.models.bound_session import BoundSession

    if has_graphs or precision == "fp16":
        stage.need_cuda()
    is_on_gpu = has_cuda()
    if stage.is_cuda and not is_on_gpu:
        raise UsageError("onnxruntime has no CUDA provider; install onnxruntime-gpu")
    if not file.exists():
        export_onnx(model, SIDE, file)
    if precision == "fp16" and not (half := file.with_suffix(".fp16.onnx")).exists():
        make_fp16(file, half)
    chosen = file.with_suffix(".fp16.onnx") if precision == "fp16" else file
    session = open_session(chosen, CUDA if is_on_gpu else CPU, 1, has_graphs=has_graphs)
    answer: Answer = partial(run_session, session)
    if has_graphs:
        shape = SimpleNamespace(image_size=SIDE, classes=range(CLASSES))
        answer = BoundSession(session, cast(Any, shape), "cuda", has_graphs=True).run
    with torch.inference_mode():
        expected_NK = torch.softmax(model(torch.from_numpy(images_NHWC)), dim=1).numpy()
    return {
        "provider": session.get_providers()[0],
        **compare(answer, images_NHWC, expected_NK),
        **_time(stage, answer, images_NHWC, batches),
    }


def compare(answer: Answer, images_NHWC: Batch, expected_NK: npt.NDArray[np.float32]) -> Figures:
    """Return how far answers are from the expected ones, asked all at once and in batches of every recorded size.

    Args:
        answer: Images -> probabilities.
        images_NHWC: The images, uint8.
        expected_NK: Their probabilities.
    """
    from serving.models.bound_session import BATCH_BUCKETS

    differences, labels = [], []
    for size in {*(bucket for bucket in BATCH_BUCKETS if bucket < len(images_NHWC)), len(images_NHWC)}:
        answered_NK = answer(images_NHWC[:size])
        differences.append(float(np.abs(answered_NK - expected_NK[:size]).max()))
        labels.append(int((answered_NK.argmax(1) != expected_NK[:size].argmax(1)).sum()))
    return {"largest_difference": max(differences), "labels_that_differ": max(labels)}


def _measure_torch(
    stage: Stage,
    answer: torch.nn.Module,
    images_NHWC: Batch,
    batches: tuple[int, ...],
    precision: torch.dtype,
) -> Figures:
    answer.to(stage.device)

    @torch.inference_mode()
    def run(some: Batch) -> npt.NDArray[np.float32]:
        with torch.autocast(stage.device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            logits_NK = answer(torch.from_numpy(some).to(stage.device))
        return torch.softmax(logits_NK.float(), dim=1).cpu().numpy()

    return _time(stage, run, images_NHWC, batches)


def _measure_compiled(stage: Stage, model: torch.nn.Module, images_NHWC: Batch, batches: tuple[int, ...]) -> Figures:
    # Compiling for a CPU takes longer than the whole dry run may, and is tested elsewhere.
    stage.need_cuda()
    compiled = cast(torch.nn.Module, torch.compile(model, mode="reduce-overhead", dynamic=False))
    return _measure_torch(stage, compiled, images_NHWC, batches, torch.bfloat16)


def _time(stage: Stage, run: Answer, images_NHWC: Batch, batches: tuple[int, ...]) -> Figures:
    figures = {}
    for batch in batches:
        some = images_NHWC[:batch]
        for _ in range(3):
            run(some)
        times_s: list[float] = []
        end_s = time.perf_counter() + (0.05 if stage.is_dry else 2.0)
        while len(times_s) < 3 or time.perf_counter() < end_s:
            start_s = time.perf_counter()
            run(some)
            synchronise(stage.device)
            times_s.append(time.perf_counter() - start_s)
        figures[f"images_per_s_at_{batch}"] = batch / float(np.median(times_s))
    return figures


STAGES: dict[str, Callable[[Stage], None]] = {"serving": serving}
