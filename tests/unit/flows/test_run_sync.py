"""Runs that were made offline by hand, packed, and taken up into a real MLflow store."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest

from flows.operations import run_packing, run_sync
from model_code.errors import DataError, TrackingError, TrainingError, UsageError
from model_code.recipes.catalog import build_config, describe_budget
from model_code.settings import Settings
from model_code.tracking.journal import JournalTracking, read_journal
from model_code.tracking.pack import find_packs
from model_code.tracking.provenance import hash_code
from model_code.training.run_folder import (
    JOURNAL_FILE,
    RESULT_FILE,
    RUN_FILE,
    RunFolder,
    RunRecord,
    RunResult,
    create_run_folder,
    find_finished,
    making_run,
    open_run_folder,
)
from serving.bundle.store import hash_file
from tests.unit.tracking.small_store import make_settings, open_small_store

RECIPE = "resnet18_cifar10_exp"
EPOCHS, PART = 700, 4096
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Machines:
    """A node without MLflow, the machine that has it, and what is carried between them."""

    node: Settings
    home: Settings
    client: mlflow.MlflowClient
    carried: Path

    def find(self, offline_id: str) -> list[mlflow.entities.Run]:
        experiment = self.client.get_experiment_by_name("darkroom")
        return self.client.search_runs([experiment.experiment_id], f"tags.attempt = '{offline_id}'")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with open_small_store(tmp_path_factory.mktemp("home")) as store:
        yield store


@pytest.fixture
def machines(store, tmp_path, monkeypatch):
    home, client = store
    monkeypatch.setattr(run_sync, "load_settings", lambda: home)
    node = make_settings(tmp_path / "node")
    monkeypatch.setattr(run_packing, "load_settings", lambda: node)
    yield Machines(node, home, client, tmp_path / "carried")
    shutil.rmtree(home.checkpoints_dir, ignore_errors=True)


def make_run(machines, seed=0, tags=(), code_sha256=None, epochs=3, **other_recipe) -> RunFolder:
    """A complete offline run with weights of a few bytes; `other_recipe` is what the recipe there has otherwise."""
    config = build_config(RECIPE, changes={"seed": seed}).model_copy(update=other_recipe)
    checkpoints_dir = machines.node.checkpoints_dir
    tracking = JournalTracking(checkpoints_dir)
    record = RunRecord(run_id="", data_checksum="c" * 64, config=config)
    with making_run(checkpoints_dir, record) as attempt:
        run_id = tracking.create_run(config, attempt)
        folder = create_run_folder(checkpoints_dir, record.model_copy(update={"run_id": run_id}))
    with tracking.track(folder, {"budget": describe_budget(config), "device": "a GPU", **dict(tags)}) as tracker:
        tracker.log_config(folder)
        for epoch in range(1, epochs + 1):
            tracker._log.log_metrics({"train/loss": 1 / epoch, "validation/accuracy": 0.5}, epoch)
        tracker.log_metrics({"test/accuracy": 0.75, "validation/best_accuracy": 0.5})
        for name in ("best-0001", "last"):
            file = folder.path / f"{name}.safetensors"
            file.write_bytes(os.urandom(3 * PART))
            tracker._log.log_file(file, f"checkpoints/{name.partition('-')[0]}.safetensors")
    folder.complete(
        RunResult(
            run_id=run_id,
            kind=config.kind,
            recipe=RECIPE,
            profile=config.profile,
            dataset=config.dataset,
            metrics={"test/accuracy": 0.75, "validation/best_accuracy": 0.5},
            epochs=epochs,
            best_epoch=1,
            best_weights="best-0001.safetensors",
            weights_sha256=hash_file(folder.path / "best-0001.safetensors"),
            seconds=1.0,
            code_sha256=code_sha256 or hash_code(),
        )
    )
    return folder


def pack(machines, *folders, weights="best"):
    run_packing.pack_runs([folder.record.run_id for folder in folders], weights, machines.carried, PART)


def open_synced(machines, folder) -> RunFolder:
    [run] = machines.find(folder.record.run_id)
    return open_run_folder(machines.home.checkpoints_dir, run.info.run_id)


@pytest.mark.parametrize("weights", ["best", "all", "none"])
def test_a_run_comes_home_as_if_it_had_been_trained_there(machines, capsys, weights):
    folder = make_run(machines)
    entries = read_journal(folder.path)
    pack(machines, folder, weights=weights)
    assert f"in {machines.carried}; its cifar10 images are not here" in capsys.readouterr().out or weights == "none"
    run_sync.sync_runs([machines.carried])
    [run] = machines.find(folder.record.run_id)
    assert (run.info.status, run.info.start_time, run.info.end_time) == (
        "FINISHED",
        entries[0].time_ms,
        entries[-1].time_ms,
    )
    assert run.info.run_name.partition(" ")[2].startswith(f"{RECIPE} on ")
    assert run.data.params == entries[0].params
    assert {key: run.data.tags[key] for key in entries[0].tags} == entries[0].tags
    assert run.data.tags["device"] == "a GPU"
    points = machines.client.get_metric_history(run.info.run_id, "train/loss")
    written = [entry for entry in entries if "train/loss" in entry.metrics]
    assert [(point.step, point.value, point.timestamp) for point in points] == [
        (entry.step, entry.metrics["train/loss"], entry.time_ms) for entry in written
    ]
    assert run.data.metrics["test/accuracy"] == 0.75
    checkpoints = {"best": ["best"], "all": ["best", "last"], "none": []}[weights]
    artifacts = {file.path for file in machines.client.list_artifacts(run.info.run_id, "checkpoints")}
    assert artifacts == {f"checkpoints/{name}.safetensors" for name in checkpoints}
    assert json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/config.json"))["recipe"] == RECIPE
    assert len(machines.client.list_artifacts(run.info.run_id, "tensorboard")) == 1

    synced = open_synced(machines, folder)
    assert synced.record == folder.record.model_copy(update={"run_id": run.info.run_id})
    assert synced.result == folder.result.model_copy(update={"run_id": run.info.run_id})
    assert not synced.is_offline
    assert synced.begun_s == entries[0].time_ms / 1000
    kept = find_finished(machines.home.checkpoints_dir, folder.record, hash_code())
    assert kept == synced.result
    if weights != "none":
        assert hash_file(synced.path / "best-0001.safetensors") == folder.result.weights_sha256
    out = capsys.readouterr().out
    assert f"run {folder.record.run_id} is now run {run.info.run_id}" in out
    assert "train-all keeps it" in out
    assert ("without weights" if weights == "none" else "its weights were not checked") in out


def test_a_repeated_sync_changes_nothing(machines, capsys):
    folder = make_run(machines)
    pack(machines, folder)
    run_sync.sync_runs([machines.carried])
    before = {file: file.stat().st_mtime_ns for file in machines.home.checkpoints_dir.rglob("*")}
    run_sync.sync_runs([machines.carried])
    run_sync.sync_runs([next(machines.carried.glob("*.json"))])
    assert len(machines.find(folder.record.run_id)) == 1
    assert {file: file.stat().st_mtime_ns for file in machines.home.checkpoints_dir.rglob("*")} == before
    assert capsys.readouterr().out.count("is here already as run") == 2


KILLED = """
import os, signal, sys
from pathlib import Path
import model_code
from flows.operations import run_sync
from model_code.tracking.metric_queue import MetricQueue
from model_code.tracking.mlflow_log import MlflowLog
place, number, carried = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
owner, name = {"send": (MetricQueue, "_send_some"), "file": (MlflowLog, "log_file"), "finish": (MlflowLog, "finish"),
               "adopt": (run_sync, "_adopt"), "rename": (run_sync, "write_atomically")}[place]
real, calls = getattr(owner, name), 0
def die(*given, **more):
    global calls
    calls += 1
    done = real(*given, **more) if place != "adopt" else None
    if calls == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
setattr(owner, name, die)
run_sync.sync_runs([carried])
"""


def test_a_run_that_came_without_weights_says_how_to_take_them(machines, capsys):
    folder = make_run(machines)
    for weights in ("none", "best"):
        pack(machines, folder, weights=weights)
        run_sync.sync_runs([machines.carried])
    here = open_synced(machines, folder).record.run_id
    told = f"is here already as run {here}, without weights; to add those of the pack: darkroom runs remove {here[:8]}"
    assert told in capsys.readouterr().out


def test_a_damaged_record_here_is_nothing_to_a_pack_that_is_here_already(machines, capsys):
    folder = make_run(machines)
    pack(machines, folder)
    run_sync.sync_runs([machines.carried])
    here = open_synced(machines, folder)
    (here.path / "run.json").write_text("{}")
    run_sync.sync_runs([machines.carried])
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"is here already as run {here.path.name}")


def test_a_run_that_left_no_weights_lacks_none(machines, capsys):
    folder = make_run(machines)
    folder.complete(folder.result.model_copy(update={"best_weights": None, "weights_sha256": None}))
    pack(machines, folder)
    for _ in range(2):
        run_sync.sync_runs([machines.carried])
    here = open_synced(machines, folder).record.run_id
    assert capsys.readouterr().out.endswith(f"is here already as run {here}\n")


@pytest.mark.slow
def test_a_sync_that_is_killed_is_completed_by_the_next(machines):
    """Killed after the first request of metrics, after a file, after MLflow has the end, and before the rename."""
    folder = make_run(machines, epochs=EPOCHS)
    pack(machines, folder)
    environment = os.environ | {"DARKROOM_HOME": str(machines.home.home)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    for place, number in (("send", 1), ("finish", 1), ("rename", 2)):
        command = [sys.executable, "-P", "-c", KILLED, place, str(number), str(machines.carried)]
        done = subprocess.run(command, env=environment, cwd=ROOT, check=False, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not list(machines.home.checkpoints_dir.glob(f"*/{RUN_FILE}"))
    run_sync.sync_runs([machines.carried])
    [run] = machines.find(folder.record.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.end_time == read_journal(folder.path)[-1].time_ms
    points = machines.client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in points] == list(range(1, EPOCHS + 1))
    assert len(machines.client.list_artifacts(run.info.run_id, "tensorboard")) == 1
    assert open_synced(machines, folder).result.weights_sha256 == folder.result.weights_sha256
    assert not list((machines.home.checkpoints_dir / run_sync.INCOMING_FOLDER).iterdir())


def refuse(machines):
    """A sync fails and leaves nothing."""
    with pytest.raises(DataError, match=r"^1 run was not synced; the lines above say why$"):
        run_sync.sync_runs([machines.carried])
    assert not list(machines.home.checkpoints_dir.glob(f"*/{RUN_FILE}"))


def test_one_damaged_run_keeps_no_other_away(machines, capsys):
    damaged, whole = make_run(machines, seed=1), make_run(machines, seed=2)
    pack(machines, damaged, whole)
    part = sorted(machines.carried.glob(f"{damaged.record.run_id}.*.part"))[1]
    content = bytearray(part.read_bytes())
    content[7] ^= 16
    part.write_bytes(content)
    with pytest.raises(DataError, match=r"^1 run was not synced"):
        run_sync.sync_runs([machines.carried])
    assert f"{part} is damaged or of another pack; bring it again" in capsys.readouterr().out
    assert machines.find(damaged.record.run_id) == []
    assert open_synced(machines, whole).result is not None
    content[7] ^= 16
    part.write_bytes(content)
    run_sync.sync_runs([machines.carried])
    assert open_synced(machines, damaged).result is not None


def test_a_missing_part_is_named(machines, capsys):
    pack(machines, make_run(machines))
    part = sorted(machines.carried.glob("*.part"))[-1]
    part.unlink()
    refuse(machines)
    assert f"parts is missing ({part.name})" in capsys.readouterr().out


def change_setting(file):
    record = json.loads(file.read_text())
    record["config"]["learning_rate"] = 0.3
    file.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: change_setting(folder.path / RUN_FILE), "config_sha256 is "),
        (lambda folder: _replace(folder.path / RUN_FILE, "c" * 64, "d" * 64), "data_checksum is "),
        (lambda folder: _replace(folder.path / RESULT_FILE, folder.record.run_id, "e" * 32), "run is "),
        (lambda folder: _replace(folder.path / JOURNAL_FILE, '"budget":"full"', '"budget":"smoke"'), "as 'smoke' of"),
        (lambda folder: _replace(folder.path / JOURNAL_FILE, "FINISHED", "FAILED"), "it is not complete"),
    ],
    ids=["config", "images", "result of another run", "budget", "not finished"],
)
def test_a_run_whose_files_do_not_belong_together_is_refused(machines, monkeypatch, capsys, change, message):
    folder = make_run(machines)
    monkeypatch.setattr(run_packing, "is_finished", lambda _: True)  # earlier versions did not look
    change(folder)
    pack(machines, open_run_folder(machines.node.checkpoints_dir, folder.record.run_id))
    refuse(machines)
    out = capsys.readouterr().out
    assert f"run {folder.record.run_id} is refused: " in out
    assert message in out
    assert machines.find(folder.record.run_id) == []


def test_a_run_of_another_recipe_of_the_same_name_is_refused(machines, capsys):
    pack(machines, make_run(machines, learning_rate=0.3))
    refuse(machines)
    assert (
        f"it was trained as 'full' of {RECIPE}, which is 'custom: learning_rate=0.3' of the recipe here; use the same"
        in capsys.readouterr().out
    )


def _replace(file, before, after):
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def test_damaged_weights_are_not_packed(machines):
    folder = make_run(machines)
    (folder.path / "best-0001.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match="is not the file that was trained; train again"):
        pack(machines, folder)
    assert not machines.carried.exists()


def test_weights_that_answer_otherwise_are_refused(machines, monkeypatch, capsys):
    """The answers are those of the packing; the sync computes others."""
    from flows.experiments.answers import Answers

    monkeypatch.setattr(run_packing, "open_images", lambda *_: "images")
    answers = Answers(split="test", indices=(0,), outputs=((1.0, 2.0),))
    monkeypatch.setattr(run_packing, "ask_weights", lambda *_: answers)
    monkeypatch.setattr(run_sync, "open_images", lambda *_: "images")
    pack(machines, make_run(machines))
    import torch

    monkeypatch.setattr("flows.experiments.answers._ask", lambda *_: torch.tensor([[1.0, 2.01]]))
    refuse(machines)
    assert "its weights answer otherwise here than where they were packed, by 0.01 (allowed 0.002)" in (
        capsys.readouterr().out
    )
    monkeypatch.setattr("flows.experiments.answers._ask", lambda *_: torch.tensor([[1.0, 2.001]]))
    run_sync.sync_runs([machines.carried])
    assert "its weights answer 1 test images as where they were packed" in capsys.readouterr().out


def test_a_run_of_other_code_is_known_but_trained_again(machines, capsys):
    folder = make_run(machines, code_sha256="f" * 64)
    pack(machines, folder)
    run_sync.sync_runs([machines.carried])
    assert "it was trained by other code than is here" in capsys.readouterr().out
    assert open_synced(machines, folder).result.code_sha256 == "f" * 64
    assert find_finished(machines.home.checkpoints_dir, folder.record, hash_code()) is None


def test_a_fine_tuned_run_names_the_synced_run_that_it_started_from(machines):
    source = make_run(machines, seed=1)
    tags = {"pretrained_run_id": source.record.run_id, "pretrained_sha256": source.result.weights_sha256}
    tuned = make_run(machines, seed=2, tags=tags)
    pack(machines, tuned, source)
    run_sync.sync_runs([machines.carried])
    [run] = machines.find(tuned.record.run_id)
    assert run.data.tags["pretrained_run_id"] == open_synced(machines, source).record.run_id


def test_only_complete_offline_runs_are_packed(machines):
    folder = make_run(machines)
    run_id = folder.record.run_id
    run_packing.pack_runs([run_id[:8]], "none", machines.carried, PART)
    [packed], _, _ = find_packs([machines.carried])
    assert packed.run_id == run_id
    with pytest.raises(TrainingError, match="no run"):
        run_packing.pack_runs([run_id[:3]], "none", machines.carried, PART)
    (folder.path / RESULT_FILE).rename(folder.path / "kept")
    with pytest.raises(TrackingError, match="is not complete; repeat its train command"):
        run_packing.pack_runs([run_id], "none", machines.carried, PART)
    (folder.path / "kept").rename(folder.path / RESULT_FILE)
    whole = (folder.path / JOURNAL_FILE).read_bytes()
    (folder.path / JOURNAL_FILE).write_bytes(whole[: whole.rstrip().rindex(b"\n") + 1])
    with pytest.raises(TrackingError, match=r"journal\.jsonl lacks the run's end; train again"):
        run_packing.pack_runs([run_id], "none", machines.carried, PART)
    (folder.path / JOURNAL_FILE).unlink()
    with pytest.raises(UsageError, match="is in MLflow; only runs of `darkroom train --offline` are packed"):
        run_packing.pack_runs([run_id], "none", machines.carried, PART)


def test_a_journal_that_names_files_outside_of_the_pack_sends_none(machines):
    folder = make_run(machines)
    (machines.home.checkpoints_dir / "secret.txt").parent.mkdir(parents=True)
    (machines.home.checkpoints_dir / "secret.txt").write_text("secret")
    last = read_journal(folder.path)[-1]
    for place, name in (("stolen.txt", "../../secret.txt"), ("other.txt", "/etc/hostname")):
        line = last.model_copy(update={"artifact": place, "file": name, "status": None})
        with (folder.path / JOURNAL_FILE).open("a") as file:
            file.write(line.model_dump_json(exclude_defaults=True) + "\n")
    pack(machines, folder)
    run_sync.sync_runs([machines.carried])
    [run] = machines.find(folder.record.run_id)
    sent = {file.path for file in machines.client.list_artifacts(run.info.run_id)}
    assert sent == {"config.json", "checkpoints", "tensorboard"}


def test_a_run_that_memory_divided_comes_home(machines):
    folder = make_run(machines)
    [first, *rest] = (folder.path / JOURNAL_FILE).read_text().splitlines()
    told = json.loads(rest[-1]) | {"tags": {"profile": "custom", "budget": "custom: engine.parts=2"}, "status": None}
    (folder.path / JOURNAL_FILE).write_text("\n".join([first, *rest[:-1], json.dumps(told), rest[-1]]) + "\n")
    pack(machines, folder)
    run_sync.sync_runs([machines.carried])
    [run] = machines.find(folder.record.run_id)
    assert run.data.tags["budget"] == "custom: engine.parts=2"


def test_a_chain_of_runs_comes_home_in_its_order(machines):
    first = make_run(machines, seed=1)
    second = make_run(machines, seed=2, tags={"pretrained_run_id": first.record.run_id})
    third = make_run(machines, seed=3, tags={"pretrained_run_id": second.record.run_id})
    pack(machines, third, second, first)
    packs, _, _ = find_packs([machines.carried])
    for given in itertools.permutations(packs):
        ordered = [one.run_id for one in run_sync._order_by_start(given)]
        assert ordered == [folder.record.run_id for folder in (first, second, third)]
    run_sync.sync_runs([machines.carried])
    ids = [machines.find(folder.record.run_id)[0].info.run_id for folder in (first, second, third)]
    starts = [machines.client.get_run(run_id).data.tags.get("pretrained_run_id") for run_id in ids]
    assert starts == [None, ids[0], ids[1]]


def test_a_run_without_its_weights_is_packed_without_them_only(machines):
    folder = make_run(machines)
    (folder.path / "best-0001.safetensors").unlink()
    with pytest.raises(DataError, match="is missing; pack the run with --weights none"):
        pack(machines, folder)
    pack(machines, folder, weights="none")
