"""int8 beside fp32 on onnxruntime's CPU provider: `python -m benchmarks.variants [--networks NAME ...] [--home HOME]`.

The networks are untrained and calibrated on noise, which changes nothing about the speed; what a trained one loses of
its accuracy is in the card of its release. With `--home` the champions of a DARKROOM_HOME are measured instead.
Variants take turns, in one process.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from torch import nn

from benchmarks.comparison import OURS, Comparison, Pass, alternate, print_report
from benchmarks.training import describe_machine
from model_code.models.image_input import ImageInput
from model_code.models.networks import build_network
from model_code.release.onnx_export import export_onnx
from model_code.release.precisions import make_int8
from model_code.tracking.provenance import read_git_sha, read_versions
from serving.bundle.processors import count_cpus
from serving.bundle.session import CPU, measure_speed, open_session, run_session
from serving.bundle.store import list_released, read_champion

NETWORKS = ("resnet18", "resnet18_improved", "resnet18_improved_nopool", "swin_cifar", "swin_cifar_window4")
SIDE, CLASSES = 32, 10
BATCHES = (1, 64)
SECONDS = 2.0


def main() -> None:
    """Measure everything, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--repeats", type=int, default=5, help="of every variant; default 5")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME")
    parser.add_argument("--home", type=Path, help="DARKROOM_HOME; its champions are measured instead of networks")
    options = parser.parse_args()
    if options.home is None:
        comparisons = [record for name in options.networks for record in compare_network(name, options.repeats)]
    elif names := list_released(options.home / "bundles"):
        champions = [find_champion(options.home, name) for name in names]
        comparisons = [record for one in champions for record in compare_files(*one, options.repeats)]
    else:
        parser.error(f"nothing is released in {options.home}")
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "git_sha": read_git_sha(),
        "versions": read_versions(),
        "repeats": options.repeats,
        "comparisons": comparisons,
    }
    print_report(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def compare_network(network: str, repeats: int) -> list[dict[str, Any]]:
    """Return what `compare_files` does of an untrained network."""
    images_NHWC = _draw_images(SIDE)
    with tempfile.TemporaryDirectory() as scratch:
        files = {"fp32": Path(scratch) / "model.onnx", "int8": Path(scratch) / "model.int8.onnx"}
        model = nn.Sequential(ImageInput((0.5,) * 3, (0.25,) * 3), build_network(network, CLASSES, SIDE))
        export_onnx(model.eval(), SIDE, files["fp32"])
        make_int8(files["fp32"], files["int8"], images_NHWC)
        return compare_files(network, files, images_NHWC, repeats)


def find_champion(home: Path, name: str) -> tuple[str, dict[str, Path], npt.NDArray[np.uint8]]:
    """Return title, files by precision and images for the champion of `name`, which must have fp32 and int8."""
    _, folder, manifest = read_champion(home / "bundles", name)
    files = {one.precision: folder / one.file for one in manifest.variants if one.file is not None}
    if not {"fp32", "int8"} <= set(files):
        raise SystemExit(f"the champion of {name} has {', '.join(files)}; fp32 and int8 are compared")
    both = {precision: files[precision] for precision in ("fp32", "int8")}
    return f"{name}, {manifest.recipe}", both, _draw_images(manifest.image_size)


def compare_files(
    title: str, files: dict[str, Path], images_NHWC: npt.NDArray[np.uint8], repeats: int
) -> list[dict[str, Any]]:
    """Return a record for each batch size; ours is int8."""
    sessions = {
        OURS if precision == "int8" else precision: open_session(file, CPU, count_cpus())
        for precision, file in files.items()
    }
    records = []
    for batch in BATCHES:
        passes: dict[str, Pass] = {
            name: partial(_measure, name, session, images_NHWC[:batch]) for name, session in sessions.items()
        }
        comparison = Comparison("images/s", passes, {OURS: "int8"})
        side = images_NHWC.shape[1]
        records.append(alternate(f"{title}, {side} px, batch {batch}", comparison, repeats))
    return records


def _draw_images(side: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (max(BATCHES), side, side, 3), dtype=np.uint8)


def _measure(name: str, session: onnxruntime.InferenceSession, images_NHWC: npt.NDArray[np.uint8]) -> float:
    return measure_speed({name: partial(run_session, session)}, images_NHWC, SECONDS)[name]


if __name__ == "__main__":
    main()
