"""Speed of each stage on this machine: `make bench`, or `python -m benchmarks.pipeline [--json FILE]`.

Every figure is the median of `RUNS` repeats with their spread, on images drawn here; the machine and the versions
stand beside them.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import onnxruntime
import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from torch.nn.functional import cross_entropy

from model_code.data.add import add_dataset
from model_code.data.augmentation import crop_and_flip
from model_code.data.cache import open_dataset
from model_code.recipes.catalog import build_config
from model_code.release.onnx_export import export_onnx
from model_code.tracking.provenance import read_git_sha, read_versions
from model_code.training.config import TrainingConfig
from model_code.training.device import choose_device, describe_device, keep_freed_memory
from model_code.training.supervised import build_model
from serving.bundle.session import INPUT_NAME

RUNS = 5
ZIP_IMAGES = 20_000
# In a process of its own, as the command does it: its workers then start without this file's imports.
PACK = """
import sys; from pathlib import Path; from model_code.data.add import add_dataset
name, archive, scratch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
add_dataset(name, [archive], cache_dir=scratch / "cache", data_dir=scratch, image_size=32, progress=False)
"""
TRAINING_STEPS = 6
RECIPES = ("resnet18_cifar10_exp", "resnet18_cifar10_exp6", "resnet18_cifar10_exp6_nopool")


def main() -> None:
    """Measure everything, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    keep_freed_memory()
    device = choose_device("auto")
    with tempfile.TemporaryDirectory() as scratch:
        rows = [
            *measure_command(),
            *measure_data(Path(scratch)),
            *measure_training(device),
            *measure_onnx(Path(scratch)),
        ]
    report = {
        "machine": f"{platform.machine()}, {describe_device(device)}",
        "git_sha": read_git_sha(),
        "versions": read_versions(),
        "runs": RUNS,
        "figures": rows,
    }
    print_table(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure_command() -> list[dict[str, object]]:
    """Seconds until `darkroom --help` has answered."""
    command = [sys.executable, "-c", "from flows.cli import main; main()", "--help"]

    def ask() -> float:
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        return time.perf_counter() - start

    return [_repeat("darkroom --help", "s", ask)]


def measure_data(scratch: Path) -> list[dict[str, object]]:
    """Images packed per second from a zip of JPEGs in class folders, and augmented per second."""
    folders = {"cache_dir": scratch / "cache", "data_dir": scratch / "data", "progress": False}
    shapes = add_dataset("shapes", **folders).dataset  # type: ignore[arg-type]
    train = shapes.splits["train"]
    archive = scratch / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for index in range(ZIP_IMAGES):
            source = index % len(train.labels_N)
            jpeg = BytesIO()
            Image.fromarray(train.images_NHWC[source]).save(jpeg, "JPEG", quality=75)
            file.writestr(f"train/{shapes.classes[train.labels_N[source]]}/{index:05}.jpg", jpeg.getvalue())
    numbers = iter(range(1000))

    def pack() -> float:
        arguments = [f"packed{next(numbers)}", str(archive), str(scratch)]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", PACK, *arguments], check=True)
        return ZIP_IMAGES / (time.perf_counter() - start)

    images_NHWC = torch.from_numpy(open_dataset("shapes", scratch / "cache").splits["train"].images_NHWC[:].copy())
    generator = torch.Generator().manual_seed(0)

    def augment() -> float:
        start = time.perf_counter()
        for chosen in torch.randperm(len(images_NHWC), generator=generator).split(128):
            crop_and_flip(images_NHWC[chosen], 4, True, generator)
        return len(images_NHWC) / (time.perf_counter() - start)

    return [
        _repeat("pack 32x32 JPEGs from a zip", "images/s", pack),
        _repeat("crop and flip, batch 128", "images/s", augment),
    ]


def measure_training(device: torch.device) -> list[dict[str, object]]:
    """Images learned from per second, batch 128, eager."""
    rows = []
    images_BHWC = torch.randint(0, 256, (128, 32, 32, 3), dtype=torch.uint8, device=device)
    labels_B = torch.randint(0, 10, (128,), device=device)
    for recipe in RECIPES:
        config = build_config(recipe)
        assert isinstance(config, TrainingConfig)
        model = build_model(config, 10, 32).to(device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

        def learn(model: torch.nn.Module = model, optimizer: torch.optim.SGD = optimizer) -> float:
            start = time.perf_counter()
            for _ in range(TRAINING_STEPS):
                optimizer.zero_grad(set_to_none=True)
                cross_entropy(model(images_BHWC), labels_B).backward()
                optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return TRAINING_STEPS * 128 / (time.perf_counter() - start)

        learn()
        rows.append(_repeat(f"train {recipe}, batch 128", "images/s", learn))
    return rows


def measure_onnx(scratch: Path) -> list[dict[str, object]]:
    """Images classified per second by onnxruntime on the CPU, without HTTP."""
    file = scratch / "model.onnx"
    config = build_config("resnet18_cifar10_exp6")
    assert isinstance(config, TrainingConfig)
    export_onnx(build_model(config, 10, 32).eval(), 32, file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    rows = []
    for batch in (1, 64):
        images = torch.randint(0, 256, (batch, 32, 32, 3), dtype=torch.uint8).numpy()

        def classify(images: object = images, batch: int = batch) -> float:
            start = time.perf_counter()
            for _ in range(512 // batch):
                session.run(None, {INPUT_NAME: images})
            return 512 / (time.perf_counter() - start)

        classify()
        rows.append(_repeat(f"onnxruntime fp32 resnet18_improved, batch {batch}", "images/s", classify))
    return rows


def print_table(report: dict[str, object]) -> None:
    """Print the figures for people."""
    table = Table("what", "median", "least", "most", "unit", box=box.SIMPLE_HEAD)
    for row in report["figures"]:  # type: ignore[attr-defined]
        table.add_row(row["what"], *(_format(row[key]) for key in ("median", "min", "max")), row["unit"])
    console = Console(width=110)
    console.print(f"{report['machine']}, {report['git_sha']}, n = {RUNS}", markup=False, highlight=False)
    console.print(", ".join(f"{name} {version}" for name, version in report["versions"].items()), highlight=False)  # type: ignore[attr-defined]
    console.print(table)


def _format(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _repeat(what: str, unit: str, measure: Callable[[], float]) -> dict[str, object]:
    values = [measure() for _ in range(RUNS)]
    return {
        "what": what,
        "unit": unit,
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": values,
    }


if __name__ == "__main__":
    main()
