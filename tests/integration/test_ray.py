"""`--runner ray` of train-all and sweep: weights, kills, Ctrl-C on a cluster of two nodes, which are processes here."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec

import psutil
import pytest
from mlflow import MlflowClient

from flows.operations.ray_cluster import ASK
from model_code.tracking.run_tracker import EVERY_EPOCH
from model_code.training.run_folder import RESULT_FILE, RunResult
from tests.integration.conftest import COMMAND, make_environment
from tests.integration.test_sweep import SPACE, SWEEP, draw_colours

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray, the extra [ray], is not installed"),
]

COUNT = int(os.environ.get("DARKROOM_RAY_RUNS", "3"))
kills = pytest.mark.skipif(
    "DARKROOM_RAY_RUNS" not in os.environ, reason="kills of nodes and commands take minutes: DARKROOM_RAY_RUNS=3"
)
EPOCHS = 8
# tiny_1 starts from tiny_0.
RECIPES = {f"tiny_{number}": 'pretrained_weights = "recipe:tiny_0"' if number == 1 else "" for number in range(COUNT)}
SETTINGS = f'dataset = "shapes"\nlimit_train = 100\nlimit_test = 40\nbatch_size = 20\nepochs = {EPOCHS}\n'
STUDY = ("train-all", "--only", "tiny_*")
FIRST, SECOND = "tiny_0", "tiny_2"  # begin at the same time
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


def start(home, *arguments, **environment):
    return subprocess.Popen(
        [COMMAND, *map(str, arguments)],
        env=make_environment(DARKROOM_HOME=str(home), **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(home, *arguments, **environment):
    process = start(home, *arguments, **environment)
    try:
        out = process.communicate(timeout=900)[0]
    finally:
        process.kill()
    assert process.returncode == 0, out[-3000:]
    return out


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A home with images and recipes, that each test copies."""
    packed = tmp_path_factory.mktemp("ray")
    run(packed, "data", "add", "shapes", "--image-size", 16, "--offline")
    (packed / "recipes").mkdir()
    for name, more in RECIPES.items():
        text = f'from = "resnet18_cifar10_exp3"\n[settings]\n{SETTINGS}{more}\n'
        (packed / "recipes" / f"{name}.toml").write_text(text)
    return packed


@pytest.fixture
def own_home(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "home")


def read_weights(home):
    results = [RunResult.model_validate_json(file.read_bytes()) for file in home.glob(f"checkpoints/*/{RESULT_FILE}")]
    return sorted((result.recipe, result.weights_sha256) for result in results)


@pytest.fixture(scope="module")
def weights(packed, tmp_path_factory):
    """What one after another leaves of each recipe."""
    home = shutil.copytree(packed, tmp_path_factory.mktemp("one-by-one") / "home")
    run(home, *STUDY, "--offline")
    return read_weights(home)


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


def started(home, *arguments, **environment):
    """Start a study; see `started_command`."""
    return started_command(home, *STUDY, "--runner", "ray", "--at-once", 2, *arguments, **environment)


@contextmanager
def started_command(home, *arguments, **environment):
    """Start a command; yield its process and how to read its lines up to one of each run that is asked for."""
    process = start(home, *arguments, **environment)
    lines = []

    def read_until(*wanted):
        left = set(wanted)
        for line in process.stdout:
            lines.append(line)
            left -= {one for one in left if re.search(one, line)}
            if not left:
                return "".join(lines)
        raise AssertionError(f"{left} never came:\n{''.join(lines)}")

    try:
        yield process, read_until
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


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


def test_runs_on_nodes_end_as_one_after_another(own_home, weights, cluster):
    out = run(own_home, *STUDY, "--runner", "ray", "--address", cluster.address, "--at-once", 2, "--offline")
    lines = [line for line in out.splitlines() if "s so far" not in line]
    assert lines[:2] == [
        "train-all: loading PyTorch, Ray",
        f"up to 2 runs at once, each through Ray at {cluster.address} with 1 thread",
    ]
    assert all(f"{name} seed 0 | epoch {EPOCHS}/{EPOCHS}" in out for name in RECIPES)
    assert not [line for line in lines[2:] if re.search(r"\bray\b|raylet", line, re.IGNORECASE)], out
    assert read_weights(own_home) == weights


@kills
def test_ctrl_c_and_a_kill_of_the_command_leave_nothing_and_lose_nothing(own_home, weights, cluster, prefect_server):
    address = ("--address", cluster.address)
    with started(own_home, *address, **prefect_server) as (process, read_until):
        read_until(f"{FIRST} seed 0 . epoch 1/", f"{SECOND} seed 0 . epoch 1/")
        process.send_signal(signal.SIGINT)
        lines = read_until("^darkroom: interrupted")
        assert process.wait() == 130
    assert re.search(r"interrupted .*: \d complete\n", lines)
    wait_until_none_trains(own_home)

    with started(own_home, *address, **prefect_server) as (process, read_until):
        begun = "seed 0 . (goes on|weights)"
        read_until(*(f"{name} ({begun}| kept from)" for name in (FIRST, SECOND)))
        process.kill()
        wait_until_none_trains(own_home)
    run(own_home, *STUDY, "--runner", "ray", *address, "--at-once", 2, **prefect_server)
    check(own_home, weights)


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """A home with the images and the space of test_sweep.py, that each test copies."""
    home = tmp_path_factory.mktemp("colours")
    draw_colours(home / "colours")
    run(home, "data", "add", "colours", "--from", home / "colours", "--image-size", 16, "--offline")
    (home / "space.toml").write_text(SPACE)
    return home


def sweep_in(home, trials, *arguments):
    return (*SWEEP, "--space", home / "space.toml", "--trials", trials, "--format", "json", *arguments)


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


def test_a_sweep_on_nodes_ends_as_one_in_a_process(coloured, tmp_path, cluster):
    outs = []
    for number, runner in enumerate(((), ("--runner", "ray", "--address", cluster.address, "--at-once", 1))):
        home = shutil.copytree(coloured, tmp_path / str(number))
        outs.append(run(home, *sweep_in(home, 3, *runner)))
        check_trials(home, 3)
    local, remote = map(read_trials, outs)
    assert remote == local
    assert [trial["state"] for trial in remote] == ["finished", "finished", "pruned"]
    assert f"up to 1 trial at once, each through Ray at {cluster.address} with 1 thread" in outs[1]
    for line in ("trial 2 begins: learning_rate=", "trial 2 | epoch 1/2  ", "trial 2 pruned after epoch 1 of 2: "):
        assert line in outs[1]


@kills
def test_a_sweep_loses_nothing_when_its_process_a_worker_and_a_trial_are_killed(coloured, tmp_path, cluster):
    whole, own_home = (shutil.copytree(coloured, tmp_path / name) for name in ("whole", "home"))
    trials = read_trials(run(whole, *sweep_in(whole, 12, "--epochs", 4)))
    assert "pruned" in {trial["state"] for trial in trials}
    # Those that are pruned end when their first epoch is told.
    _, killed, interrupted, lost, ended, *_ = [trial["trial"] for trial in trials if trial["state"] == "finished"]
    remote = ("--runner", "ray", "--address", cluster.address, "--at-once", 1)
    sweep = sweep_in(own_home, 12, "--epochs", 4, *remote)

    with started_command(own_home, *sweep) as (process, read_until):
        read_until(f"^trial {killed} . epoch 1/")
        process.kill()
        wait_until_none_trains(own_home)
    with started_command(own_home, *sweep) as (process, read_until):
        assert f": {killed} trials done of 12" in read_until("^sweep fastnet")
        read_until(f"^trial {interrupted} . epoch 1/")
        process.send_signal(signal.SIGINT)
        read_until("^darkroom: interrupted")
        assert process.wait() == 130
        wait_until_none_trains(own_home)
    with started_command(own_home, *sweep) as (process, read_until):
        read_until(f"^trial {interrupted} resumes", f"^trial {lost} . epoch 1/")
        [training] = find_runs(own_home)
        training.parent().kill()  # Ray's worker
        lines = read_until(f"^trial {ended} . epoch 1/")
        assert "ended without a result" not in lines
        [training] = find_runs(own_home)
        training.kill()
        lines = read_until('"trial": 11')
        assert process.wait() == 0
    assert len(re.findall(f"^trial {ended} ended without a result: .* SIGKILL", lines, re.MULTILINE)) == 1
    assert read_trials(lines) == trials
    check_trials(own_home, 12)


@kills
def test_two_commands_share_a_sweep_and_one_ends_it_when_the_other_and_a_node_are_killed(coloured, tmp_path, cluster):
    own_home, node = shutil.copytree(coloured, tmp_path / "home"), cluster.add_node(**NODE)
    sweep = sweep_in(own_home, 8, "--runner", "ray", "--address", cluster.address)
    with (
        started_command(own_home, *sweep, "--at-once", 1) as (process, read_until),
        started_command(own_home, *sweep) as (other, read_other_until),
    ):
        assert "up to 3 trials at once" in read_other_until("^up to ")
        read_other_until(r"^trial \d . epoch 1/")
        read_until(r"^trial \d . epoch 1/")
        other.kill()
        cluster.remove_node(node, allow_graceful=False)
        lines = read_until('"trial": 7')
        assert process.wait() == 0
    wait_until_none_trains(own_home)
    assert {trial["state"] for trial in read_trials(lines)} <= {"finished", "pruned"}
    assert re.search(r"^trial \d+ resumes", lines, re.MULTILINE)
    check_trials(own_home, 8)


@kills
def test_runs_of_a_node_that_is_killed_go_on_elsewhere(own_home, weights, cluster, prefect_server):
    with started(own_home, "--address", cluster.address, **prefect_server) as (process, read_until):
        read_until(f"{FIRST} seed 0 . epoch 1/", f"{SECOND} seed 0 . epoch 1/")
        before = find_runs(own_home)
        assert before
        [node] = cluster.worker_nodes
        cluster.remove_node(node, allow_graceful=False)
        lines = read_until(r"^recipe\s+seed\s")
        assert process.wait() == 0, lines
    assert [name for name in RECIPES if lines.count(f"{name} seed 0 | seed 0") >= 2], lines
    check(own_home, weights)


def test_a_ray_of_this_machine_ends_with_the_command_and_is_closed_to_others(own_home):
    # Nothing can be written below this HOME.
    with started(own_home, "--offline", "--set", "epochs=100", HOME="/proc") as (process, read_until):
        lines = read_until(f"{FIRST} seed 0 . epoch 1/", f"{SECOND} seed 0 . epoch 1/")
        assert "each through a Ray of this machine with 1 thread" in lines
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(find_runs(own_home)) == 2
        [raylet] = [child for child in children if child.name() == "raylet"]
        [address] = [word.partition("=")[2] for word in raylet.cmdline() if word.startswith("--gcs-address=")]
        asked = subprocess.run([sys.executable, "-P", "-c", ASK, address], capture_output=True, check=False, text=True)
        assert asked.returncode != 0
        assert "token" in asked.stderr
        process.kill()
    # Ray's two agents look for its server for a minute before they end.
    left = psutil.wait_procs([*children, *find_runs(own_home)], timeout=END_S)[1]
    assert {process.name() for process in left} <= {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
