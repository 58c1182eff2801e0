"""Training without MLflow and Prefect, in an environment that has no more than `[node]`, and the way home."""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.experiments.inputs import open_inputs
from flows.experiments.training import train_offline
from flows.operations.side_by_side import RunRequest
from flows.printing.summaries import Outcome
from model_code.recipes.catalog import build_config
from model_code.tracking.provenance import read_git_sha
from model_code.training.run_folder import JOURNAL_FILE, RESULT_FILE, RunResult, create_run_folder
from tests.integration.conftest import COMMAND, home_entered, make_environment, read_until

ROOT = Path(__file__).parents[2]
RUN_LINE = re.compile(r"run ([0-9a-f]{32})")
RECIPE = "resnet18_cifar10_exp2"
SMALL = ("--profile", "smoke", "--set", "dataset=shapes", "--set", "limit_train=200", "--set", "batch_size=40")
RUN = (*SMALL, "--set", "epochs=3", "--seed", 5)
TRAIN = ("train", RECIPE, *RUN)


@dataclass(frozen=True)
class Node:
    """A machine on which the project's wheel with `[node]` is all that is installed, in the locked versions."""

    python: Path
    home: Path

    @property
    def environment(self):
        # There is no git on a node; the first process of each kind compiles for the others.
        return make_environment(
            DARKROOM_HOME=str(self.home), DARKROOM_GIT_SHA=read_git_sha(), PYTHONDONTWRITEBYTECODE=""
        )

    def start(self, *arguments):
        return subprocess.Popen(
            [self.python.with_name("darkroom"), *map(str, arguments)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments):
        process = self.start(*arguments)
        out, _ = process.communicate()
        assert process.returncode == 0, out
        return out


def read_result(home, run_id):
    return RunResult.model_validate_json((home / "checkpoints" / run_id / RESULT_FILE).read_bytes())


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A node with the drawn images."""
    folder = tmp_path_factory.mktemp("node")

    def run(*command):
        subprocess.run(list(map(str, command)), cwd=ROOT, check=True)

    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder)
    [wheel] = folder.glob("*.whl")
    locked = (ROOT / "requirements/train.txt").read_text()
    (folder / "versions.txt").write_text(re.sub(r" *\\\n|^ *--hash.*", "\n", locked, flags=re.MULTILINE))
    python = folder / "venv/bin/python"
    uv = os.environ.get("UV") or shutil.which("uv") or ROOT / ".uv/bin/uv"  # `make` knows where it is
    run(uv, "venv", "--quiet", "--python", sys.executable, folder / "venv")
    options = ("--quiet", "--python", python, "--constraints", folder / "versions.txt")
    run(uv, "pip", "install", *options, f"{wheel}[node]")
    node = Node(python, folder / "home")
    node.run("data", "add", "shapes", "--image-size", 16, "--offline")
    return node


def test_nothing_more_is_installed_there(node):
    code = "from importlib.metadata import distributions; print(*{one.name.lower() for one in distributions()})"
    listed = subprocess.run([node.python, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"darkroom", "torch", "scipy"} <= set(listed)
    assert not {"mlflow", "mlflow-skinny", "prefect", "httpx", "tensorboard", "onnxruntime", "psutil"} & set(listed)


@pytest.mark.parametrize(
    ("arguments", "library", "remedy"),
    [
        (TRAIN, "mlflow|prefect", "; --offline does without MLflow and Prefect"),
        (("report",), "mlflow", ""),
        (("serve",), r"\w+", ""),
        (("predict", "x.png"), r"\w+", ""),
    ],
)
def test_a_command_that_needs_more_says_so(node, arguments, library, remedy):
    process = node.start(*arguments)
    out, _ = process.communicate()
    assert process.returncode == 1
    needed = rf'darkroom: this command needs ({library}), which is not installed: pip install "darkroom\[train,serve\]"'
    assert re.fullmatch(needed + re.escape(remedy), out.splitlines()[-1]), out
    assert "Traceback" not in out


@pytest.fixture(scope="module")
def trained(node):
    """The run of a training that was killed after its first epoch and repeated."""
    process = node.start(*TRAIN, "--offline")
    try:
        read_until(process, "epoch 1/3")
    finally:
        process.kill()
        process.communicate()
    out = node.run(*TRAIN, "--offline")
    [folder] = (node.home / "checkpoints").glob(f"*/{JOURNAL_FILE}")
    assert RUN_LINE.search(out).group(1) == folder.parent.name
    return folder.parent.name


@pytest.fixture(scope="module")
def synced(node, trained, home, tmp_path_factory):
    """What the sync of that run printed, and its id at home; two syncs before it were killed."""
    from flows.api import add_data

    carried = tmp_path_factory.mktemp("carried")
    node.run("runs", "pack", trained[:8], "--out", carried, "--weights", "all", "--part-size", "4MiB")
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
    before, after = read_result(node.home, trained), read_result(home, run_id)
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
    run_id = RUN_LINE.search(node.run("train", recipe, *options)).group(1)
    assert read_result(node.home, run_id).recipe == recipe
    assert f"run {run_id}: " in node.run("runs", "pack", run_id, "--out", tmp_path)
    assert "  keep" in node.run("train-all", "--only", recipe, "--dry-run", *options)


def test_a_run_side_by_side_with_others_is_trained_on_a_node(node):
    config = build_config(RECIPE, "smoke", {"dataset": "shapes", "limit_train": 200, "batch_size": 40, "epochs": 1})
    done = subprocess.run(
        [node.python, "-P", "-m", "flows.operations.run_process", str(os.getpid())],
        input=RunRequest(config=config, is_offline=True).model_dump_json(),
        env=node.environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = Outcome.model_validate_json(done.stdout).result
    assert read_result(node.home, result.run_id) == result
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


def test_an_interrupted_run_that_is_not_gone_on_with_is_named(node, monkeypatch, capsys):
    monkeypatch.setenv("DARKROOM_HOME", str(node.home))
    config = build_config("pixels_cifar10_random", "smoke", {"dataset": "shapes"})
    inputs = open_inputs(config, is_offline=True)
    checkpoints_dir = node.home / "checkpoints"
    in_mlflow = create_run_folder(checkpoints_dir, inputs.record.model_copy(update={"run_id": "e" * 32}))
    result = train_offline(inputs)
    shutil.rmtree(in_mlflow.path)
    line = f"a new run begins: the interrupted run {'e' * 32} of the same settings is resumed without --offline only"
    assert line in capsys.readouterr().out
    assert read_result(node.home, result.run_id) == result


def test_a_run_goes_on_as_it_was_begun(darkroom, node, trained, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(node.home))
    done = darkroom("runs", "pack", "f" * 32, "--out", "x")
    assert (done.status, "no run 'ffff" in done.err) == (1, True)
    folder = node.home / "checkpoints" / trained
    (folder / RESULT_FILE).rename(folder / "kept")
    refused = darkroom(*TRAIN, "--resume", trained)
    (folder / "kept").rename(folder / RESULT_FILE)
    assert refused.status == 2
    assert f"run {trained} was begun with --offline; repeat its command with it" in refused.err
