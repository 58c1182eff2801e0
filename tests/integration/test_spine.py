"""From images to a prediction over HTTP, for real: data, training, tracking, release, service, client."""

import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from serving.bundle.store import hash_file, read_champion, read_pointer

TRAIN = (
    "resnet18_cifar10_exp",
    *("--set", "dataset=shapes", "--limit-train", 500, "--set", "batch_size=50"),
    *("--set", "epochs=2"),
)
# For what no figure matters to.
FEW = (*TRAIN, "--limit-train", 200, "--set", "limit_test=100")
RUN_LINE = re.compile(r"run ([0-9a-f]{32})")


def get_client():
    from model_code.settings import load_settings
    from model_code.tracking.store import open_store

    return open_store(load_settings())


def read_result(home, run_id):
    return json.loads((home / "checkpoints" / run_id / "result.json").read_text())


def test_train_release_serve_predict(darkroom, home, shapes, monkeypatch):
    trained = darkroom("train", *TRAIN)
    assert trained.status == 0, trained.err
    run_id = RUN_LINE.search(trained.out).group(1)
    result = read_result(home, run_id)
    assert f"test accuracy {result['metrics']['test/accuracy']:.4f}" in trained.out

    client = get_client()
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/accuracy"] == result["metrics"]["test/accuracy"]
    assert run.data.params["learning_rate"] == "0.01"
    assert run.data.tags["data_checksum"] == shapes.checksum
    assert run.data.tags["published_accuracy"] == "0.827"
    accuracy = f"{result['metrics']['test/accuracy']:.4f}"
    assert run.data.tags["mlflow.note.content"].startswith(f"Test accuracy {accuracy}, ")
    assert "Torchvision's ResNet-18" in run.data.tags["mlflow.note.content"]
    assert run.data.tags["mlflow.source.name"].startswith("darkroom train resnet18_cifar10_exp --set dataset=shapes ")
    assert run.data.tags["profile"] == "custom"
    assert [metric.step for metric in client.get_metric_history(run_id, "validation/accuracy")] == [1, 2]
    assert "system/cpu_utilization_percentage" in run.data.metrics
    artifacts = {
        file.path for folder in ("figures", "checkpoints", "reports") for file in client.list_artifacts(run_id, folder)
    }
    assert artifacts == {
        *("figures/curves.png", "figures/test_confusion.png", "figures/test_pictures.png"),
        *("checkpoints/best.safetensors", "checkpoints/last.safetensors", "reports/test.json"),
    }
    assert client.list_artifacts(run_id, "tensorboard")

    dry = darkroom("release", run_id, "--as", "shapes", "--mode", "dry_run")
    assert dry.status == 0, dry.err
    assert "nothing was registered" in dry.out
    assert not (home / "bundles" / "shapes").exists()

    released = darkroom("release", run_id, "--as", "shapes")
    assert released.status == 0, released.err
    pointer, _, manifest = read_champion(home / "bundles", "shapes")
    assert manifest.run_id == run_id
    assert manifest.fp32.certificates[0].count == len(shapes.splits["test"].labels_N)
    assert manifest.fp32.certificates[0].max_difference <= 1e-4
    champion = client.get_model_version_by_alias("shapes", "champion")
    assert str(champion.version) == pointer.version
    assert champion.tags["sha256"] == manifest.fp32.sha256

    again = darkroom("release", run_id, "--as", "shapes")
    assert again.status == 0, again.err
    assert read_pointer(home / "bundles", "shapes") == pointer

    check_service(darkroom, home, shapes, result, manifest, monkeypatch)


def check_service(darkroom, home, shapes, result, manifest, monkeypatch):
    """The service answers every test image as the test did."""
    test = shapes.splits["test"]
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.launcher", "--port", "0", "--precision", "fp32"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = next(line for line in process.stdout if line.startswith("Darkroom serves at")).split()[3]
        headers = {"Content-Type": "image/png"}
        with httpx.Client(base_url=url, trust_env=False, headers=headers) as client:
            address = "/v1/predict?model=shapes&top_k=1"  # other tests may have released into the same home
            answers = [client.post(address, content=as_png(image)).json() for image in test.images_NHWC]
        labels = [shapes.classes[label] for label in test.labels_N]
        predicted = [answer["predictions"][0]["label"] for answer in answers]
        right = sum(a == b for a, b in zip(predicted, labels, strict=True))
        assert right / len(labels) == pytest.approx(result["metrics"]["test/accuracy"], abs=1e-12)
        assert answers[0]["model"]["sha256"] == manifest.fp32.sha256
        assert answers[0]["provider"].endswith("ExecutionProvider")

        image = home / "one.png"
        image.write_bytes(as_png(test.images_NHWC[7]))
        asked = darkroom("predict", image, "--server", url, "--model", "shapes", "--top-k", 2)
        assert asked.status == 0, asked.err
        assert predicted[7] in asked.out
        monkeypatch.setattr("flows.jobs.service.FIRST_LINE_S", 0.0)
        monkeypatch.delenv("COLUMNS", raising=False)
        partly = darkroom("predict", image, home / "none.png", "--server", url, "--model", "shapes")
        assert re.search(r"^images sent: \d$", partly.err, re.MULTILINE), partly.err
        rows = [line.split("\t") for line in partly.out.splitlines()]
        assert partly.status == 1
        assert [(Path(row[0]).name, row[1] != "", row[-1] != "") for row in rows[1:]] == [
            ("one.png", True, False),
            ("none.png", False, True),
        ]
        none = darkroom("predict", home / "none.png", "--server", url, "--model", "shapes")
        assert (none.status, [line.split("\t")[0] for line in none.out.splitlines()[1:]]) == (
            1,
            [str(home / "none.png")],
        )
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        process.stdout.close()


def as_png(image) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


def test_one_seed_gives_one_set_of_weights(darkroom, home, shapes):
    shas = []
    for seed in (7, 7, 8):
        done = darkroom("train", *FEW, "--seed", seed)
        assert done.status == 0, done.err
        run_id = RUN_LINE.search(done.out).group(1)
        shas.append(read_result(home, run_id)["weights_sha256"])
    assert shas[0] == shas[1] != shas[2]


def test_a_killed_training_is_continued_by_the_same_command(darkroom, start_darkroom, home, shapes):
    arguments = (*FEW, "--seed", 11, "--set", "epochs=4")
    interrupted = start_darkroom("train", *arguments)
    run_id = stop_when(interrupted, lambda line: "epoch 1/4" in line, signal.SIGINT, expected_status=130)
    assert get_client().get_run(run_id).info.status == "KILLED"
    assert (home / "checkpoints" / run_id / "state.pt").exists()
    killed = start_darkroom("train", *arguments)
    assert stop_when(killed, lambda line: "epoch 3/4" in line, signal.SIGKILL, -signal.SIGKILL) == run_id

    continued = darkroom("train", *arguments)
    assert continued.status == 0, continued.err
    assert RUN_LINE.search(continued.out).group(1) == run_id
    assert "goes on after epoch" in continued.out
    history = get_client().get_metric_history(run_id, "validation/accuracy")
    assert [metric.step for metric in history] == [1, 2, 3, 4]
    assert not (home / "checkpoints" / run_id / "state.pt").exists()

    uninterrupted = darkroom("train", *arguments)
    other_id = RUN_LINE.search(uninterrupted.out).group(1)
    assert other_id != run_id
    folders = [home / "checkpoints" / name for name in (run_id, other_id)]
    assert len({hash_file(folder / "last.safetensors") for folder in folders}) == 1
    assert len({read_result(home, name)["weights_sha256"] for name in (run_id, other_id)}) == 1


def stop_when(process, is_time, signum, expected_status) -> str:
    """Send a signal at the first line for which `is_time` holds; return the run id that the process printed."""
    run_id = ""
    for line in process.stdout:
        found = RUN_LINE.search(line)
        run_id = found.group(1) if found else run_id
        if is_time(line):
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signum)
            break
    assert process.wait(60) == expected_status
    assert children, "Prefect's server runs as a child"
    assert not psutil.wait_procs(children, timeout=10)[1], "no process is left behind"
    return run_id


def test_train_all_goes_on_after_a_failure_and_keeps_what_is_done(darkroom, home, shapes):
    options = ("--set", "dataset=shapes", "--set", "limit_train=200", "--set", "epochs=1", "--set", "batch_size=50")
    options += ("--set", "limit_test=100", "--only", "resnet18_cifar10_exp[29]", "--set", "seed=5")
    first = darkroom("train-all", *options, "--set", f"pretrained_weights={home}/missing.pth")
    assert first.status == 1
    rows = [
        line for line in first.out.splitlines() if line.strip().startswith("resnet18_cifar10_exp") and "failed" in line
    ]
    assert any("no such file" in row for row in rows)

    only = (*options[:-4], "--only", "resnet18_cifar10_exp2", "--set", "seed=5")
    second = darkroom("train-all", *only)
    assert second.status == 0, second.err
    third = darkroom("train-all", *only)
    assert third.status == 0, third.err
    assert "kept from run" in third.out
    run_id = re.search(r"kept from run ([0-9a-f]{32})", third.out).group(1)
    assert run_id in second.out
    client = get_client()
    parent = client.get_run(client.get_run(run_id).data.tags["mlflow.parentRunId"])
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "train-all, custom: 1 run")

    (home / "checkpoints" / run_id / "result.json").unlink()
    fourth = darkroom("train-all", *only)
    assert fourth.status == 0, fourth.err
    assert "kept from run" not in fourth.out


def test_two_trainings_wait_for_each_other(home, shapes, capfd):
    from flows.operations.device_slot import hold_device

    order = []

    def wait():
        with hold_device(home / "locks", "test"):
            order.append("second")

    with hold_device(home / "locks", "test"):
        other = threading.Thread(target=wait)
        other.start()
        time.sleep(0.3)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]
    assert "waiting for it" in capfd.readouterr().out


def test_no_test_images_means_validation_only(darkroom, home, tmp_path):
    for label in ("bright", "dark"):
        folder = tmp_path / "set" / label
        folder.mkdir(parents=True)
        for number in range(60):
            level = (150 if label == "bright" else 0) + number
            Image.new("RGB", (32, 32), (level, level, level)).save(folder / f"{number}.png")
    added = darkroom("data", "add", "shades", "--from", tmp_path / "set", "--image-size", 32)
    assert added.status == 0, added.err
    assert "no test images" in added.out
    done = darkroom(
        *("train", "resnet18_cifar10_exp", "--set", "dataset=shades", "--epochs", 1, "--set", "batch_size=16")
    )
    assert done.status == 0, done.err
    assert "no test images" in done.out
    run = get_client().get_run(RUN_LINE.search(done.out).group(1))
    assert "test/accuracy" not in run.data.metrics
    assert run.data.metrics["validation/pictures"] > 0
    for name in ("loss", "accuracy", "macro_f1"):
        history = get_client().get_metric_history(run.info.run_id, f"validation/{name}")
        assert [metric.step for metric in history] == [1], "the final measurement is no point of the curve"
