import json
import shutil
import sqlite3
from contextlib import closing

import pytest
from sqlalchemy.exc import OperationalError

from model_code.disk import take_lock
from model_code.errors import DarkroomError, DiskFullError, TrackingError, UsageError
from model_code.evaluation.metrics import measure
from model_code.settings import load_settings
from model_code.tracking.finished_runs import find_finished_runs
from model_code.tracking.mlflow_log import create_run, track_run
from model_code.tracking.store import EXPERIMENT, open_store
from model_code.tracking.tensorboard import TensorBoardWriter
from model_code.training.processes import ALONE
from model_code.training.results import Callback
from model_code.training.run_folder import RunRecord
from model_code.training.supervised import fit
from tests.unit.tracking.small_store import make_settings, mlflow_given_back, open_small_store
from tests.unit.tracking.test_tensorboard import read_events
from tests.unit.training.small_runs import make_config, make_images, tiny_network_entered

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with tiny_network_entered(), open_small_store(tmp_path_factory.mktemp("home")) as store:
        yield store


@pytest.fixture
def addresses():
    with mlflow_given_back():
        yield


def test_opening_the_store_does_not_change_the_settings(store, tmp_path, monkeypatch, addresses):
    """mlflow.set_tracking_uri writes MLFLOW_TRACKING_URI into the environment, which load_settings reads."""
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    before = load_settings()
    open_store(before)
    assert load_settings() == before


def test_a_deleted_experiment(tmp_path, addresses):
    client = open_store(make_settings(tmp_path))
    client.delete_experiment(client.get_experiment_by_name(EXPERIMENT).experiment_id)
    with pytest.raises(TrackingError):
        open_store(make_settings(tmp_path))


def test_a_database_file_that_is_none(tmp_path, addresses):
    (tmp_path / "mlflow.db").write_bytes(b"this is no database " * 500)
    with pytest.raises(TrackingError):
        open_store(make_settings(tmp_path))


def test_a_database_of_a_newer_mlflow_is_named_and_left_as_it_is(tmp_path, addresses):
    open_store(make_settings(tmp_path / "old"))
    file = tmp_path / "mlflow.db"  # elsewhere: MLflow keeps open what it opened
    shutil.copy(tmp_path / "old/mlflow.db", file)
    with closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
        database.commit()
    before = file.read_bytes()
    with pytest.raises(TrackingError, match=r"written by a newer MLflow than .* fedcba987654 .* install the newer one"):
        open_store(make_settings(tmp_path))
    assert file.read_bytes() == before


def test_a_full_disk_is_not_taken_for_a_wrong_address(tmp_path, addresses, monkeypatch):
    def refuse(_):
        raise OperationalError("", {}, sqlite3.OperationalError("database or disk is full"))

    monkeypatch.setattr("model_code.tracking.store._create_database", refuse)
    monkeypatch.setattr("model_code.disk.count_free_bytes", lambda _: 0)
    with pytest.raises(DiskFullError, match=f"^the disk of {tmp_path} is full: opening MLflow's database needs "):
        open_store(make_settings(tmp_path))


def test_finished_runs_without_their_figure(store):
    _, client = store
    experiment = client.get_experiment_by_name(EXPERIMENT)
    run_id = client.create_run(experiment.experiment_id).info.run_id
    for key, value in {"recipe": "old", "dataset": "cifar10", "profile": "full"}.items():
        client.set_tag(run_id, key, value)
    client.set_terminated(run_id)
    assert find_finished_runs(client, "old", "cifar10") == []


class Stop(Callback):
    def on_epoch_end(self, metrics):
        if metrics.epoch == 2:
            raise KeyError


def test_tensorboard_has_every_epoch_of_a_resumed_run(store, tmp_path):
    config, images = make_config(), make_images()
    with pytest.raises(KeyError), TensorBoardWriter(tmp_path) as writer:
        fit(config, images, tmp_path, ALONE, [Stop(), writer])
    with TensorBoardWriter(tmp_path) as writer:
        fit(config, images, tmp_path, ALONE, [writer])
    assert [point.step for point in read_events(tmp_path).Scalars("validation/accuracy")] == [1, 2, 3, 4]


def test_the_report_is_json_when_a_class_has_no_image(store, tmp_path):
    import mlflow
    import torch
    from matplotlib.figure import Figure

    _, client = store
    config = make_config()
    run_id = create_run(client, EXPERIMENT, config, "attempt", tmp_path)
    with track_run(RunRecord(run_id=run_id, data_checksum="c", config=config), {}) as tracker:
        tracker.log_report("test", measure(torch.eye(3), torch.tensor([0, 1, 1])), ("a", "b", "c"), Figure())
    text = mlflow.artifacts.load_text(f"{client.get_run(run_id).info.artifact_uri}/reports/test.json")

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    json.loads(text, parse_constant=refuse)


def test_a_lock_where_nothing_can_be_written(tmp_path):
    """hold_lock says DataError; take_lock passes the system's error on."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DarkroomError), take_lock(tmp_path / "file" / "x.lock", "busy"):
        pass


def test_a_home_with_a_question_mark_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "what?now"))
    with pytest.raises(UsageError, match="database address"):
        load_settings()
