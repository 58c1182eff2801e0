"""The service beside what people use and write themselves: `make bench-serve ARGS="--home HOME --image FILE"`.

The champion of a name answers one image over and over, to `wrk` (Debian's package) on the same machine. Contenders
take turns at each number of connections; the others are stopped meanwhile. onnxruntime alone, without HTTP, is the
limit of requests with many images. `--endurance` measures memory over 100,000 requests, and 1,000 connections.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.services.batches import measure_batches
from benchmarks.services.contenders import NAMES, OURS, Contender, Service, describe_contenders, start
from benchmarks.services.endurance import REQUESTS, endure
from benchmarks.services.figures import summarise
from benchmarks.services.http_load import count_refused, load
from benchmarks.services.tables import print_report
from benchmarks.training import describe_machine
from model_code.tracking.provenance import find_versions, read_git_sha, read_versions
from serving.bundle.preprocess import decode_picture
from serving.bundle.store import list_released, read_champion

CONNECTIONS = (1, 16, 64, 256)
LIBRARIES = ("bentoml", "fastapi", "litserve", "uvicorn", "uvloop")


def main() -> None:
    """Measure everything, print the tables, write the JSON."""
    parser = build_parser()
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed: apt-get install wrk")
    ours = next((name for name in OURS if name in options.only), None)
    if options.endurance and ours is None:
        parser.error(f"--endurance is about ours: --only {' or '.join(OURS)}")
    # Else what was started would outlive this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    home, image = options.home.resolve(), options.image.read_bytes()
    names = list_released(home / "bundles")
    name = options.name or (names[0] if len(names) == 1 else "cifar10")
    if name not in names:
        parser.error(f"{home} has no release named {name}; --name takes one of: {', '.join(names) or 'none yet'}")
    _, bundle, manifest = read_champion(home / "bundles", name)
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "git_sha": read_git_sha(),
        "versions": read_versions() | read_contender_versions(),
        "model": manifest.recipe,
        "repeats": options.repeats,
        "seconds": options.seconds,
        "endurance": None,
    }
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        scratch = Path(folder)
        contenders = describe_contenders(options.only, home, bundle, image, str(options.python.absolute()), scratch)
        report["starts_s"] = measure_starts(contenders, scratch, options.repeats)
        services = {}
        for name, contender in contenders.items():
            services[name] = running.enter_context(start(contender, scratch))
            # What is made with the first requests is not measured.
            load(services[name].address, contender.body, 1, 1)
            services[name].pause()
        report["loads"] = measure_loads(services, options.connections, options.repeats, options.seconds)
        image_HWC = decode_picture(image, manifest.image_size, manifest.resize_size)
        report["batches"] = measure_batches(services, bundle, image, image_HWC, options.repeats, options.seconds)
        if options.endurance and ours is not None:
            with start(contenders[ours], scratch) as service:
                report["endurance"] = endure(service, options.requests, options.seconds)
    print_report(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="DARKROOM_HOME with a released model")
    parser.add_argument("--name", help="registered name; when left out the only one of the home, or cifar10")
    parser.add_argument("--image", type=Path, required=True, help="of the size that the model reads")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--endurance", action="store_true", help="of ours, the first that is chosen")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of the endurance")
    parser.add_argument(
        "--python",
        type=Path,
        default=sys.executable,
        help="of the environment that ours and MLflow run in, without what other contenders brought",
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser


def measure_starts(contenders: dict[str, Contender], scratch: Path, repeats: int) -> dict[str, dict[str, Any]]:
    """Start every contender so many times, in turn, nothing else running; return the seconds to readiness by title."""
    seconds: dict[str, list[float]] = {}
    for repeat in range(repeats):
        for contender in contenders.values():
            with start(contender, scratch) as service:
                seconds.setdefault(contender.title, []).append(service.start_s)
            print(f"start  {repeat + 1}/{repeats}  {contender.title}: {service.start_s:.2f} s", flush=True)
    return {title: summarise(values) for title, values in seconds.items()}


def measure_loads(
    services: dict[str, Service], connections: list[int], repeats: int, seconds: int
) -> list[dict[str, Any]]:
    """Load the services in turn at each number of connections.

    Returns:
        For each number and contender the summaries of `requests_per_s`, `p50_ms` and `p99_ms` (see `http_load.load`),
        `statuses`, `refused` (requests without a 2xx) and, where FastAPI is there, `times_fastapi` in requests/s.
    """
    rows = []
    for number in connections:
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in services}
        for repeat in range(repeats):
            for name, service in services.items():
                with service.awake():
                    found[name].append(load(service.address, service.contender.body, number, seconds))
                said = f"{found[name][-1]['requests_per_s']:,.0f} 2xx/s"
                print(f"{number} connections  {repeat + 1}/{repeats}  {service.contender.title}: {said}", flush=True)
        for name, service in services.items():
            row: dict[str, Any] = {"connections": number, "contender": service.contender.title}
            for figure in ("requests_per_s", "p50_ms", "p99_ms"):
                row[figure] = summarise([one[figure] for one in found[name]])
            row["statuses"] = dict(sum((Counter(one["statuses"]) for one in found[name]), Counter[str]()))
            row["refused"] = sum(map(count_refused, found[name]))
            rows.append(row)
            if "fastapi" in services:
                fastapi = summarise([one["requests_per_s"] for one in found["fastapi"]])
                row["times_fastapi"] = row["requests_per_s"]["median"] / fastapi["median"]
    return rows


def read_contender_versions() -> dict[str, str]:
    """Return the versions of wrk and of what the contenders are made of; absent ones are left out."""
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout.split()[1]
    return {"wrk": wrk} | find_versions(LIBRARIES)


if __name__ == "__main__":
    main()
