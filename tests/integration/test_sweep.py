"""Sweeps that train, are pruned, killed, and shared by two processes, as commands of their own."""

import json
import re
import shlex
import subprocess
from collections import Counter

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from PIL import Image

from model_code.sweeps.trials import WEIGHED_TRIALS
from tests.integration.conftest import COMMAND, home_entered, make_environment, read_until

EPOCHS = 2
# Of the two rates one learns nothing; seed 2 tries it after two trials with the other.
SPACE = "learning_rate = [0.05, 1e-9]\nweight_decay = {low = 1e-5, high = 1e-2, log = true}\n"
SWEEP = (
    *("sweep", "fastnet_cifar10", "--profile", "smoke", "--data", "colours", "--seed", "2", "--prune-after", "2"),
    *("--set", "batch_size=8", "--set", "validation_fraction=0.2", "--set", "kept_epoch=best"),
    *("--epochs", str(EPOCHS)),
)
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200), "grey": (200, 200, 200)}


def draw_colours(folder):
    """Images whose colour tells the class: what learns at all has them all right after an epoch."""
    draw = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(40):
            pixels_HWC = (np.array(colour) + draw.normal(0, 30, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels_HWC).save(folder / name / f"{number}.png")


def fill_home(home):
    """Put images and a space into a new home, and return it."""
    from flows.api import add_data

    draw_colours(home / "colours")
    with home_entered(home):
        add_data("colours", home / "colours", image_size=16)
    (home / "space.toml").write_text(SPACE)
    return home


@pytest.fixture(scope="module")
def make_home(tmp_path_factory):
    """Return a new home with images."""
    return lambda: fill_home(tmp_path_factory.mktemp("sweeps"))


@pytest.fixture
def run(darkroom):
    """Run the command in this process, in another home."""

    def run(home, *arguments, status=0):
        with home_entered(home):
            done = darkroom(*arguments)
        assert done.status == status, done.err
        return done

    return run


def read_trials(out):
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture(scope="module")
def whole(make_home, prefect_server):
    """A sweep of four trials that nothing interrupted: its home and output."""
    home = make_home()
    done = subprocess.run(
        [COMMAND, *SWEEP, "--space", str(home / "space.toml"), "--trials", "4", "--format", "json"],
        env=make_environment(DARKROOM_HOME=str(home), **prefect_server),
        check=True,
        capture_output=True,
        text=True,
    )
    return home, done.stdout


def get_client(home):
    return MlflowClient(f"sqlite:///{home / 'mlflow.db'}")


def list_runs(client):
    return client.search_runs([client.get_experiment_by_name("darkroom").experiment_id])


def test_trials_below_the_median_are_pruned_and_recorded_as_that(run, whole):
    home, out = whole
    trials, client = read_trials(out), get_client(home)
    assert [trial["trial"] for trial in trials] == [0, 1, 2, 3]
    assert [trial["state"] for trial in trials] == ["finished", "finished", "pruned", "pruned"]
    runs = {run.info.run_id: run for run in list_runs(client)}
    (parent,) = [run for run in runs.values() if MLFLOW_PARENT_RUN_ID not in run.data.tags]
    assert (parent.info.status, parent.data.tags["group"]) == ("FINISHED", "sweep")
    assert len(runs) == 5

    for trial in trials:
        run_ = runs[trial["run_id"]]
        points = client.get_metric_history(trial["run_id"], "validation/accuracy")
        curve = [point.value for point in points if point.step > 0]  # at step 0 is the final figure
        assert run_.data.tags[MLFLOW_PARENT_RUN_ID] == parent.info.run_id
        assert (run_.data.tags["sweep"], run_.data.tags["trial"]) == ("fastnet_cifar10", str(trial["trial"]))
        is_pruned = trial["state"] == "pruned"
        assert run_.info.status == ("KILLED" if is_pruned else "FINISHED")
        assert run_.data.tags.get("pruned") == (f"after epoch 1 of {EPOCHS}" if is_pruned else None)
        assert len(curve) == (1 if is_pruned else EPOCHS)
        assert trial["validation_accuracy"] == max(curve)
        assert (home / "checkpoints" / trial["run_id"] / "result.json").exists() != is_pruned

    again = run(home, *SWEEP, "--space", home / "space.toml", "--trials", 4)
    assert "4 trials done of 4" in again.out
    assert "begins" not in again.out
    best = max(trials[:2], key=lambda trial: trial["validation_accuracy"])
    assert f"best: trial {best['trial']}, validation accuracy {best['validation_accuracy']:.4f}" in again.out
    assert len(list_runs(client)) == 5

    other = run(home, *SWEEP, "--space", home / "space.toml", "--trials", 1, "--name", "other")
    assert "trial 0 keeps run" in other.out
    assert {run.info.run_name for run in list_runs(client) if "group" in run.data.tags} == {
        "sweep fastnet_cifar10",
        "sweep other",
    }

    (command,) = re.findall(r"next: darkroom (.*)", again.out)
    run(home, *shlex.split(command))
    shown = run(home, "recipes", "fastnet_cifar10_swept").out
    assert f"weight_decay={best['weight_decay']}" in shown
    other = ("--trials", "4", "--set", "label_smoothing=0.1")
    refused = run(home, *SWEEP, "--space", home / "space.toml", *other, status=2)
    assert "has other settings; repeat its command, give --name" in refused.err


def test_a_sweep_killed_in_a_trial_goes_on_to_the_same_end(run, whole, make_home, start_darkroom, prefect_server):
    home = make_home()
    command = (*SWEEP, "--space", str(home / "space.toml"), "--trials", "4")
    process = start_darkroom(*command, DARKROOM_HOME=str(home), **prefect_server)
    read_until(process, "^trial 1 begins")
    read_until(process, f"epoch 1/{EPOCHS}  loss")
    process.kill()
    process.wait()
    killed = {folder.name for folder in (home / "checkpoints").iterdir() if len(folder.name) == 32}
    again = run(home, *command, "--format", "json")
    assert "1 trials done of 4" in again.err
    assert "trial 1 resumes" in again.err
    trials, expected = read_trials(again.out), read_trials(whole[1])
    assert {trials[0]["run_id"], trials[1]["run_id"]} == killed
    for trial in (*trials, *expected):
        trial.pop("run_id")
    assert trials == expected
    client = get_client(home)
    assert len(list_runs(client)) == 5
    for run_ in list_runs(client):
        steps = Counter(point.step for point in client.get_metric_history(run_.info.run_id, "train/loss"))
        assert set(steps.values()) <= {1}
        assert run_.info.status in ("FINISHED", "KILLED")


def test_two_processes_share_one_sweep(run, whole, start_darkroom, prefect_server):
    home, _ = whole
    environment = {"DARKROOM_HOME": str(home)} | prefect_server
    command = (*SWEEP[:-1], "1", "--space", str(home / "space.toml"), "--name", "shared", "--prune-after", "0")
    processes = [start_darkroom(*command, "--trials", WEIGHED_TRIALS, **environment) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    begun = [re.findall(r"^trial (\d+) begins", output, re.MULTILINE) for output in outputs]
    assert sorted(begun[0] + begun[1]) == [str(number) for number in range(WEIGHED_TRIALS)]
    assert all(begun)
    done = run(home, *command, "--trials", WEIGHED_TRIALS, "--format", "json")
    assert [trial["state"] for trial in read_trials(done.out)] == ["finished"] * WEIGHED_TRIALS
    client = get_client(home)
    (parent,) = [run for run in list_runs(client) if run.info.run_name == "sweep shared"]
    assert parent.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "figures")] == ["figures/importance.png"]
