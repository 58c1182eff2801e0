"""The whole path on drawn pictures, in minutes on two CPU cores: data, trainings, release, service, prediction."""

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image
from prefect import flow
from rich.console import Console
from rich.table import Table

from flows.data import data_flow
from flows.printing import print_added, print_outcomes
from flows.release import release_flow
from flows.release_printing import print_release
from flows.train_all import train_all_flow
from model_code.data.cache import PackedDataset
from model_code.errors import DarkroomError
from model_code.recipes.catalog import build_config
from serving.client import predict, render_predictions

DATASET = "shapes"
RECIPES = ("resnet18_cifar10_exp", "resnet18_cifar10_exp2", "resnet18_cifar10_exp3")
BUDGET = {"dataset": DATASET, "epochs": 5}
PICTURES_SHOWN = 5
START_TIMEOUT_S = 60.0


@flow(name="quickstart")
def quickstart_flow(port: int = 0) -> bool:
    """Run every stage for real and print what came out; return whether all of it worked."""
    added = data_flow(DATASET)
    print_added(added)
    outcomes = train_all_flow([build_config(name, changes=BUDGET) for name in RECIPES])
    trained = [outcome.result for outcome in outcomes if outcome.result is not None]
    if not trained:
        print_outcomes(outcomes)
        return False
    best = max(trained, key=lambda result: result.metrics["validation/best_accuracy"])
    released = release_flow(best.run_id, DATASET)
    with tempfile.TemporaryDirectory() as scratch:
        pictures = _save_pictures(added.dataset, Path(scratch))
        answer = _ask_service(pictures, port, Path(scratch))
    print_outcomes(outcomes)
    print_release(released)
    print("\nWhat the service answered (five epochs on a few pictures: do not expect much):")
    Console().print(answer)
    print(
        "Next: `make serve` answers at http://127.0.0.1:3000 and shows a page there; `make ui` shows these runs;\n"
        "`make data` and `make train-all` are the real thing, on CIFAR-10.",
        flush=True,
    )
    return len(trained) == len(outcomes)


def _save_pictures(dataset: PackedDataset, folder: Path) -> list[Path]:
    """Write some test pictures of different classes as PNG files, named after what they show."""
    test = dataset.splits["test"]
    paths = []
    for index in np.linspace(0, len(test.labels_N) - 1, PICTURES_SHOWN).astype(int):
        path = folder / f"{dataset.classes[test.labels_N[index]]}-{index}.png"
        Image.fromarray(test.images_NHWC[index]).save(path)
        paths.append(path)
    return paths


def _ask_service(pictures: list[Path], port: int, folder: Path) -> Table:
    """Start the service as its own process, ask it about the pictures, and stop it."""
    port = port or _find_free_port()
    server = f"http://127.0.0.1:{port}"
    log = folder / "service.log"
    with log.open("wb") as stream:
        command = [sys.executable, "-P", "-m", "serving.launcher", "--port", str(port)]
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    try:
        _wait_until_ready(process, server, log)
        result = predict([str(path) for path in pictures], server=server, model=DATASET, top_k=3)
    finally:
        process.terminate()
        process.wait()
    if result.problems:
        raise DarkroomError(f"the service refused {result.problems[0].source}: {result.problems[0].message}")
    return render_predictions(result)


def _wait_until_ready(process: subprocess.Popen[bytes], server: str, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            if httpx.get(f"{server}/readyz", trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    reason = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it printed nothing"]
    raise DarkroomError(f"the service did not get ready within {START_TIMEOUT_S:.0f} s: {reason[0]}")


def _find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
