import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from urllib.parse import parse_qsl

import pytest
from mlflow import MlflowClient

from flows.jobs.machine import OpenPages
from model_code.errors import TrackingError
from model_code.tracking.store import EXPERIMENT, find_comparison, open_store, share_view
from tests.unit.tracking.small_store import make_settings, mlflow_given_back, open_small_store

OPEN = """
import json, sys
from pathlib import Path
from model_code.settings import load_settings
from model_code.tracking.store import EXPERIMENT, open_store
import mlflow.store.tracking.sqlalchemy_store
print("ready", flush=True)
sys.stdin.readline()
client = open_store(load_settings())
experiment = client.get_experiment_by_name(EXPERIMENT)
run = client.create_run(experiment.experiment_id)
print(json.dumps([experiment.experiment_id, run.info.artifact_uri]))
"""


@pytest.fixture(autouse=True)
def addresses():
    with mlflow_given_back():
        yield


def test_everything_is_below_home(tmp_path):
    settings = make_settings(tmp_path)
    client = open_store(settings)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment.artifact_location == settings.artifacts_dir.as_uri()
    assert (settings.home / "mlflow.db").is_file()
    assert settings.artifacts_dir.is_dir()
    run = client.create_run(experiment.experiment_id)
    client.log_text(run.info.run_id, "hello", "note.txt")
    assert len(list(settings.artifacts_dir.rglob("note.txt"))) == 1


def test_opening_again_finds_what_is_there(store):
    settings, client = store
    experiment = client.get_experiment_by_name(EXPERIMENT)
    run = client.create_run(experiment.experiment_id)
    again = open_store(settings)
    assert again.get_experiment_by_name(EXPERIMENT).experiment_id == experiment.experiment_id
    assert again.get_run(run.info.run_id).info.artifact_uri == run.info.artifact_uri
    names = [found.name for found in again.search_experiments()]
    assert names.count(EXPERIMENT) == 1


def test_an_experiment_that_another_machine_makes_meanwhile_is_used(store, monkeypatch):
    settings, client = store
    find, calls = MlflowClient.get_experiment_by_name, []

    def miss_it_once(self, name):
        calls.append(name)
        return None if len(calls) == 1 else find(self, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", miss_it_once)
    again = open_store(settings)
    expected = find(client, EXPERIMENT).experiment_id
    assert again.get_experiment_by_name(EXPERIMENT).experiment_id == expected


@pytest.mark.slow
def test_two_processes_may_open_a_new_store_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    command = [sys.executable, "-W", "ignore", "-c", OPEN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        client = open_store(make_settings(tmp_path))
        experiment_id, place = json.loads(other.communicate(timeout=60)[0])
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment.experiment_id == experiment_id
    assert experiment.artifact_location == (tmp_path / "artifacts").as_uri()
    assert place.startswith(experiment.artifact_location)
    assert len(client.search_runs([experiment_id])) == 1
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM experiments WHERE name = ?", [EXPERIMENT]).fetchone() == (1,)
        assert database.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)


def test_a_server_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    start = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        open_store(make_settings(tmp_path, address))
    assert time.monotonic() - start < 10
    assert str(caught.value).startswith(f"MLflow at {address} cannot be used (")
    assert "start the server or correct MLFLOW_TRACKING_URI" in str(caught.value)
    assert "Connection refused" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_address_of_no_kind_that_mlflow_knows(tmp_path):
    with pytest.raises(TrackingError, match=r"^MLflow at ftp://127\.0\.0\.1/runs cannot be used") as caught:
        open_store(make_settings(tmp_path, "ftp://127.0.0.1/runs"))
    assert "\n" not in str(caught.value)


def test_pages_of_a_server_are_the_servers_own(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    with pytest.raises(TrackingError, match="open http://mlflow:5000 in a browser"):
        OpenPages().check()
    assert list(tmp_path.iterdir()) == []


def test_pages_on_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TrackingError, match=rf"^cannot listen on 127\.0\.0\.1:{port}: .*choose another --port"):
            OpenPages(port=port).check()


def test_pages_open_on_the_runs_with_what_tells_them_apart_the_best_first(tmp_path):
    with open_small_store(tmp_path) as (_, client):
        check_view(client)


def check_view(client):
    experiment_id = client.get_experiment_by_name(EXPERIMENT).experiment_id
    assert share_view(client) == f"experiments/{experiment_id}/runs?viewStateShareKey=darkroom"
    tags = client.get_experiment(experiment_id).tags
    state = json.loads(tags["mlflow.sharedViewState.darkroom"])
    assert {
        "tags.`recipe`",
        "tags.`dataset`",
        "tags.`budget`",
        "tags.`precision`",
        "metrics.`test/accuracy`",
    } <= set(state["selectedColumns"])
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`validation/best_accuracy`", False), "no test yet"
    client.log_metric(client.create_run(experiment_id).info.run_id, "test/accuracy", 0.0)
    share_view(client)
    tags = client.get_experiment(experiment_id).tags
    assert json.loads(tags["mlflow.sharedViewState.darkroom"])["orderByKey"] == "metrics.`test/accuracy`"


def test_the_newest_finished_trainings_are_compared(tmp_path):
    with open_small_store(tmp_path) as (_, client):
        experiment_id = client.get_experiment_by_name(EXPERIMENT).experiment_id
        assert find_comparison(client, experiment_id) == ""
        runs = [
            client.create_run(experiment_id, start_time=start_ms, tags={"kind": "supervised"}).info.run_id
            for start_ms in range(1, 7)
        ]
        client.set_terminated(runs[0], "FINISHED")
        assert find_comparison(client, experiment_id) == ""
        for run_id in runs[1:5]:
            client.set_terminated(run_id, "FINISHED")
        client.set_terminated(runs[5], "FAILED")
        client.set_terminated(client.create_run(experiment_id, start_time=9).info.run_id, "FINISHED")  # a parent
        other = client.create_run(experiment_id, start_time=4, tags={"kind": "simsiam"}).info.run_id
        client.set_terminated(other, "FINISHED")
        path, _, query = find_comparison(client, experiment_id).partition("?")
    found = {key: json.loads(value) for key, value in parse_qsl(query)}
    assert (path, found) == ("compare-runs", {"runs": runs[4:0:-1], "experiments": [experiment_id]})


def test_the_description_links_to_the_comparison_and_keeps_what_a_person_wrote(tmp_path):
    with open_small_store(tmp_path) as (_, client):
        experiment_id = client.get_experiment_by_name(EXPERIMENT).experiment_id
        client.set_experiment_tag(experiment_id, "mlflow.note.content", "Our runs.\nAsk Ada.")
        described = []
        for _ in range(3):
            share_view(client)
            described.append(client.get_experiment(experiment_id).tags["mlflow.note.content"].splitlines())
            run_id = client.create_run(experiment_id, tags={"kind": "supervised"}).info.run_id
            client.set_terminated(run_id, "FINISHED")
        share_view(client)
        newest = client.get_experiment(experiment_id).tags["mlflow.note.content"].splitlines()
        comparison = find_comparison(client, experiment_id)
    assert described[:2] == [["Our runs.", "Ask Ada."]] * 2
    assert described[2][1:] == newest[1:] == ["Our runs.", "Ask Ada."]
    assert newest[0].startswith(f"[The newest runs side by side](#/{comparison}) · [All runs as charts](#/experiments/")
    assert newest[0] != described[2][0]


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [150, 400, 700])
def test_a_first_use_that_was_killed_can_be_repeated(tmp_path, kilobytes):
    code = "from model_code import settings; from model_code.tracking import store; "
    code += "store.open_store(settings.load_settings())"
    environment = os.environ | {"DARKROOM_HOME": str(tmp_path)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    files = [tmp_path / name for name in ("mlflow.db.new", "mlflow.db")]
    while process.poll() is None and not any(f.exists() and f.stat().st_size > kilobytes * 1000 for f in files):
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not files[1].exists()
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert files[1].exists()
    assert not files[0].exists()
