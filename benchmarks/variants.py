"""int8 beside fp32 on onnxruntime's CPU provider: `python -m benchmarks.variants [--json FILE] [--networks NAME ...]`.

The networks are untrained and calibrated on noise, which changes nothing about the speed; what a trained one loses of
its accuracy is in the card of its release. Variants take turns, in one process.
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
    options = parser.parse_args()
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "git_sha": read_git_sha(),
        "versions": read_versions(),
        "repeats": options.repeats,
        "comparisons": [record for name in options.networks for record in compare(name, options.repeats)],
    }
    print_report(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def compare(network: str, repeats: int) -> list[dict[str, Any]]:
    """Return a record for each batch size; ours is int8."""
    images_NHWC = np.random.default_rng(0).integers(0, 256, (max(BATCHES), SIDE, SIDE, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as scratch:
        fp32_file, int8_file = Path(scratch) / "model.onnx", Path(scratch) / "model.int8.onnx"
        model = nn.Sequential(ImageInput((0.5,) * 3, (0.25,) * 3), build_network(network, CLASSES, SIDE))
        export_onnx(model.eval(), SIDE, fp32_file)
        make_int8(fp32_file, int8_file, images_NHWC)
        sessions = {
            name: open_session(file, CPU, count_cpus()) for name, file in (("fp32", fp32_file), (OURS, int8_file))
        }
    records = []
    for batch in BATCHES:
        passes: dict[str, Pass] = {
            name: partial(_measure, name, session, images_NHWC[:batch]) for name, session in sessions.items()
        }
        comparison = Comparison("images/s", passes, {OURS: "int8"})
        records.append(alternate(f"{network}, {SIDE} px, batch {batch}", comparison, repeats))
    return records


def _measure(name: str, session: onnxruntime.InferenceSession, images_NHWC: npt.NDArray[np.uint8]) -> float:
    return measure_speed({name: partial(run_session, session)}, images_NHWC, SECONDS)[name]


if __name__ == "__main__":
    main()
