"""The service beside what people write themselves: `make bench-serve ARGS="--home HOME --picture FILE"`.

The champion of a name answers one picture over and over, to `wrk` (Debian's package) on the same machine. Contenders
take turns at each number of connections: ours with fp32 and with int8, FastAPI with onnxruntime. onnxruntime alone,
without HTTP, is the limit.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.training import describe_machine
from model_code.tracking.provenance import read_git_sha, read_versions
from serving.bundle import read_champion
from serving.preprocess import decode_picture
from serving.session import CPU, count_cpus, measure_speed, open_session

CONNECTIONS = (1, 16, 64, 256)
PORTS = {"ours, fp32": 3971, "ours, int8": 3972, "FastAPI + onnxruntime, fp32": 3973}
_SCRIPT = """
local file = io.open("{picture}", "rb")
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = "application/octet-stream"
"""


def main() -> None:
    """Measure everything, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="DARKROOM_HOME with a released model")
    parser.add_argument("--name", default="cifar10")
    parser.add_argument("--picture", type=Path, required=True, help="of the size that the model reads")
    parser.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed: apt-get install wrk")
    _, folder, manifest = read_champion(options.home / "bundles", options.name)
    figures: dict[str, dict[int, list[dict[str, float]]]] = {}
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script, ExitStack() as servers:
        script.write(_SCRIPT.format(picture=options.picture.resolve()))
        script.flush()
        addresses = {name: servers.enter_context(serve(name, options.home, folder)) for name in PORTS}
        for connections in options.connections:
            for repeat in range(options.repeats):
                for name, address in addresses.items():
                    found = load(address, script.name, connections, options.seconds)
                    figures.setdefault(name, {}).setdefault(connections, []).append(found)
                    print(f"{connections} connections  {repeat + 1}/{options.repeats}  {name}: {found}", flush=True)
    image_HWC = decode_picture(options.picture.read_bytes(), manifest.image_size, manifest.resize_size)
    report = {
        "machine": describe_machine(),
        "git_sha": read_git_sha(),
        "versions": read_versions(),
        "model": manifest.recipe,
        "served": figures,
        "onnxruntime_alone": measure_limit(folder, image_HWC),
    }
    print_table(report, options.repeats)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


@contextmanager
def serve(name: str, home: Path, folder: Path) -> Iterator[str]:
    """Start a contender and return the address that it predicts at."""
    port = PORTS[name]
    if name.startswith("ours"):
        precision = name.rsplit(" ", 1)[1]
        command = ["-m", "serving.launcher", "--home", str(home), "--port", str(port), "--precision", precision]
        path, ready = "/v1/predict", "/readyz"
    else:
        command = ["-m", "benchmarks.peers.fastapi_onnxruntime", str(folder / "model.onnx"), str(port)]
        path, ready = "/predict", "/openapi.json"
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}{path}"
    finally:
        process.terminate()
        process.wait()


def load(address: str, script: str, connections: int, seconds: int) -> dict[str, float]:
    """Return requests/s, median and 99th percentile in ms, and what was not answered with 2xx."""
    command = [
        "wrk",
        "--latency",
        "--timeout",
        "10s",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "-s",
        script,
        address,
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    errors = sum(map(int, re.findall(r"(?:Non-2xx or 3xx responses: |connect |read |write |timeout )(\d+)", printed)))
    return {
        "requests_per_s": float(re.search(r"Requests/sec:\s+([\d.]+)", printed)[1]),  # type: ignore[index]
        "p50_ms": _read_ms(printed, "50%"),
        "p99_ms": _read_ms(printed, "99%"),
        "errors": errors,
    }


def measure_limit(folder: Path, image_HWC: np.ndarray[Any, Any]) -> dict[str, float]:
    """Return the pictures per second of onnxruntime without HTTP, for each variant at batch 1 and 64."""
    limits = {}
    for precision, file in (("fp32", "model.onnx"), ("int8", "model.int8.onnx")):
        if (folder / file).exists():
            session = open_session(folder / file, CPU, count_cpus())
            for batch in (1, 64):
                images_NHWC = np.repeat(image_HWC[None], batch, axis=0)
                measure_speed({precision: session}, images_NHWC, 0.5)
                limits[f"{precision}, batch {batch}"] = measure_speed({precision: session}, images_NHWC, 3)[precision]
    return limits


def print_table(report: dict[str, Any], repeats: int) -> None:
    """Print medians and spread."""
    console = Console(width=140)
    console.print(", ".join(f"{name} {value}" for name, value in (report["machine"] | report["versions"]).items()))
    columns = ("connections", "contender", "requests/s (least to most)", "p50 ms", "p99 ms", "not 2xx")
    table = Table(*columns, box=box.SIMPLE_HEAD, title=f"{report['model']}, commit {report['git_sha']}, n = {repeats}")
    for connections in next(iter(report["served"].values())):
        for name, found in report["served"].items():
            rates, p50s, p99s = (
                [one[key] for one in found[connections]] for key in ("requests_per_s", "p50_ms", "p99_ms")
            )
            table.add_row(
                str(connections),
                name,
                f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
                f"{statistics.median(p50s):,.1f}",
                f"{statistics.median(p99s):,.1f}",
                str(sum(one["errors"] for one in found[connections])),
            )
    console.print(table)
    for what, speed in report["onnxruntime_alone"].items():
        console.print(f"onnxruntime alone, {what}: {speed:,.0f} pictures/s")


def _read_ms(printed: str, percentile: str) -> float:
    number, unit = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s|m)\b", printed).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[unit]


if __name__ == "__main__":
    main()
