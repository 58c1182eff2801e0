"""Options, shares, addresses and errors of `--runner ray`."""

import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import sys
import threading
import time
from contextlib import closing

import pytest

from flows.experiments.inputs import open_inputs
from flows.jobs import runners
from flows.jobs.study import TrainAll
from flows.operations import ray_cluster, ray_runs, run_process
from flows.operations.ray_cluster import count_places, name_death, share
from flows.operations.ray_runs import RayRun
from flows.operations.runner import RunRequest, TrialRequest
from model_code.data.add import add_dataset
from model_code.errors import NodeError, TrainingError, UsageError
from model_code.recipes.catalog import build_config
from model_code.settings import load_settings
from model_code.tracking.provenance import hash_code
from model_code.training.run_folder import JOURNAL_FILE, RunResult, create_run_folder


def test_an_address_is_refused_without_ray_and_in_another_form():
    with pytest.raises(UsageError, match=r"^--address 10\.0\.0\.1:6379 needs --runner ray$"):
        TrainAll.make(address="10.0.0.1:6379").check()
    for address in ("auto", "ray://10.0.0.1:10001", "10.0.0.1", "10.0.0.1:"):
        with pytest.raises(UsageError, match=r": give HOST:PORT, as `ray start --head` prints it$"):
            TrainAll.make(runner="ray", address=address).check()


def test_without_ray_a_line_says_what_installs_it(monkeypatch):
    monkeypatch.setattr(runners, "find_spec", lambda name: None if name == "ray" else importlib.util.find_spec(name))
    with pytest.raises(UsageError, match=r'Ray, which is not installed: pip install "darkroom\[ray\]"$'):
        TrainAll.make(runner="ray").check()


def test_the_first_line_names_ray():
    assert TrainAll.make(runner="ray").loading == ("PyTorch", "MLflow", "Prefect", "Ray")
    assert TrainAll.make(runner="ray", offline=True).loading == ("PyTorch", "Ray")
    assert TrainAll.make(runner="ray", dry_run=True).loading == TrainAll.make().loading


@pytest.mark.parametrize(
    ("nodes", "at_once", "expected"),
    [
        ([{"CPU": 8}], 1, (8, 0)),
        ([{"CPU": 8}], 3, (2, 0)),
        ([{"CPU": 2}], 5, (1, 0)),
        ([{"CPU": 1}, {"CPU": 1}], 2, (1, 0)),
        # With 3 each, the second node would have room for none.
        ([{"CPU": 4}, {"CPU": 2}], 2, (2, 0)),
        ([{"CPU": 0}], 2, (1, 0)),
        ([{"CPU": 16, "GPU": 2}], 1, (8, 1)),
        ([{"CPU": 16, "GPU": 2}], 4, (4, 0.5)),
        ([{"CPU": 16, "GPU": 1}], 3, (5, 0.3333)),
        ([{"CPU": 64}, {"CPU": 4, "GPU": 1}, {"CPU": 16, "GPU": 8}], 9, (2, 1)),
    ],
)
def test_runs_share_what_the_nodes_have(nodes, at_once, expected):
    assert share(nodes, at_once) == expected


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([{"CPU": 8}], 1),
        ([{"CPU": 1}, {"CPU": 4}, {"CPU": 0}], 2),
        ([{"CPU": 0}], 1),
        ([{"CPU": 16}, {"CPU": 16, "GPU": 2}, {"CPU": 4, "GPU": 1}], 3),
    ],
)
def test_without_a_number_each_gpu_or_each_node_has_a_run(nodes, expected):
    assert count_places(nodes) == expected


def test_where_no_ray_answers_a_line_says_so(monkeypatch):
    monkeypatch.setattr(ray_cluster, "ANSWER_S", 0.5)
    for ask in ("import time; time.sleep(60)", "raise SystemExit(1)", "print('HTTP/1.1 400')"):
        monkeypatch.setattr(ray_cluster, "ASK", ask)
        with pytest.raises(TrainingError, match=r"^no Ray cluster answers at 10.0.0.1:6379 within 0.5 s; [^\n]*$"):
            ray_cluster.check("10.0.0.1:6379")


def test_another_version_of_ray_or_python_is_named(monkeypatch):
    monkeypatch.setattr(ray_cluster, "version", lambda _name: "2.60.0")
    monkeypatch.setattr(ray_cluster.platform, "python_version", lambda: "3.11.7")

    def answer(ray, python):
        metadata = {"ray_version": ray, "python_version": python, "session_name": "session"}
        monkeypatch.setattr(ray_cluster, "ASK", f"print('a line of a library'); print({json.dumps(metadata)!r})")
        ray_cluster.check("10.0.0.1:6379")

    answer("2.60.0", "3.11.7")
    for versions in (("2.59.1", "3.11.7"), ("2.60.0", "3.12.1")):
        with pytest.raises(
            TrainingError, match=rf"has Ray {versions[0]} on Python {versions[1]}, this machine [^\n]*$"
        ):
            answer(*versions)


def test_of_a_death_one_line_is_told():
    lost = (
        "The actor died unexpectedly before finishing this task.\n\tactor_id: 5f37\n"
        "The actor is dead because its node has died. Node Id: 12\n\tthe actor's node was terminated unexpectedly"
    )
    assert name_death(RuntimeError(lost)) == "The actor is dead because its node has died. Node Id: 12"
    unstarted = (
        "The actor died because of an error raised in its creation task, ray::RayRun\n  ModuleNotFoundError: flows"
    )
    assert name_death(RuntimeError(unstarted)) == "ModuleNotFoundError: flows"


def test_a_node_without_the_home_says_so(tmp_path):
    request = RunRequest(config=build_config("resnet18_cifar10_exp"), is_offline=True)
    run = RayRun(request.model_dump_json(), str(tmp_path / "home" / "locks" / "ray-1"), {}, hash_code())
    with pytest.raises(NodeError, match=rf"does not see DARKROOM_HOME={tmp_path}/home; [^\n]*$"):
        run.read()


def test_a_node_with_other_code_says_so():
    request = RunRequest(config=build_config("resnet18_cifar10_exp"), is_offline=True)
    run = RayRun(request.model_dump_json(), sys.executable, {}, "0" * 64)
    with pytest.raises(NodeError, match=r"has another version of Darkroom's code; install the same$"):
        run.read()


def test_a_node_without_optuna_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(ray_runs, "find_spec", lambda _name: None)
    trial = TrialRequest(folder=tmp_path, number=0, prune_after=0)
    request = RunRequest(config=build_config("resnet18_cifar10_exp"), trial=trial)
    run = RayRun(request.model_dump_json(), sys.executable, {}, hash_code())
    with pytest.raises(NodeError, match=r"^node [^\n]* lacks Optuna, which a sweep needs: pip install 'optuna>=5'$"):
        run.read()


@pytest.mark.slow
def test_a_node_hands_on_lines_then_the_outcome(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    request = RunRequest(config=build_config("resnet18_cifar10_exp"), is_offline=True)
    run, told, is_done = RayRun(request.model_dump_json(), sys.executable, {}, hash_code()), [], False
    while not is_done:
        lines, is_done, outcome = run.read()
        told += lines
    assert any("skipped: " in line for line in told), "there are no images"
    assert json.loads(outcome)["is_skipped"]


class UnableToBegin(RayRun):
    def __init__(self, *_):
        raise ModuleNotFoundError("No module named 'flows'")


def _train_on_a_node_that_cannot_begin(home, told):
    os.environ["DARKROOM_HOME"] = str(home)
    ray_runs.RayRun, ray_runs.RESTARTS = UnableToBegin, 0
    request = RunRequest(config=build_config("resnet18_cifar10_exp"), is_offline=True)
    with closing(ray_runs.RayRuns(1)) as runs, pytest.raises(NodeError) as refused:
        runs.train(request, print)
    told.send(str(refused.value))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray, the extra [ray], is not installed")
def test_what_keeps_a_run_from_beginning_is_said_of_the_node(tmp_path):
    # Ray reads its environment when it is imported, which another test of this process may have done.
    heard, told = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=_train_on_a_node_that_cannot_begin, args=(tmp_path, told)
    )
    process.start()
    try:
        assert heard.poll(300)
        assert re.fullmatch(r"Ray has given up seed 0: Mod[^\n]*", heard.recv())
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("end", ["interrupted", "finished", "removed"])
def test_a_run_that_another_process_still_trains_is_waited_for_and_not_trained_twice(
    tmp_path, monkeypatch, capsys, end
):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    monkeypatch.setattr("flows.experiments.device_lock.SECONDS_BETWEEN_TRIES", 0.05)
    settings = load_settings()
    add_dataset("shapes", cache_dir=settings.cache_dir, data_dir=settings.data_dir, image_size=16, progress=False)
    config = build_config("resnet18_cifar10_exp", "smoke", {"dataset": "shapes"})
    record = open_inputs(config, is_offline=True).record.model_copy(update={"run_id": "ab" * 16})
    folder, released = create_run_folder(settings.checkpoints_dir, record), threading.Event()
    (folder.path / JOURNAL_FILE).touch()
    result = RunResult(
        run_id=folder.record.run_id,
        kind="supervised",
        recipe=config.recipe,
        profile="smoke",
        dataset="shapes",
        metrics={"validation/best_accuracy": 0.5},
        seconds=1.0,
        code_sha256=hash_code(),
    )
    trained = []

    def train(inputs, *_):
        assert released.is_set()
        trained.append(inputs)
        return result

    def work():
        with folder.lock():
            held.set()
            time.sleep(0.5)
            if end == "finished":
                folder.complete(result)
            elif end == "removed":  # as a sweep does with a pruned one
                shutil.rmtree(folder.path)
            released.set()

    held, other = threading.Event(), threading.Thread(target=work)
    monkeypatch.setattr("flows.experiments.training.train", train)
    other.start()
    held.wait()
    outcome = run_process._train(RunRequest(config=config, is_offline=True))
    other.join()
    assert outcome.result == result
    assert len(trained) == (end != "finished")
    assert [one.name for one in settings.checkpoints_dir.glob("[!.]*")] == [folder.path.name] * (end != "removed")
    assert "another process trains run" in capsys.readouterr().out
