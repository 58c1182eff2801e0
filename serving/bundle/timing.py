"""Speed and memory of a variant, measured in a process of its own.

Shape suffixes: N = images in the batch, H = height, W = width, C = the three colour channels.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from pydantic import ValidationError

from serving.bundle.manifest import BatchTiming, Timing
from serving.bundle.processors import count_cpus
from serving.bundle.session import CUDA, has_cuda, open_session, run_session
from serving.errors import BundleError

BATCH_SIZES = (1, 8, 64)
_MIN_RUNS = 5


def time_variant(
    file: Path,
    provider: str,
    image_size: int,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds_per_batch: float = 1.0,
) -> Timing:
    """Measure one ONNX file on one provider of this machine, with the service's session options.

    Args:
        file: File that `export_onnx`, `make_int8` or `make_fp16` wrote.
        provider: onnxruntime's execution provider.
        image_size: Height and width of the images, pixels.
        batch_sizes: Images given at once.
        seconds_per_batch: Time for which each batch size is repeated; at least 5 runs.

    Raises:
        BundleError: onnxruntime cannot run the file there.
    """
    command = [sys.executable, "-m", "serving.bundle.timing", str(file.resolve()), provider, str(image_size)]
    command += ["--seconds", str(seconds_per_batch), "--batch-sizes", *map(str, batch_sizes)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    try:
        return Timing.model_validate_json(done.stdout)
    except ValidationError:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise BundleError(f"{file} cannot be timed on {provider}: {said}") from None


def measure(file: Path, provider: str, image_size: int, batch_sizes: Sequence[int], seconds: float) -> Timing:
    """Measure in this process; its memory is that of all that it did before too.

    Raises:
        BundleError: The provider is not active.
    """
    threads = count_cpus()
    if provider == CUDA:
        has_cuda()
    session = open_session(file, provider, threads)
    return Timing(
        provider=provider,
        machine=name_machine(provider),
        threads=threads,
        batches=tuple(_time_batch(session, size, image_size, seconds) for size in sorted(batch_sizes)),
        peak_memory_bytes=read_peak_memory(),
    )


def name_machine(
    provider: str,
    cpu_file: Path = Path("/proc/cpuinfo"),
    gpu_folder: Path = Path("/proc/driver/nvidia/gpus"),
) -> str:
    """Return the name of the processor, or of the first GPU, as Linux or NVIDIA's driver says it; or `unknown`."""
    if provider == CUDA:
        return _read_field(next(gpu_folder.glob("*/information"), None), "Model")
    return _read_field(cpu_file, "model name")


def read_peak_memory(status_file: Path = Path("/proc/self/status")) -> int:
    """Return the largest resident size of this process, bytes.

    Not getrusage: what it says of a new process includes the one that started it.
    """
    return int(_read_field(status_file, "VmHWM").split()[0]) * 1024


def _read_field(file: Path | None, name: str) -> str:
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file else []
    except OSError:
        lines = []
    fields = (line.split(":", 1) for line in lines if ":" in line)
    return next((value.strip() for key, value in fields if key.strip() == name), "unknown")


def _time_batch(session: onnxruntime.InferenceSession, size: int, image_size: int, seconds: float) -> BatchTiming:
    generator = np.random.default_rng(0)
    images_NHWC = generator.integers(0, 256, (size, image_size, image_size, 3), dtype=np.uint8)
    run_session(session, images_NHWC)  # the first run of a shape plans its memory
    durations_ms: list[float] = []
    end = time.perf_counter() + seconds
    while len(durations_ms) < _MIN_RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        run_session(session, images_NHWC)
        durations_ms.append(1000 * (time.perf_counter() - start))
    median_ms, p99_ms = (float(value) for value in np.percentile(durations_ms, [50, 99]))
    return BatchTiming(
        batch_size=size,
        runs=len(durations_ms),
        median_ms=median_ms,
        p99_ms=p99_ms,
        pictures_per_s=1000 * size / median_ms,
    )


def main() -> None:
    """Print the timing of the file on the command line as JSON."""
    parser = argparse.ArgumentParser(prog="python -m serving.bundle.timing")
    parser.add_argument("file", type=Path)
    parser.add_argument("provider")
    parser.add_argument("image_size", type=int)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    parser.add_argument("--seconds", type=float, default=1.0)
    given = parser.parse_args()
    timing = measure(given.file, given.provider, given.image_size, given.batch_sizes, given.seconds)
    sys.stdout.write(timing.model_dump_json() + "\n")


if __name__ == "__main__":
    main()
