"""Trainings that are killed and trainings in two processes, as commands of their own.

DARKROOM_KILLS=20 kills as often as the project promises to survive; one keeps the whole suite short.
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from model_code.training.run_folder import RESULT_FILE, RunResult
from tests.integration.conftest import COMMAND, home_entered, make_environment

KILLS = int(os.environ.get("DARKROOM_KILLS", "1"))
TRAIN = ("train", "resnet18_cifar10_exp", "--profile", "smoke", "--set", "dataset=shapes")


@pytest.fixture(scope="module")
def own_home(tmp_path_factory):
    """A home of its own, with the drawn images in it."""
    from flows.api import add_data

    own_home = tmp_path_factory.mktemp("survival")
    with home_entered(own_home):
        add_data("shapes")
    return own_home


def read_results(own_home: Path) -> list[RunResult]:
    return [
        RunResult.model_validate_json(file.read_bytes())
        for file in sorted((own_home / "checkpoints").glob(f"*/{RESULT_FILE}"), key=lambda file: file.stat().st_mtime)
    ]


@pytest.mark.timeout(900 + 60 * KILLS)
def test_a_training_killed_at_random_moments_ends_like_one_that_was_not(darkroom, prefect_server, own_home, tmp_path):
    arguments = (*TRAIN, "--epochs", "5", "--seed", "7")
    command = [COMMAND, *arguments]
    environment = make_environment(DARKROOM_HOME=str(own_home), **prefect_server)
    began_s = time.monotonic()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    whole_s = time.monotonic() - began_s
    (whole,) = read_results(own_home)
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert any("epoch 2/5" in line for line in first.stdout)  # there is something to go on from
    first.kill()
    first.communicate()
    draw, kills = random.Random(KILLS), 1
    with (tmp_path / "printed").open("w+") as printed:
        while kills < KILLS:
            process = subprocess.Popen(command, env=environment, stdout=printed)
            try:
                process.wait(draw.uniform(0.3, 1) * whole_s)  # done before: the next command trains a run of its own
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        printed.seek(0)
        lines = printed.read()
    with home_entered(own_home):
        last = darkroom(*arguments)
    assert last.status == 0
    assert "goes on after epoch" in lines + last.out
    results = read_results(own_home)
    assert len(results) > 1
    assert {(result.weights_sha256, result.best_epoch) for result in results} == {
        (whole.weights_sha256, whole.best_epoch)
    }
    client = MlflowClient(f"sqlite:///{own_home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("darkroom")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_id for run in runs) == sorted(result.run_id for result in results)
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        for name in ("train/loss", "validation/accuracy", "train/learning_rate"):
            steps = Counter(metric.step for metric in client.get_metric_history(run.info.run_id, name))
            assert steps == dict.fromkeys(range(1, 6), 1), name


def test_torchrun_trains_in_two_processes_that_a_signal_stops_together(prefect_server, own_home):
    """Longer than one epoch, so that there is something to go on from."""
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2", "--no-python"]
    train = ("train", "simsiam_cifar10", "--profile", "smoke", "--set", "dataset=shapes", "--epochs", "3")
    command = [*torchrun, COMMAND, *train, "--limit-train", "320"]
    environment = make_environment(DARKROOM_HOME=str(own_home), **prefect_server)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    printed = []
    for line in process.stdout:
        printed.append(line)
        if "epoch 1/3" in line and "kNN" in line:  # not the line of a slow epoch that goes on
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert "2 processes" in "".join(printed)
    assert sum("training images without labels" in line for line in printed) == 1  # only the first process reports
    (state,) = (own_home / "checkpoints").glob("*/state.pt")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"goes on after epoch [12] of 3", done.stdout), done.stdout
    assert not state.exists()
    result = read_results(own_home)[-1]
    assert (result.recipe, result.epochs) == ("simsiam_cifar10", 3)


def test_two_nodes_of_two_processes_go_on_after_one_process_was_killed(prefect_server, own_home, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nodes = ["--nnodes", "2", "--nproc-per-node", "2", "--max-restarts", "3", "--rdzv-backend", "c10d"]
    meeting = ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
    torchrun = [str(Path(sys.executable).with_name("torchrun")), *nodes, *meeting]
    train = ("train", "simsiam_cifar10", "--profile", "smoke", "--set", "dataset=shapes", "--epochs", "4")
    # The nodes count their restarts each for itself, and would look for each other at different places of one store.
    apart = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment = make_environment(DARKROOM_HOME=str(own_home), **prefect_server, **apart)
    outputs = [tmp_path / "first", tmp_path / "second"]
    running = []
    for number, output in enumerate(outputs):
        place = ["--rdzv-conf", f"is_host={1 - number}", "--no-python", COMMAND, *train, "--limit-train", "320"]
        with output.open("w") as file:
            running.append(subprocess.Popen([*torchrun, *place], env=environment, stdout=file, stderr=file))

    def read():
        return "".join(output.read_text() for output in outputs)

    try:
        deadline_s = time.monotonic() + 180
        while not re.search(r"epoch 1/4 .*kNN", read()):
            assert time.monotonic() < deadline_s, read()
            time.sleep(0.05)
        (worker, _) = psutil.Process(running[1].pid).children()
        worker.kill()
        assert [one.wait(180) for one in running] == [0, 0], read()
    finally:
        for one in running:
            one.terminate()  # torchrun ends its processes
        for one in running:
            one.wait(60)
    printed = read()
    assert "4 processes" in printed
    assert re.search(r"goes on after epoch [1-3] of 4", printed), printed
    result = read_results(own_home)[-1]
    assert (result.recipe, result.epochs) == ("simsiam_cifar10", 4)
    client = MlflowClient(f"sqlite:///{own_home / 'mlflow.db'}")
    assert client.get_run(result.run_id).info.status == "FINISHED"
    steps = Counter(metric.step for metric in client.get_metric_history(result.run_id, "train/loss"))
    assert steps == dict.fromkeys(range(1, 5), 1)


def test_torchrun_is_for_training_only(own_home):
    environment = make_environment(DARKROOM_HOME=str(own_home), RANK="0", WORLD_SIZE="2")
    for arguments, line in (
        (("train-all",), "train-all runs in one process"),
        (("data", "list"), "data runs in one process"),
    ):
        done = subprocess.run([COMMAND, *arguments], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert line in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
