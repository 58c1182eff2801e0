"""Training steps in bfloat16 beside float32, and their share of the fastest convolution that this machine computes.

    python -m benchmarks.precision [--repeats N] [--out FILE]

What `engine.precision=auto` rests on. A step is forward, backward and optimiser on random images of 32 pixels; both
precisions alternate in one process.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.comparison import Comparison, alternate, build_table
from model_code.models.networks import build_network
from model_code.training.device import describe_device, keep_freed_memory

CASES = (("fastnet", 1024), ("fastnet", 256), ("resnet18_torchvision", 128), ("resnet18_improved", 128))
CONVOLUTIONS = ((64, 256, 15), (256, 256, 15), (512, 512, 8))
WARM_STEPS, STEPS = 1, 3


class Stepper:
    """Steps of one network, in one precision."""

    def __init__(self, name: str, batch: int, precision: torch.dtype) -> None:
        torch.manual_seed(0)
        self._network = build_network(name, 10, 32).to(memory_format=torch.channels_last)
        self._optimizer = torch.optim.SGD(self._network.parameters(), 0.01, momentum=0.9)
        self._images = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
        self._labels = torch.randint(0, 10, (batch,))
        self._precision = precision

    def step(self) -> None:
        """Take a step."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._precision == torch.bfloat16):
            loss = functional.cross_entropy(self._network(self._images), self._labels)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    def measure(self) -> float:
        """Return images per second of some steps."""
        for _ in range(WARM_STEPS):
            self.step()
        start_s = time.perf_counter()
        for _ in range(STEPS):
            self.step()
        return STEPS * len(self._images) / (time.perf_counter() - start_s)

    def count_flops(self) -> float:
        """Return floating-point operations for each image of a step."""
        with FlopCounterMode(display=False) as counter:
            self.step()
        return counter.get_total_flops() / len(self._images)


def measure_peak(precision: torch.dtype, repeats: int) -> float:
    """Return the operations per second of the fastest of some 3x3 convolutions, the median of its repeats."""
    speeds = []
    for inputs, outputs, side in CONVOLUTIONS:
        images = torch.randn(256, inputs, side, side).to(precision, memory_format=torch.channels_last)
        weights = torch.randn(outputs, inputs, 3, 3).to(precision, memory_format=torch.channels_last)
        passes = []
        for _ in range(repeats + 1):
            start_s = time.perf_counter()
            functional.conv2d(images, weights, padding=1)
            passes.append(time.perf_counter() - start_s)
        speeds.append(2 * 256 * inputs * outputs * 9 * side**2 / statistics.median(passes[1:]))
    return max(speeds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    keep_freed_memory()
    records: list[dict[str, Any]] = []
    for name, batch in CASES:
        half, single = Stepper(name, batch, torch.bfloat16), Stepper(name, batch, torch.float32)
        contenders = {"ours: bfloat16": half.measure, "float32": single.measure}
        record = alternate(f"{name}, batch {batch}", Comparison("images/s", contenders), options.repeats)
        record["flops_per_image"] = half.count_flops()
        records.append(record)
    peaks = {
        str(one).removeprefix("torch."): measure_peak(one, options.repeats) for one in (torch.bfloat16, torch.float32)
    }
    for record in records:
        Console(width=110).print(build_table(record))
        for figure, precision in zip(record["figures"], ("bfloat16", "float32"), strict=True):
            reached = figure["median"] * record["flops_per_image"]
            print(
                f"  {precision}: {reached / 1e9:.0f} GFLOP/s, {reached / peaks[precision]:.2f} of the convolution peak"
            )
    print({name: f"{peak / 1e9:.0f} GFLOP/s" for name, peak in peaks.items()}, describe_device(torch.device("cpu")))
    if options.out:
        options.out.write_text(json.dumps({"records": records, "peaks": peaks}, indent=1))


if __name__ == "__main__":
    main()
