"""`--runner ray` of train-all and sweep: weights, kills, Ctrl-C on a cluster of two nodes, which are processes here."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec

import psutil
import pytest
from mlflow import MlflowClient

from flows.operations.ray_cluster import ASK
from model_code.tracking.run_tracker import EVERY_EPOCH
from tests.integration.conftest import read_until, read_weights
from tests.integration.test_sweep import SWEEP, fill_home

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray, the extra [ray], is not installed"),
]

COUNT = int(os.environ.get("DARKROOM_RAY_RUNS", "3"))
kills = pytest.mark.skipif(
    "DARKROOM_RAY_RUNS" not in os.environ, reason="kills of nodes and commands take minutes: DARKROOM_RAY_RUNS=3"
)
EPOCHS = 8
RECIPES = [f"tiny_{number}" for number in range(COUNT)]
STUDY = ("train-all", "--only", "tiny_*")
FIRST, SECOND = "tiny_0", "tiny_2"  # begin at the same time
BEGUN = (rf"{FIRST} seed 0 \| epoch 1/", rf"{SECOND} seed 0 \| epoch 1/")
# Ray takes 127.0.0.1 for the machine's address in the network.
NODE = {"num_cpus": 1, "node_ip_address": "127.0.0.2", "object_store_memory": 80_000_000}
END_S = 60


@pytest.fixture(scope="module")
def cluster():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray import cluster_utils  # here: it changes this process

        started = cluster_utils.Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        try:
            started.add_node(**NODE)
            yield started
        finally:
            started.shutdown()
            signal.signal(signal.SIGTERM, before)


@pytest.fixture
def start(start_darkroom, tiny_home):
    """Start the study, two runs at once."""
    return partial(start_darkroom, *STUDY, "--runner", "ray", "--at-once", 2, DARKROOM_HOME=str(tiny_home))


@pytest.fixture
def run(start):
    """Run the study to its end; its output comes back."""

    return lambda *arguments, **environment: finish(start(*arguments, **environment))


def finish(process):
    """Wait for the end of a command; its output comes back."""
    out = process.communicate(timeout=900)[0]
    assert process.returncode == 0, out[-3000:]
    return out


def check(home, weights):
    """Every run was trained once to its end, and MLflow has each of its epochs once."""
    assert read_weights(home) == weights
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("darkroom").experiment_id])
    assert {one.info.status for one in runs} == {"FINISHED"}
    trained = [one.info.run_id for one in runs if EVERY_EPOCH in one.data.metrics]
    assert len(trained) == COUNT
    for run_id in trained:
        epochs = [metric.step for metric in client.get_metric_history(run_id, EVERY_EPOCH)]
        assert epochs == list(range(1, EPOCHS + 1))


def find_runs(home):
    """Processes that train in a home, whoever started them."""
    found = []
    for process in psutil.process_iter():
        try:
            is_run = "flows.operations.run_process" in process.cmdline()
            if is_run and process.environ().get("DARKROOM_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until_none_trains(home):
    end_s = time.monotonic() + END_S
    while left := find_runs(home):
        assert time.monotonic() < end_s, left
        time.sleep(0.1)


def test_runs_on_nodes_end_as_one_after_another(run, tiny_home, tiny_weights, cluster):
    out = run("--address", cluster.address, "--offline")
    lines = [line for line in out.splitlines() if "s so far" not in line]
    assert lines[:2] == [
        "train-all: loading PyTorch, Ray",
        f"up to 2 runs at once, each through Ray at {cluster.address} with 1 thread",
    ]
    assert all(f"{name} seed 0 | epoch {EPOCHS}/{EPOCHS}" in out for name in RECIPES)
    assert not [line for line in lines[2:] if re.search(r"\bray\b|raylet", line, re.IGNORECASE)], out
    assert read_weights(tiny_home) == tiny_weights


@kills
def test_ctrl_c_and_a_kill_of_the_command_leave_nothing_and_lose_nothing(
    run, start, tiny_home, tiny_weights, cluster, prefect_server
):
    address = ("--address", cluster.address)
    process = start(*address, **prefect_server)
    lines = read_until(process, *BEGUN)
    process.send_signal(signal.SIGINT)
    lines += read_until(process, "^darkroom: interrupted")
    assert process.wait() == 130
    assert re.search(r"interrupted .*: \d complete\n", "".join(lines))
    wait_until_none_trains(tiny_home)

    process = start(*address, **prefect_server)
    begun = r"seed 0 \| (goes on|weights)"
    read_until(process, *(f"{name} ({begun}| kept from)" for name in (FIRST, SECOND)))
    process.kill()
    wait_until_none_trains(tiny_home)
    run(*address, **prefect_server)
    check(tiny_home, tiny_weights)


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """A home with the images and the space of test_sweep.py, that each test copies."""
    return fill_home(tmp_path_factory.mktemp("colours"))


@pytest.fixture
def start_sweep(start_darkroom):
    def start_sweep(home, trials, *arguments):
        options = ("--space", home / "space.toml", "--trials", trials, "--format", "json", *arguments)
        return start_darkroom(*SWEEP, *options, DARKROOM_HOME=str(home))

    return start_sweep


def read_trials(out):
    """Every trial of a sweep, without the run, whose id is another one in each home."""
    trials = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return [{name: value for name, value in trial.items() if name != "run_id"} for trial in trials]


def check_trials(home, trials):
    """MLflow has each trial as one run that has ended, and each of its epochs once."""
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("darkroom").experiment_id])
    assert {one.info.status for one in runs} <= {"FINISHED", "KILLED"}
    assert len(runs) == trials + 1
    recorded = [one.info.run_id for one in runs if EVERY_EPOCH in one.data.metrics]
    assert len(recorded) == trials
    for run_id in recorded:
        epochs = [metric.step for metric in client.get_metric_history(run_id, EVERY_EPOCH)]
        assert epochs == list(range(1, len(epochs) + 1))


def test_a_sweep_on_nodes_ends_as_one_in_a_process(start_sweep, coloured, tmp_path, cluster):
    outs = []
    for number, runner in enumerate(((), ("--runner", "ray", "--address", cluster.address, "--at-once", 1))):
        home = shutil.copytree(coloured, tmp_path / str(number))
        outs.append(finish(start_sweep(home, 3, *runner)))
        check_trials(home, 3)
    local, remote = map(read_trials, outs)
    assert remote == local
    assert [trial["state"] for trial in remote] == ["finished", "finished", "pruned"]
    assert f"up to 1 trial at once, each through Ray at {cluster.address} with 1 thread" in outs[1]
    for line in ("trial 2 begins: learning_rate=", "trial 2 | epoch 1/2  ", "trial 2 pruned after epoch 1 of 2: "):
        assert line in outs[1]


@kills
def test_a_sweep_loses_nothing_when_its_process_a_worker_and_a_trial_are_killed(
    start_sweep, coloured, tmp_path, cluster
):
    whole, own_home = (shutil.copytree(coloured, tmp_path / name) for name in ("whole", "home"))
    trials = read_trials(finish(start_sweep(whole, 12, "--epochs", 4)))
    assert "pruned" in {trial["state"] for trial in trials}
    # Those that are pruned end when their first epoch is told.
    _, killed, interrupted, lost, ended, *_ = [trial["trial"] for trial in trials if trial["state"] == "finished"]
    remote = ("--runner", "ray", "--address", cluster.address, "--at-once", 1)
    start = partial(start_sweep, own_home, 12, "--epochs", 4, *remote)

    process = start()
    read_until(process, rf"^trial {killed} \| epoch 1/")
    process.kill()
    wait_until_none_trains(own_home)

    process = start()
    assert f": {killed} trials done of 12" in "".join(read_until(process, "^sweep fastnet"))
    read_until(process, rf"^trial {interrupted} \| epoch 1/")
    process.send_signal(signal.SIGINT)
    read_until(process, "^darkroom: interrupted")
    assert process.wait() == 130
    wait_until_none_trains(own_home)

    process = start()
    lines = read_until(process, f"^trial {interrupted} resumes", rf"^trial {lost} \| epoch 1/")
    [training] = find_runs(own_home)
    training.parent().kill()  # Ray's worker
    lines += read_until(process, rf"^trial {ended} \| epoch 1/")
    assert "ended without a result" not in "".join(lines)
    [training] = find_runs(own_home)
    training.kill()
    lines = "".join(lines + read_until(process, '"trial": 11'))
    assert process.wait() == 0
    assert len(re.findall(f"^trial {ended} ended without a result: .* SIGKILL", lines, re.MULTILINE)) == 1
    assert read_trials(lines) == trials
    check_trials(own_home, 12)


@kills
def test_two_commands_share_a_sweep_and_one_ends_it_when_the_other_and_a_node_are_killed(
    start_sweep, coloured, tmp_path, cluster
):
    own_home, node = shutil.copytree(coloured, tmp_path / "home"), cluster.add_node(**NODE)
    remote = (own_home, 8, "--runner", "ray", "--address", cluster.address)
    process, other = start_sweep(*remote, "--at-once", 1), start_sweep(*remote)
    assert "up to 3 trials at once" in "".join(read_until(other, "^up to "))
    read_until(other, r"^trial \d \| epoch 1/")
    lines = read_until(process, r"^trial \d \| epoch 1/")
    other.kill()
    cluster.remove_node(node, allow_graceful=False)
    lines = "".join(lines + read_until(process, '"trial": 7'))
    assert process.wait() == 0
    wait_until_none_trains(own_home)
    assert {trial["state"] for trial in read_trials(lines)} <= {"finished", "pruned"}
    assert re.search(r"^trial \d+ resumes", lines, re.MULTILINE)
    check_trials(own_home, 8)


@kills
def test_runs_of_a_node_that_is_killed_go_on_elsewhere(start, tiny_home, tiny_weights, cluster, prefect_server):
    process = start("--address", cluster.address, **prefect_server)
    lines = read_until(process, *BEGUN)
    before = find_runs(tiny_home)
    assert before
    [node] = cluster.worker_nodes
    cluster.remove_node(node, allow_graceful=False)
    out = "".join(lines + read_until(process, r"^recipe\s+seed\s"))
    assert process.wait() == 0, out
    assert [name for name in RECIPES if out.count(f"{name} seed 0 | seed 0") >= 2], out
    check(tiny_home, tiny_weights)


def test_a_ray_of_this_machine_ends_with_the_command_and_is_closed_to_others(start, tiny_home):
    # Nothing can be written below this HOME.
    process = start("--offline", "--set", "epochs=100", HOME="/proc")
    assert "each through a Ray of this machine with 1 thread" in "".join(read_until(process, *BEGUN))
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(find_runs(tiny_home)) == 2
    [raylet] = [child for child in children if child.name() == "raylet"]
    [address] = [word.partition("=")[2] for word in raylet.cmdline() if word.startswith("--gcs-address=")]
    asked = subprocess.run([sys.executable, "-P", "-c", ASK, address], capture_output=True, check=False, text=True)
    assert asked.returncode != 0
    assert "token" in asked.stderr
    process.kill()
    # Ray's two agents look for its server for a minute before they end.
    left = psutil.wait_procs([*children, *find_runs(tiny_home)], timeout=END_S)[1]
    assert {process.name() for process in left} <= {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
