"""Training without MLflow and Prefect, in an environment that has no more than `[node]`, and the way home."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.operations.side_by_side import RunRequest
from flows.printing.summaries import Outcome
from model_code.recipes.catalog import build_config
from model_code.training.run_folder import JOURNAL_FILE, RESULT_FILE, RunResult
from tests.integration.conftest import COMMAND, home_entered, make_environment

ROOT = Path(__file__).parents[2]
RUN_LINE = re.compile(r"run ([0-9a-f]{32})")
RECIPE = "resnet18_cifar10_exp2"
SMALL = ("--profile", "smoke", "--set", "dataset=shapes", "--set", "limit_train=200", "--set", "batch_size=40")
RUN = (*SMALL, "--set", "epochs=3", "--seed", 5)
TRAIN = ("train", RECIPE, *RUN)


def start_node(home, *arguments):
    """Start the command as on a machine with `[node]` only."""
    command = [sys.executable, "-P", "-c", "from tests.integration.node_command import main; main()"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        env=make_environment(DARKROOM_HOME=str(home), PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_node(home, *arguments):
    process = start_node(home, *arguments)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    return out


def read_result(home, run_id):
    return RunResult.model_validate_json((home / "checkpoints" / run_id / RESULT_FILE).read_bytes())


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A home on a node, with the drawn images in it."""
    node = tmp_path_factory.mktemp("node")
    run_node(node, "data", "add", "shapes", "--image-size", 16, "--offline")
    return node


@pytest.fixture(scope="module")
def trained(node):
    """The run of a training that was killed after its first epoch and repeated."""
    process = start_node(node, *TRAIN, "--offline")
    try:
        for line in process.stdout:
            if "epoch 1/3" in line:
                break
    finally:
        process.kill()
        process.communicate()
    out = run_node(node, *TRAIN, "--offline")
    [folder] = (node / "checkpoints").glob(f"*/{JOURNAL_FILE}")
    assert RUN_LINE.search(out).group(1) == folder.parent.name
    return folder.parent.name


@pytest.fixture(scope="module")
def synced(node, trained, home, tmp_path_factory):
    """What the sync of that run printed, and its id at home; two syncs before it were killed."""
    from flows.api import add_data

    carried = tmp_path_factory.mktemp("carried")
    run_node(node, "runs", "pack", trained[:8], "--out", carried, "--weights", "all", "--part-size", "4MiB")
    assert all(file.stat().st_size <= 4 * 2**20 for file in carried.iterdir())
    environment = make_environment()
    with home_entered(home):
        add_data("shapes", image_size=16)
    for _ in range(2):
        process = subprocess.Popen([COMMAND, "runs", "sync", carried], env=environment)
        while process.poll() is None and not list((home / "checkpoints").glob(".incoming/*/tensorboard/*")):
            time.sleep(0.02)
        process.kill()
        assert process.wait() != 0, "it was done before it was killed"
    done = subprocess.run(
        [COMMAND, "runs", "sync", carried], env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, re.search(r"is now run ([0-9a-f]{32})", done.stdout).group(1)


@pytest.mark.timeout(1800)  # with the fixtures before it
def test_a_run_is_trained_on_a_node_and_reported_and_released_at_home(darkroom, node, trained, synced, home):
    out, run_id = synced
    assert "its weights answer 32 test images as where they were packed" in out
    before, after = read_result(node, trained), read_result(home, run_id)
    assert (after.weights_sha256, after.metrics) == (before.weights_sha256, before.metrics)
    released = darkroom("release", run_id, "--as", "shapes", "--mode", "dry_run")
    assert "dry run, nothing was registered" in released.out, released.err
    reported = darkroom("report", "--out", home / "offline-report")
    assert reported.status == 0, reported.err
    assert run_id in (home / "offline-report/report.md").read_text()


def test_train_all_keeps_it_and_a_training_with_mlflow_ends_with_the_same_weights(darkroom, synced, home):
    _, run_id = synced
    kept = darkroom("train-all", "--only", RECIPE, *RUN)
    assert kept.status == 0, kept.err
    assert f"kept from run {run_id}" in kept.out
    online = darkroom(*TRAIN)
    assert online.status == 0, online.err
    again = read_result(home, RUN_LINE.search(online.out).group(1))
    first = read_result(home, run_id)
    assert (again.run_id != run_id, again.weights_sha256) == (True, first.weights_sha256)
    assert again.metrics == first.metrics


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("simsiam_cifar10", ("limit_train=100", "batch_size=40", "network=resnet18", "knn_neighbours=20", "epochs=1")),
        (
            "resnet18_cifar10_random_calibrated",
            ("limit_train=100", "limit_test=40", "linear.epochs=5", "mlp.epochs=5"),
        ),
    ],
)
def test_other_kinds_are_trained_on_a_node(node, tmp_path, recipe, settings):
    options = ["--profile", "smoke", "--offline", "--set", "dataset=shapes"]
    options += [word for setting in settings for word in ("--set", setting)]
    run_id = RUN_LINE.search(run_node(node, "train", recipe, *options)).group(1)
    assert read_result(node, run_id).recipe == recipe
    assert f"run {run_id}: " in run_node(node, "runs", "pack", run_id, "--out", tmp_path)
    assert "  keep" in run_node(node, "train-all", "--only", recipe, "--dry-run", *options)


def test_a_run_side_by_side_with_others_is_trained_on_a_node(node):
    config = build_config(RECIPE, "smoke", {"dataset": "shapes", "limit_train": 200, "batch_size": 40, "epochs": 1})
    code = (
        "from tests.integration.node_command import hide; hide()\nfrom flows.operations.run_process import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(os.getpid())],
        input=RunRequest(config=config, is_offline=True).model_dump_json(),
        env=make_environment(DARKROOM_HOME=str(node), PYTHONPATH=str(ROOT)),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = Outcome.model_validate_json(done.stdout).result
    assert read_result(node, result.run_id) == result
    assert "epoch 1/1" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train-all", "--offline", "--release"), "--offline and --release exclude each other"),
        (("data", "add", "cifar10", "--download", "--offline"), "--offline and --download exclude each other"),
        (("runs", "pack", "a" * 32, "--out", "x", "--part-size", "1B"), "--part-size 1B: a part has 4096 to"),
        (("runs", "sync", "nowhere"), "no such file or folder: nowhere"),
    ],
)
def test_what_cannot_be_is_one_line(darkroom, arguments, message):
    done = darkroom(*arguments)
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert message in done.err


def test_a_run_goes_on_as_it_was_begun(darkroom, node, trained, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(node))
    done = darkroom("runs", "pack", "f" * 32, "--out", "x")
    assert (done.status, "no run 'ffff" in done.err) == (1, True)
    folder = node / "checkpoints" / trained
    (folder / RESULT_FILE).rename(folder / "kept")
    refused = darkroom(*TRAIN, "--resume", trained)
    (folder / "kept").rename(folder / RESULT_FILE)
    assert refused.status == 2
    assert f"run {trained} was begun with --offline; repeat its command with it" in refused.err
