"""`train-all --at-once`: order, weights, kills and Ctrl-C of runs side by side, as commands of their own."""

import json
import re
import shutil
import signal
import subprocess
from contextlib import contextmanager

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from model_code.disk import is_locked
from model_code.training.device import name_device, name_lock
from model_code.training.run_folder import RESULT_FILE, RunResult
from tests.integration.conftest import COMMAND, make_environment

# side_b starts from side_a.
RECIPES = {"side_a": "", "side_b": 'pretrained_weights = "recipe:side_a"', "side_c": ""}
SETTINGS = 'dataset = "shapes"\nlimit_train = 100\nlimit_test = 40\nbatch_size = 20\nepochs = 3\n'
STUDY = ("train-all", "--only", "side_*")
LINE = re.compile(r"side_[abc] seed 0 \| \S.*|\[[123]/3\] side_[abc]|up to 2 runs at once, .* 1 thread|train-all: .*")


def run(home, *arguments, status=0):
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        env=make_environment(DARKROOM_HOME=str(home)),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A home with images and three recipes, that each test copies."""
    packed = tmp_path_factory.mktemp("side-by-side")
    run(packed, "data", "add", "shapes", "--image-size", 16, "--offline")
    (packed / "recipes").mkdir()
    for name, more in RECIPES.items():
        text = f'from = "resnet18_cifar10_exp3"\n[settings]\n{SETTINGS}{more}\n'
        (packed / "recipes" / f"{name}.toml").write_text(text)
    return packed


@pytest.fixture
def own_home(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "home")


def list_done(home):
    return [file.parent.name for file in home.glob(f"checkpoints/*/{RESULT_FILE}")]


def read_weights(home):
    results = (RunResult.model_validate_json(file.read_bytes()) for file in home.glob(f"checkpoints/*/{RESULT_FILE}"))
    return sorted((result.recipe, result.weights_sha256, result.metrics["test/accuracy"]) for result in results)


@pytest.fixture(scope="module")
def weights(packed, tmp_path_factory):
    """What one after another leaves of each recipe."""
    home = shutil.copytree(packed, tmp_path_factory.mktemp("one-by-one") / "home")
    run(home, *STUDY, "--offline")
    return read_weights(home)


@contextmanager
def started(home, *arguments):
    """Start a study; yield its process and how to read its lines up to one of each run that is asked for."""
    process = subprocess.Popen(
        [COMMAND, *STUDY, "--at-once", "2", *arguments],
        env=make_environment(DARKROOM_HOME=str(home)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []

    def read_until(*wanted):
        left = set(wanted)
        for line in process.stdout:
            lines.append(line)
            left -= {one for one in left if one in line}
            if not left:
                return lines
        raise AssertionError(f"{left} never came:\n{''.join(lines)}")

    try:
        yield process, read_until
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def find_child(process, recipe):
    [child] = [one for one in psutil.Process(process.pid).children() if f"{recipe}-seed-0" in one.cmdline()]
    return child


def test_runs_side_by_side_end_as_one_after_another(own_home, weights):
    with started(own_home, "--offline", "--format", "json") as (process, read_until):
        read_until("side_a seed 0 | epoch 1/3", "side_c seed 0 | epoch 1/3")
        assert len(psutil.Process(process.pid).children()) == 2
        assert is_locked(own_home / "locks" / name_lock(name_device("auto"))), "another command waits for the device"
        lines = read_until("side_b seed 0 | weights")
        rest = process.stdout.read().splitlines()
        assert process.wait() == 0
    told = [line.rstrip("\n") for line in lines] + [line for line in rest if not line.startswith("{")]
    assert [line for line in told if not LINE.fullmatch(line)] == []
    began = {recipe: told.index(f"[{number}/3] {recipe}") for number, recipe in enumerate(RECIPES, start=1)}
    done = next(place for place, line in enumerate(told) if line.startswith("side_a seed 0 | weights"))
    assert began["side_a"] < began["side_c"] < done < began["side_b"]
    records = [json.loads(line) for line in rest if line.startswith("{")]
    assert [(record["recipe"], record["state"]) for record in records] == [(recipe, "done") for recipe in RECIPES]
    assert read_weights(own_home) == weights

    quiet = run(own_home, *STUDY, "--offline", "--at-once", 2, "--quiet", "--format", "json")
    assert [json.loads(line)["state"] for line in quiet.stdout.splitlines()] == ["kept"] * 3
    assert quiet.stderr == ""


def test_in_mlflow_they_are_below_their_study(own_home, weights):
    done = run(own_home, *STUDY, "--at-once", 3)
    assert "up to 3 runs at once, each in a process of its own with 1 thread" in done.stdout
    client = MlflowClient(f"sqlite:///{own_home / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("darkroom").experiment_id])
    [parent] = [one for one in runs if "group" in one.data.tags]
    assert {one.info.status for one in runs} == {"FINISHED"}
    assert {one.data.tags[MLFLOW_PARENT_RUN_ID] for one in runs if one is not parent} == {parent.info.run_id}
    assert len(runs) == 4
    assert read_weights(own_home) == weights


def test_one_that_is_killed_fails_alone_and_is_resumed(own_home, weights):
    with started(own_home, "--offline") as (process, read_until):
        read_until("side_c seed 0 | epoch 1/3")
        find_child(process, "side_c").kill()
        lines = "".join(read_until("runs failed: side_c"))
        assert process.wait() == 1
    assert "side_c  failed: the process of seed 0 was ended by SIGKILL" in lines
    assert read_weights(own_home) == [one for one in weights if one[0] != "side_c"]
    [killed] = {folder.parent.name for folder in own_home.glob("checkpoints/*/run.json")} - set(list_done(own_home))
    resumed = run(own_home, *STUDY, "--offline", "--at-once", 2)
    assert f"side_c seed 0 | seed 0  run {killed}\n" in resumed.stdout
    assert (killed in list_done(own_home), read_weights(own_home)) == (True, weights)


def test_ctrl_c_and_a_kill_leave_no_process_and_lose_nothing(own_home, weights):
    with started(own_home, "--offline") as (process, read_until):
        read_until("side_a seed 0 | epoch 1/3", "side_c seed 0 | epoch 1/3")
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        lines = "".join(read_until("darkroom: interrupted"))
        assert process.wait() == 130
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert re.search(r"interrupted .*: \d complete\n", lines)
    assert list(own_home.glob("checkpoints/*/state.pt"))

    with started(own_home, "--offline") as (process, read_until):
        read_until("side_c seed 0 | goes on")
        children = psutil.Process(process.pid).children()
        process.kill()
        assert len(children) == 2
        assert psutil.wait_procs(children, timeout=10)[1] == []
    run(own_home, *STUDY, "--offline", "--at-once", 2)
    assert read_weights(own_home) == weights
