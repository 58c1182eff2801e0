"""The whole path on drawn images, in minutes on two CPU cores: data, trainings, release, service, prediction."""

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from flows.experiments.training import train_all
from flows.operations.release import release
from flows.operations.training import train_task
from flows.printing.datasets import print_added
from flows.printing.lines import format_accuracy
from flows.printing.releases import describe_decision
from flows.printing.summaries import ReleaseSummary
from model_code.data.add import add_dataset
from model_code.data.cache import PackedDataset
from model_code.errors import DarkroomError
from model_code.recipes.catalog import build_config
from model_code.settings import load_settings
from model_code.training.run_folder import RunResult
from serving.client.client import PredictResult, predict
from serving.listing import Column, print_listing

DATASET = "shapes"
# Each with its changes for 3,000 images, too few for FastNet's batches of 1,024; its learning rate goes with the batch.
# A fifth of the images is held out to calibrate on.
RECIPES: dict[str, dict[str, object]] = {
    "resnet18_cifar10_exp": {},
    "fastnet_cifar10": {
        "batch_size": 64,
        "learning_rate": 0.1,
        "validation_fraction": 0.2,
        "label_smoothing": 0.0,  # clean images: nothing speaks against high probabilities
        "shift_averaging_pixels": 0,  # two views are enough here, and certified three times faster
    },
}
COMPARED_EPOCHS, EPOCHS = 1, 6
TARGET_ACCURACY = 0.95
IMAGES_SHOWN = 5
START_TIMEOUT_S = 60.0


def run_quickstart(port: int) -> None:
    """Run every stage for real and print what came out.

    Args:
        port: Port of the service; 0 takes a free one.

    Raises:
        DarkroomError: A stage failed, or the model is worse than expected.
    """
    settings = load_settings()
    added = add_dataset(DATASET, cache_dir=settings.cache_dir, data_dir=settings.data_dir)
    print_added(added)
    compared = _train(RECIPES, COMPARED_EPOCHS)
    best = max(compared, key=lambda result: result.metrics["validation/best_accuracy"])
    [chosen] = _train([best.recipe], EPOCHS)
    released = release(chosen.run_id, DATASET)
    images = _save_images(added.dataset, settings.home / "quickstart")
    print("starting the service", flush=True)
    answer = _ask_service(list(images), port)
    _print_runs([*compared, chosen])
    _print_release(released)
    _print_answers(answer, list(images.values()))
    print(
        f"\nThe images are in {next(iter(images)).parent}. To go on:\n"
        "  make serve   http://127.0.0.1:3000, a page to drop them on\n"
        "  make ui      MLflow with these runs and the model, at the address that it prints\n"
        "  make data    CIFAR-10, the real thing; then darkroom train fastnet_cifar10",
        flush=True,
    )
    accuracy = chosen.metrics["test/accuracy"]
    if accuracy < TARGET_ACCURACY:
        raise DarkroomError(
            f"{chosen.recipe} labelled {accuracy:.1%} of the test images correctly, and at least {TARGET_ACCURACY:.0%} "
            "are expected: please report it, with what `darkroom doctor` says"
        )


def _train(recipes: Iterable[str], epochs: int) -> list[RunResult]:
    """Train recipes on the drawn images for some epochs; what was trained before is kept.

    Raises:
        DarkroomError: One of them failed.
    """
    shared = {"dataset": DATASET, "epochs": epochs}
    outcomes = train_all([build_config(name, changes=shared | RECIPES[name]) for name in recipes], train_task)
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    if len(results) < len(outcomes):
        failed = next(outcome for outcome in outcomes if outcome.result is None)
        raise DarkroomError(f"{failed.recipe} could not be trained: {failed.error}")
    return results


def _save_images(dataset: PackedDataset, folder: Path) -> dict[Path, str]:
    """Write the first test image of some classes as PNG files; return the label of each."""
    folder.mkdir(parents=True, exist_ok=True)
    test = dataset.splits["test"]
    labels = {}
    for label in np.linspace(0, len(dataset.classes) - 1, IMAGES_SHOWN).astype(int):
        index = int(np.flatnonzero(test.labels_N == label)[0])
        path = folder / f"{dataset.classes[label]}.png"
        Image.fromarray(test.images_NHWC[index]).save(path)
        labels[path] = dataset.classes[label]
    return labels


def _print_runs(results: Sequence[RunResult]) -> None:
    columns = (
        Column("run", "run"),
        Column("recipe", "recipe"),
        Column("epochs", "epochs"),
        Column("validation", "validation"),
        Column("test", "test"),
        Column("seconds", "seconds"),
    )
    records = [
        {
            "run": result.run_id[:8],
            "recipe": result.recipe,
            "epochs": result.epochs,
            "validation": format_accuracy(result.metrics["validation/best_accuracy"]),
            "test": format_accuracy(result.metrics["test/accuracy"]),
            "seconds": round(result.seconds),
        }
        for result in results
    ]
    print_listing(columns, records)


def _print_release(released: ReleaseSummary) -> None:
    print(describe_decision(released))
    verdict = released.verdict
    if verdict is not None:
        low, high = verdict.challenger_interval
        accuracy = f"{verdict.challenger_accuracy:.1%}"
        print(f"  {accuracy} of {verdict.count} test images as released, 95 % CI {low:.1%} to {high:.1%}")


def _print_answers(answer: PredictResult, labels: Sequence[str]) -> None:
    """Print what the service answered beside the true labels."""
    model = answer.models[0]
    print(f"\nAnswers of version {model.version} ({model.precision} on {answer.provider}):")
    columns = (
        Column("image", "image"),
        Column("true label", "truth"),
        Column("answer", "answer"),
        Column("probability", "probability"),
        Column("verdict", "is_right", colours={"right": "green", "wrong": "red"}),
        Column("", "doubt"),
    )
    records = [
        {
            "image": Path(prediction.filename or "").name,
            "truth": label,
            "answer": prediction.label,
            "probability": f"{prediction.probability:.1%}",
            "is_right": "right" if prediction.label == label else "wrong",
            "doubt": "" if prediction.is_confident else "not confident",
        }
        for prediction, label in zip(answer.predictions, labels, strict=True)
    ]
    print_listing(columns, records)


def _ask_service(images: Sequence[Path], port: int) -> PredictResult:
    """Start the service as its own process, ask it about the images, and stop it."""
    port = port or _find_free_port()
    server = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "service.log"
        with log.open("wb") as stream:
            command = [sys.executable, "-P", "-m", "serving.launcher", "--port", str(port)]
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(process, server, log)
            result = predict([str(path) for path in images], server=server, model=DATASET, top_k=3)
            if process.poll() is not None:
                raise DarkroomError(f"the service ended: {_read_last_line(log)}")
        finally:
            process.terminate()
            process.wait()
    if result.problems:
        raise DarkroomError(f"the service refused {result.problems[0].source}: {result.problems[0].message}")
    return result


def _wait_until_ready(process: subprocess.Popen[bytes], server: str, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            is_ready = httpx.get(f"{server}/readyz", trust_env=False).is_success
            if is_ready and process.poll() is None:  # else another program answered
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    what = f"did not get ready within {START_TIMEOUT_S:.0f} s" if process.poll() is None else "ended"
    raise DarkroomError(f"the service {what}: {_read_last_line(log)}")


def _read_last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
    return lines[-1]


def _find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
