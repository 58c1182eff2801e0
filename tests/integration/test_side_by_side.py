"""`train-all --at-once`: order, weights, kills and Ctrl-C of runs side by side."""

import json
import re
import signal
from functools import partial

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from model_code.disk import is_locked
from model_code.training.device import name_device, name_lock
from model_code.training.run_folder import RESULT_FILE
from tests.integration.conftest import home_entered, read_until, read_weights

COUNT, EPOCHS = 3, 3
RECIPES = [f"tiny_{number}" for number in range(COUNT)]
STUDY = ("train-all", "--only", "tiny_*")
LINE = re.compile(r"tiny_[012] seed 0 \| \S.*|\[[123]/3\] tiny_[012]|up to 2 runs at once, .* 1 thread|train-all: .*")


@pytest.fixture
def run(darkroom, tiny_home):
    """Run the study in this process, several runs at once."""

    def run(at_once, *options):
        with home_entered(tiny_home):
            done = darkroom(*STUDY, "--at-once", at_once, *options)
        assert done.status == 0, done.out + done.err
        return done

    return run


@pytest.fixture
def start(start_darkroom, tiny_home):
    """Start the study, two runs at once."""
    return partial(start_darkroom, *STUDY, "--at-once", 2, "--offline", DARKROOM_HOME=str(tiny_home))


def list_done(home):
    return [file.parent.name for file in home.glob(f"checkpoints/*/{RESULT_FILE}")]


def find_child(process, recipe):
    [child] = [one for one in psutil.Process(process.pid).children() if f"{recipe}-seed-0" in one.cmdline()]
    return child


def test_runs_side_by_side_end_as_one_after_another(run, start, tiny_home, tiny_weights):
    process = start("--format", "json")
    told = read_until(process, r"tiny_0 seed 0 \| epoch 1/3", r"tiny_2 seed 0 \| epoch 1/3")
    assert len(psutil.Process(process.pid).children()) == 2
    assert is_locked(tiny_home / "locks" / name_lock(name_device("auto"))), "another command waits for the device"
    told += read_until(process, r"tiny_1 seed 0 \| weights")
    rest = process.stdout.read().splitlines()
    assert process.wait() == 0
    told = [line.rstrip("\n") for line in told] + [line for line in rest if not line.startswith("{")]
    assert [line for line in told if not LINE.fullmatch(line)] == []
    began = {recipe: told.index(f"[{number}/3] {recipe}") for number, recipe in enumerate(RECIPES, start=1)}
    done = next(place for place, line in enumerate(told) if line.startswith("tiny_0 seed 0 | weights"))
    assert began["tiny_0"] < began["tiny_2"] < done < began["tiny_1"]
    records = [json.loads(line) for line in rest if line.startswith("{")]
    assert [(record["recipe"], record["state"]) for record in records] == [(recipe, "done") for recipe in RECIPES]
    assert read_weights(tiny_home) == tiny_weights

    quiet = run(2, "--offline", "--quiet", "--format", "json")
    assert [json.loads(line)["state"] for line in quiet.out.splitlines()] == ["kept"] * 3
    assert quiet.err == ""


def test_in_mlflow_they_are_below_their_study(run, tiny_home, tiny_weights):
    done = run(3)
    assert "up to 3 runs at once, each in a process of its own with 1 thread" in done.out
    client = MlflowClient(f"sqlite:///{tiny_home / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("darkroom").experiment_id])
    [parent] = [one for one in runs if "group" in one.data.tags]
    assert {one.info.status for one in runs} == {"FINISHED"}
    assert {one.data.tags[MLFLOW_PARENT_RUN_ID] for one in runs if one is not parent} == {parent.info.run_id}
    assert len(runs) == 4
    assert read_weights(tiny_home) == tiny_weights


def test_one_that_is_killed_fails_alone_and_is_resumed(run, start, tiny_home, tiny_weights):
    process = start()
    lines = read_until(process, r"tiny_2 seed 0 \| epoch 1/3")
    find_child(process, "tiny_2").kill()
    lines += read_until(process, "runs failed: tiny_2")
    assert process.wait() == 1
    assert "tiny_2  failed: the process of seed 0 was ended by SIGKILL" in "".join(lines)
    assert read_weights(tiny_home) == [one for one in tiny_weights if one[0] != "tiny_2"]
    [killed] = {folder.parent.name for folder in tiny_home.glob("checkpoints/*/run.json")} - set(list_done(tiny_home))
    resumed = run(2, "--offline")
    assert f"tiny_2 seed 0 | seed 0  run {killed}\n" in resumed.out
    assert (killed in list_done(tiny_home), read_weights(tiny_home)) == (True, tiny_weights)


def test_ctrl_c_and_a_kill_leave_no_process_and_lose_nothing(run, start, tiny_home, tiny_weights):
    process = start()
    lines = read_until(process, r"tiny_0 seed 0 \| epoch 1/3", r"tiny_2 seed 0 \| epoch 1/3")
    children = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    lines += read_until(process, "darkroom: interrupted")
    assert process.wait() == 130
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert re.search(r"interrupted .*: \d complete\n", "".join(lines))
    assert list(tiny_home.glob("checkpoints/*/state.pt"))

    process = start()
    read_until(process, r"tiny_2 seed 0 \| goes on")
    children = psutil.Process(process.pid).children()
    process.kill()
    assert len(children) == 2
    assert psutil.wait_procs(children, timeout=10)[1] == []
    run(2, "--offline")
    assert read_weights(tiny_home) == tiny_weights
