"""Training speed side by side: `make bench-train`, or `python -m benchmarks.training [--json FILE] [--repeats N]`.

Each comparison alternates its contenders in one run, so that whatever else the machine does hits all of them; the
table gives medians, least and most, and the ratio to ours. Pictures are random: what they show does not matter here.
"""

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import contenders
from model_code.data.augmentation import crop_and_flip
from model_code.data.view_settings import ViewSettings
from model_code.data.views import two_views
from model_code.evaluation.features import LabelledFeatures
from model_code.evaluation.knn import knn_predict
from model_code.models.networks import build_network
from model_code.models.picture_input import PictureInput
from model_code.recipes.catalog import build_config
from model_code.tracking.provenance import read_git_sha, read_versions
from model_code.training.device import choose_device, describe_device
from model_code.training.pictures import Pictures, PretrainingPictures, TrainingPictures
from model_code.training.pretraining import build_simsiam, pretrain
from model_code.training.run_config import CIFAR10_MEAN, CIFAR10_STD
from model_code.training.supervised import fit

PICTURES = 5120
EPOCH_PICTURES = 1280
NETWORK = "resnet18"  # 7x7 stem: the fastest net of the study, so the one that waits most for its data
OURS = "ours"


@dataclass(frozen=True)
class Comparison:
    """Contenders that do the same task; the first is ours.

    Attributes:
        title: The task.
        unit: Of every figure.
        contenders: Name -> one timed pass.
        notes: Name -> why a contender is not measured, or what it does differently.
    """

    title: str
    unit: str
    contenders: dict[str, Callable[[], float]]
    notes: dict[str, str] = field(default_factory=dict)


def main() -> None:
    """Measure everything, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--repeats", type=int, default=5, help="of every contender; default 5")
    parser.add_argument("--only", default="", help="comparisons whose title holds this text")
    options = parser.parse_args()
    device = choose_device("auto")
    with tempfile.TemporaryDirectory() as scratch:
        makers = (
            compare_supervised,
            compare_two_views,
            compare_epochs,
            compare_simsiam_epochs,
            compare_knn,
            measure_limits,
        )
        comparisons = [make(device, Path(scratch)) for make in makers]
        chosen = [comparison for comparison in comparisons if options.only in comparison.title]
        figures = [figure for comparison in chosen for figure in alternate(comparison, options.repeats)]
    report = {
        "machine": f"{platform.machine()}, {describe_device(device)}",
        "git_sha": read_git_sha(),
        "versions": read_versions(),
        "repeats": options.repeats,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "figures": figures,
    }
    print_tables(report, chosen)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def alternate(comparison: Comparison, repeats: int) -> list[dict[str, Any]]:
    """Run the contenders in turn and return one record for each."""
    values: dict[str, list[float]] = {name: [] for name in comparison.contenders}
    for repeat in range(repeats):
        for name, measure in comparison.contenders.items():
            values[name].append(measure())
            print(f"{comparison.title}  {repeat + 1}/{repeats}  {name}: {values[name][-1]:,.1f}", flush=True)
    ours = statistics.median(next(iter(values.values())))
    return [
        {
            "comparison": comparison.title,
            "what": name,
            "unit": comparison.unit,
            "median": statistics.median(found),
            "min": min(found),
            "max": max(found),
            "n": len(found),
            "ours_times": ours / statistics.median(found),
            "values": found,
        }
        for name, found in values.items()
    ]


def compare_supervised(device: torch.device, _: Path) -> Comparison:
    """Crop, flip and normalise 32-pixel pictures."""
    images_NHWC = draw_images(PICTURES).to(device)
    generator = torch.Generator(device=device).manual_seed(0)
    normalise = PictureInput(CIFAR10_MEAN, CIFAR10_STD).to(device)
    array = images_NHWC.cpu().numpy()
    found = {
        OURS: lambda: contenders.time_batches(
            images_NHWC, lambda batch: normalise(crop_and_flip(batch, 4, True, generator))
        ),
        "torchvision v1, DataLoader, 2 workers": lambda: contenders.time_loader(
            contenders.PictureArray(array, contenders.supervised_transform())
        ),
        "torchvision v2, whole batch": lambda: contenders.time_batches(images_NHWC, contenders.torchvision_batched()),
    }
    notes = {"torchvision v2, whole batch": "one set of parameters for all pictures of a batch"}
    add_optional(found, notes, "kornia", contenders.kornia_supervised, images_NHWC)
    return Comparison("supervised augmentation, batch 128", "pictures/s", found, notes)


def compare_two_views(device: torch.device, _: Path) -> Comparison:
    """Two SimSiam views of 32-pixel pictures."""
    images_NHWC = draw_images(PICTURES).to(device)
    generator = torch.Generator(device=device).manual_seed(0)
    normalise = PictureInput(CIFAR10_MEAN, CIFAR10_STD).to(device)
    settings = ViewSettings()
    array = images_NHWC.cpu().numpy()[: PICTURES // 2]
    found: dict[str, Callable[[], float]] = {
        OURS: lambda: contenders.time_batches(
            images_NHWC, lambda batch: [normalise(view) for view in two_views(batch, generator, settings)]
        ),
        "torchvision v1, DataLoader, 2 workers": lambda: contenders.time_loader(
            contenders.PictureArray(array, contenders.TwoViews())
        ),
    }
    notes: dict[str, str] = {}
    add_optional(found, notes, "kornia", contenders.kornia_two_views, images_NHWC)
    try:
        lightly = contenders.lightly_two_views()
        found["lightly, DataLoader, 2 workers"] = lambda: contenders.time_loader(
            contenders.PictureArray(array, lightly)
        )
    except ImportError:
        notes["lightly"] = "not measured: not installed (pip install lightly)"
    return Comparison("two SimSiam views, batch 128", "pictures/s", found, notes)


def compare_epochs(device: torch.device, scratch: Path) -> Comparison:
    """One supervised epoch with its data, the article's loop as printed beside ours."""
    images_NHWC = draw_images(EPOCH_PICTURES)
    labels = [index % 10 for index in range(EPOCH_PICTURES)]
    files = save_pictures(images_NHWC, scratch / "pictures")
    learned = Pictures(images_NHWC.to(device), torch.tensor(labels, device=device))
    asked = Pictures(learned.images_NHWC[:10], learned.labels_N[:10])
    pictures = TrainingPictures(learned, asked, None, tuple("abcdefghij"), "random")
    config = build_config("resnet18_cifar10_exp2", changes={"epochs": 1, "network": NETWORK})

    def ours() -> float:
        with tempfile.TemporaryDirectory() as run_dir:
            return fit(config, pictures, Path(run_dir), device).history[0].pictures_per_s

    def theirs(workers: int) -> float:
        dataset = contenders.PictureFiles(files, labels, contenders.supervised_transform())
        loader = DataLoader(dataset, contenders.BATCH, shuffle=True, num_workers=workers)
        return contenders.train_supervised(loader, build_network(NETWORK, 10).to(device), device)

    found = {
        OURS: ours,
        "the article's loop": lambda: theirs(0),
        "the article's loop, 2 workers": lambda: theirs(contenders.WORKERS),
    }
    return Comparison(f"supervised epoch of {NETWORK}, batch 128", "pictures/s", found)


def compare_simsiam_epochs(device: torch.device, scratch: Path) -> Comparison:
    """One SimSiam epoch with its data, the article's loop beside ours."""
    images_NHWC = draw_images(EPOCH_PICTURES)
    files = save_pictures(images_NHWC, scratch / "pictures")
    learned = Pictures(images_NHWC.to(device), torch.arange(EPOCH_PICTURES, device=device) % 10)
    few = Pictures(learned.images_NHWC[:10], learned.labels_N[:10])
    pictures = PretrainingPictures(learned.images_NHWC, few, few, few, None, tuple("abcdefghij"))
    changes = {"epochs": 1, "network": NETWORK, "batch_size": contenders.BATCH, "knn_neighbours": 5}
    config = build_config("simsiam_cifar10", changes=changes)

    def ours() -> float:
        with tempfile.TemporaryDirectory() as run_dir:
            return pretrain(config, pictures, Path(run_dir), device).history[0].pictures_per_s

    def theirs(workers: int) -> float:
        dataset = contenders.PictureFiles(files, [0] * EPOCH_PICTURES, contenders.TwoViews())
        loader = DataLoader(dataset, contenders.BATCH, shuffle=True, num_workers=workers)
        return contenders.train_simsiam(loader, build_simsiam(config).to(device), device)

    found = {
        OURS: ours,
        "the article's loop": lambda: theirs(0),
        "the article's loop, 2 workers": lambda: theirs(contenders.WORKERS),
    }
    return Comparison(f"SimSiam epoch of {NETWORK}, batch 128", "pictures/s", found)


def compare_knn(device: torch.device, _: Path) -> Comparison:
    """5,000 pictures against a bank of 50,000, 512 features, 200 neighbours."""
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn((50_000, 512), generator=generator).to(device)
    asked = torch.randn((5_000, 512), generator=generator).to(device)
    labelled = LabelledFeatures(bank, torch.arange(50_000, device=device) % 10, tuple("abcdefghij"))

    def ours() -> float:
        start = time.perf_counter()
        knn_predict(labelled, asked).cpu()
        return time.perf_counter() - start

    return Comparison("kNN of 5,000 against 50,000 x 512", "s", {OURS: ours})


def measure_limits(device: torch.device, _: Path) -> Comparison:
    """What the hardware can do: matrix products and copies, and which share of the former a training step reaches."""
    network = build_network(NETWORK, 10).to(device).train()
    images_BCHW = torch.randn((contenders.BATCH, 3, 32, 32), device=device)
    with FlopCounterMode(display=False) as counter:
        network(images_BCHW).sum().backward()
    flops = counter.get_total_flops()
    left = torch.randn((2048, 2048), device=device)
    source = torch.empty(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def timed(work: Callable[[], object], times: int, amount: float) -> float:
        work()
        synchronise(device)
        start = time.perf_counter()
        for _ in range(times):
            work()
        synchronise(device)
        return times * amount / (time.perf_counter() - start) / 1e9

    def step() -> None:
        network.zero_grad(set_to_none=True)
        network(images_BCHW).sum().backward()

    found = {
        f"forward and backward of {NETWORK}, GFLOP/s": lambda: timed(step, 4, flops),
        "matrix product of 2048, fp32, GFLOP/s": lambda: timed(lambda: left @ left, 8, 2 * 2048**3),
        "copy of 256 MiB, GB/s read and written": lambda: timed(lambda: target.copy_(source), 8, 2 * 2**28),
    }
    return Comparison("limits of the hardware", "G/s", found)


def add_optional(
    found: dict[str, Callable[[], float]],
    notes: dict[str, str],
    name: str,
    make: Callable[[], Callable[[torch.Tensor], object]],
    images_NHWC: torch.Tensor,
) -> None:
    """Add a contender whose library may be missing."""
    try:
        augment = make()
    except ImportError:
        notes[name] = f"not measured: not installed (pip install {name})"
        return
    found[f"{name}, whole batch"] = lambda: contenders.time_batches(images_NHWC, augment)


def draw_images(count: int) -> torch.Tensor:
    """Random uint8 pictures [count, 32, 32, 3]."""
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def save_pictures(images_NHWC: torch.Tensor, folder: Path) -> list[Path]:
    """Write each picture as a PNG file."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{index}.png" for index in range(len(images_NHWC))]
    for file, image in zip(files, images_NHWC.numpy(), strict=True):
        if not file.exists():
            Image.fromarray(np.ascontiguousarray(image)).save(file)
    return files


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def print_tables(report: dict[str, Any], comparisons: list[Comparison]) -> None:
    """Print one table for each comparison."""
    console = Console(width=120)
    versions = report["versions"]
    console.print(
        f"\n{report['machine']}, Python {versions['python']}, torch {versions['torch']}, {report['git_sha'][:12]}"
    )
    for comparison in comparisons:
        table = Table(comparison.title, comparison.unit, "least to most", "n", "ours is", box=box.SIMPLE_HEAD)
        for figure in report["figures"]:
            if figure["comparison"] == comparison.title:
                note = comparison.notes.get(figure["what"], "")
                table.add_row(
                    figure["what"] + (f" ({note})" if note else ""),
                    f"{figure['median']:,.4g}" if figure["median"] < 100 else f"{figure['median']:,.0f}",
                    f"{figure['min']:,.4g} to {figure['max']:,.4g}",
                    str(figure["n"]),
                    f"{figure['ours_times']:.1f} times"
                    if figure["what"] != OURS and OURS in comparison.contenders
                    else "",
                )
        for name, note in comparison.notes.items():
            if note.startswith("not measured"):
                table.add_row(name, "-", note)
        console.print(table)
    console.print(f"peak memory of this process {report['peak_memory_bytes'] / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
