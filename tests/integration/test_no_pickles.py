"""Absence of unpickling: whoever can write the home runs no code by it."""

import base64
import importlib
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import make_environment

ROOT = Path(__file__).parents[2]
# Python runs it at the start of each process, the servers that a command starts included.
WATCH = """
import sys

def watch(event, arguments):
    if event == "pickle.find_class":
        with open({record!r}, "a") as stream:
            stream.write(f"{{arguments[0]}}.{{arguments[1]}} in {{sys.argv}}\\n")

sys.addaudithook(watch)
"""
# Commands one after the other: to load the libraries takes longer than most of them.
RUN = """
import json, sys
from flows.cli import main

for arguments in json.loads(sys.argv[1]):
    sys.argv = ["darkroom", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, arguments
"""
OPTIONS = [
    word for one in ("dataset=shapes", "epochs=1", "limit_train=200", "batch_size=50") for word in ("--set", one)
]


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return (open, (self.file, "w"))


@pytest.fixture
def watched(tmp_path, home, environment):
    """Run commands of `darkroom` in a process whose unpickling is recorded; returns what they printed."""
    folder, record = tmp_path / "watch", tmp_path / "unpickled"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WATCH.format(record=str(record)))

    def run(*commands, code=RUN):
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(commands)],
            cwd=ROOT,
            env=make_environment(PYTHONPATH=str(folder), DARKROOM_HOME=str(tmp_path / "home")),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.record = record
    run.home = tmp_path / "home"
    return run


def test_the_watch_can_fail(watched):
    watched(code="import collections, pickle; pickle.loads(pickle.dumps(collections.Counter()))")
    assert "collections.Counter in ['-c'" in watched.record.read_text()


def test_no_command_unpickles_what_lies_in_the_home(watched, tmp_path):
    trap = base64.encodebytes(pickle.dumps(Trap(tmp_path / "made"))).decode()
    training = ("train-all", "--only", "resnet18_cifar10_exp2", *OPTIONS)
    first = watched(("data", "add", "shapes", "--image-size", "16"), training)
    # As earlier versions left them, and as somebody may leave them, wherever Prefect looks for results.
    serializers = ({"type": "pickle", "picklelib": "cloudpickle"}, {"type": "json", "object_decoder": "os.system"})
    for folder in ("prefect/results", "prefect/storage"):
        (watched.home / folder).mkdir(exist_ok=True, parents=True)
        for name in [*(watched.home / folder).iterdir(), *(watched.home / folder / f"{n:032x}" for n in range(2))]:
            for serializer in serializers:
                metadata = {"storage_key": str(name), "serializer": serializer, "prefect_version": "3.8.8"}
                name.write_text(json.dumps({"metadata": metadata, "result": trap}))
    run_id = re.search(r"run ([0-9a-f]{32})", first).group(1)
    release = ("release", run_id, "--as", "shapes", "--mode", "forced", "--why", "for the test")
    second = watched(training, release, ("report",))
    assert f"kept from run {run_id}" in second
    assert not (tmp_path / "made").exists()
    assert not watched.record.exists(), watched.record.read_text()


def test_a_step_is_a_plain_function_without_a_flow_and_a_task_without_a_result_in_one(monkeypatch):
    from flows.operations import step

    made = []

    def make_task(**options):
        made.append(options)
        return lambda function: function

    @step.step("double", retries=2)
    def double(number):
        return 2 * number

    assert (double(3), made) == (6, [])
    monkeypatch.setattr("prefect.task", make_task)
    monkeypatch.setattr(step, "_is_in_flow", lambda: True)
    assert double(4) == 8
    assert made == [{"name": "double", "persist_result": False, "retries": 2}]


def test_no_task_keeps_its_result_with_prefect():
    """Prefect's records name the serializer that reads them: whoever writes one chooses pickle."""
    from prefect import Task

    files = [file.relative_to(ROOT).with_suffix("") for file in sorted((ROOT / "flows").rglob("[a-z]*.py"))]
    modules = [importlib.import_module(".".join(file.parts)) for file in files]
    tasks = {id(one): one for module in modules for one in vars(module).values() if isinstance(one, Task)}
    assert tasks
    assert {task.name: task.persist_result for task in tasks.values()} == {task.name: False for task in tasks.values()}
    assert not [task.name for task in tasks.values() if task.result_storage_key]
