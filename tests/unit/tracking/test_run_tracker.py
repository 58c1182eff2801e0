import json
import re
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.store.tracking.dbmodels.models import SqlDataset
from PIL import Image
from sqlalchemy import event

from model_code.errors import TrackingError, TrainingError
from model_code.evaluation.figures import draw_prediction_grid
from model_code.evaluation.metrics import Report, measure, predict_logits
from model_code.tracking.mlflow_log import create_run, log_images, track_run
from model_code.tracking.outage import Patience
from model_code.tracking.store import EXPERIMENT
from model_code.tracking.tensorboard import TensorBoardWriter
from model_code.training.checkpoints import LAST_FILE
from model_code.training.processes import ALONE
from model_code.training.results import Callback, TrainingResult
from model_code.training.run_folder import STATE_FILE, RunFolder, RunRecord, create_run_folder
from model_code.training.supervised import fit, load_model
from tests.unit.tracking.small_store import store_away
from tests.unit.training.small_runs import make_config, make_images
from tests.unit.training.test_another_device import CUDA_STATE
from tests.unit.training.test_another_device import StopAfter as StopInside

EPOCH_METRICS = {
    "train/loss": "train_loss",
    "train/accuracy": "train_accuracy",
    "train/pictures_per_s": "pictures_per_s",
    "train/seconds": "seconds",
    "train/learning_rate": "learning_rate",
    "validation/loss": "validation_loss",
    "validation/accuracy": "validation_accuracy",
    "validation/macro_f1": "validation_macro_f1",
}
WEIGHTS_SHA256 = "d" * 64
HURRY = Patience(first_pause_s=0.05, longest_pause_s=0.1, limit_s=1)
TAGS = {"device": "cpu (test)", "published_accuracy": "0.923", "budget": "full"}


class StopHere(Exception):  # noqa: N818 - an interruption, not an error
    pass


class StopAfter(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, metrics):
        if metrics.epoch == self.epoch:
            raise StopHere


@dataclass(frozen=True)
class Tracked:
    client: MlflowClient
    folder: RunFolder
    result: TrainingResult
    report: Report

    @property
    def run(self):
        return self.client.get_run(self.folder.record.run_id)

    def read_artifact(self, name):
        return mlflow.artifacts.load_text(f"{self.run.info.artifact_uri}/{name}")

    def list_artifacts(self, folder=""):
        return sorted(file.path for file in self.client.list_artifacts(self.run.info.run_id, folder))


def start_folder(store, **settings):
    """Make the MLflow run and the folder of a new training."""
    home, client = store
    config = make_config(**settings)
    run_id = create_run(client, EXPERIMENT, config, uuid.uuid4().hex, home.checkpoints_dir)
    record = RunRecord(run_id=run_id, data_checksum="c" * 64, config=config)
    return create_run_folder(home.checkpoints_dir, record)


def get_steps(client, run_id):
    """{metric: its steps in the order of logging} of the metrics of epochs."""
    return {key: [point.step for point in client.get_metric_history(run_id, key)] for key in EPOCH_METRICS}


@pytest.fixture(scope="module")
def tracked(store):
    """A run as the training flow does it."""
    _, client = store
    folder = start_folder(store, epochs=3, seed=5, decay_points=(0.5,))
    images = make_images(test=30)
    with track_run(folder.record, TAGS) as tracker:
        with TensorBoardWriter(folder.path) as events:
            result = fit(folder.record.config, images, folder.path, ALONE, [tracker, events])
        logits_NK = predict_logits(load_model(folder.record.config, 4, 8, result.best_weights), images.test.images_NHWC)
        report = measure(logits_NK, images.test.labels_N)
        grid = draw_prediction_grid(
            images.test.images_NHWC.numpy(), images.test.labels_N.numpy(), logits_NK.argmax(1).numpy(), "abcd"
        )
        tracker.log_report("test", report, images.classes, grid)
        tracker.log_training(result, WEIGHTS_SHA256)
        tracker.log_checkpoints(folder, result)
        tracker.log_config(folder)
    return Tracked(client, folder, result, report)


def test_the_run_is_finished_and_named(tracked):
    assert tracked.run.info.status == "FINISHED"
    assert re.fullmatch(r"[0-9a-f]{8} tiny_pets_test on \w+, full, seed 5", tracked.run.info.run_name)
    [images] = [one.dataset for one in tracked.run.inputs.dataset_inputs]
    assert (images.name, images.digest) == (tracked.folder.record.config.dataset, "c" * 36)
    assert tracked.run.info.end_time >= tracked.run.info.start_time


def test_of_two_runs_that_begin_at_once_on_new_images_none_fails(store):
    """MLflow looks whether it has the images, and then adds them: here the other run adds them in between."""
    _, client = store
    first, second = (start_folder(store, dataset="new").record for _ in range(2))
    event.listen(SqlDataset, "before_insert", lambda *_: log_images(client, second), once=True)
    with track_run(first, TAGS):
        pass
    for record in (first, second):
        [images] = client.get_run(record.run_id).inputs.dataset_inputs
        assert images.dataset.name == "new"


def test_every_setting_is_a_parameter(tracked):
    params = tracked.run.data.params
    config = tracked.folder.record.config
    assert set(params) == set(config.flatten())
    assert params["engine.precision"] == "float32"
    assert params["network"] == "tiny"
    assert params["learning_rate"] == "0.05"
    assert params["decay_points"] == "[0.5]"
    assert params["has_flip"] == "true"
    assert params["pretrained_weights"] == "null"


def test_tags_say_what_the_run_is_and_where_it_comes_from(tracked):
    tags = tracked.run.data.tags
    expected = {
        "recipe": "tiny_pets_test",
        "profile": "full",
        "dataset": "shapes",
        "seed": "5",
        "kind": "supervised",
        "budget": "full",
        "published_accuracy": "0.923",
        "config_sha256": tracked.folder.record.config.sha256(),
        "data_checksum": "c" * 64,
        "device": "cpu (test)",
        "weights_sha256": WEIGHTS_SHA256,
    }
    assert {key: tags[key] for key in expected} == expected
    assert tags["version.torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert tags["git_sha"]


def test_each_epoch_is_logged_once(tracked):
    for key, attribute in EPOCH_METRICS.items():
        points = tracked.client.get_metric_history(tracked.folder.record.run_id, key)
        assert [point.step for point in points] == [1, 2, 3]
        assert [point.value for point in points] == [getattr(epoch, attribute) for epoch in tracked.result.history]


def test_the_best_epoch_and_the_test_are_metrics(tracked):
    metrics = tracked.run.data.metrics
    assert metrics["validation/best_accuracy"] == tracked.result.best.validation_accuracy
    assert metrics["validation/best_epoch"] == tracked.result.best_epoch
    assert metrics["test/accuracy"] == tracked.report.accuracy_fraction
    assert metrics["test/macro_f1"] == tracked.report.macro_f1
    assert metrics["test/loss"] == tracked.report.loss
    assert metrics["test/pictures"] == 30


def test_artifacts(tracked):
    assert tracked.list_artifacts() == ["checkpoints", "config.json", "figures", "reports", "tensorboard"]
    assert tracked.list_artifacts("figures") == [
        "figures/curves.png",
        "figures/test_confusion.png",
        "figures/test_pictures.png",
    ]
    assert tracked.list_artifacts("checkpoints") == ["checkpoints/best.safetensors", "checkpoints/last.safetensors"]
    assert tracked.list_artifacts("reports") == ["reports/test.json"]
    assert len(tracked.list_artifacts("tensorboard")) == 1


def test_figures_are_images(tracked):
    for name in tracked.list_artifacts("figures"):
        with Image.open(mlflow.artifacts.download_artifacts(f"{tracked.run.info.artifact_uri}/{name}")) as image:
            assert image.format == "PNG"
            assert min(image.size) > 300


def test_checkpoints_are_the_files_of_the_run(tracked):
    for name, file in [("best", tracked.result.best_weights), ("last", tracked.result.last_weights)]:
        kept = mlflow.artifacts.download_artifacts(f"{tracked.run.info.artifact_uri}/checkpoints/{name}.safetensors")
        with open(kept, "rb") as stream:  # noqa: PTH123 - MLflow answers with text
            assert stream.read() == file.read_bytes()


def test_the_report_and_the_config_can_be_read_again(tracked):
    report = json.loads(tracked.read_artifact("reports/test.json"))
    assert report["accuracy"] == tracked.report.accuracy_fraction
    assert report["pictures"] == 30
    assert report["per_class_accuracy"] == dict(
        zip(("ant", "bee", "cat", "dog"), tracked.report.per_class_accuracy, strict=True)
    )
    assert np.array_equal(report["confusion"], tracked.report.confusion_KK)
    config = type(tracked.folder.record.config).model_validate_json(tracked.read_artifact("config.json"))
    assert config == tracked.folder.record.config


@pytest.mark.parametrize("is_logged", [True, False], ids=["after it was logged", "before it was logged"])
def test_a_resumed_run_logs_each_epoch_once(store, is_logged):
    _, client = store
    folder = start_folder(store, seed=6)

    def train(stop):
        with track_run(folder.record, TAGS) as tracker:
            callbacks = [tracker, stop] if is_logged else [stop, tracker]
            return fit(folder.record.config, make_images(), folder.path, ALONE, callbacks)

    for epoch in (1, 2, 4):
        with pytest.raises(StopHere):
            train(StopAfter(epoch))
        assert client.get_run(folder.record.run_id).info.status == "FAILED"
    result = train(Callback())
    run = client.get_run(folder.record.run_id)
    assert run.info.status == "FINISHED"
    steps = get_steps(client, folder.record.run_id)
    assert {key: sorted(points) for key, points in steps.items()} == {key: [1, 2, 3, 4] for key in EPOCH_METRICS}
    points = client.get_metric_history(folder.record.run_id, "validation/loss")
    assert {point.step: point.value for point in points} == {
        metrics.epoch: metrics.validation_loss for metrics in result.history
    }


def test_epochs_that_are_trained_again_are_not_logged_again(store):
    """Killed before the checkpoint of epochs that MLflow has: they are trained anew."""
    _, client = store
    folder = start_folder(store, seed=10)
    config = folder.record.config
    with pytest.raises(StopHere), track_run(folder.record, TAGS) as tracker:
        fit(config, make_images(), folder.path, ALONE, [tracker, StopAfter(2)])
    before = client.get_metric_history(folder.record.run_id, "train/seconds")
    (folder.path / STATE_FILE).unlink()
    with track_run(folder.record, TAGS) as tracker:
        fit(config, make_images(), folder.path, ALONE, [tracker])
    assert set(map(tuple, get_steps(client, folder.record.run_id).values())) == {(1, 2, 3, 4)}
    assert client.get_metric_history(folder.record.run_id, "train/seconds")[:2] == before


def test_epochs_that_another_device_trains_again_are_not_logged_again(store, capsys):
    """Its checkpoint, of the middle of an epoch on CUDA, is older than what MLflow has."""
    _, client = store
    folder = start_folder(store, seed=14)
    config, run_id, images = folder.record.config, folder.record.run_id, make_images()
    for stop in (StopInside(2, 2), StopInside(4, 1)):
        with pytest.raises(KeyboardInterrupt), track_run(folder.record, TAGS) as tracker:
            fit(config, images, folder.path, ALONE, [tracker, stop])
        if stop.last == (2, 2):
            state = torch.load(folder.path / STATE_FILE, weights_only=True)
    torch.save(state | {"generator": CUDA_STATE, "cuda_rng": CUDA_STATE}, folder.path / STATE_FILE)
    before = client.get_metric_history(run_id, "train/seconds")
    capsys.readouterr()
    with track_run(folder.record, TAGS) as tracker:
        fit(config, images, folder.path, ALONE, [tracker])
    assert "the run began on cuda and continues on cpu" in capsys.readouterr().out
    assert client.get_run(run_id).data.tags["resumed_on"] == "cuda to cpu after epoch 1"
    assert set(map(tuple, get_steps(client, run_id).values())) == {(1, 2, 3, 4)}
    assert client.get_metric_history(run_id, "train/seconds")[:3] == before


def test_final_figures_are_logged_once(store):
    _, client = store
    folder = start_folder(store, seed=11)
    for figures in ({"test/loss": 0.5}, {"test/loss": 0.5, "test/accuracy": 0.75}, {"test/accuracy": 0.8}):
        with track_run(folder.record, TAGS) as tracker:
            tracker.log_metrics(figures)
    values = {
        key: [point.value for point in client.get_metric_history(folder.record.run_id, key)]
        for key in ("test/loss", "test/accuracy")
    }
    assert values == {"test/loss": [0.5], "test/accuracy": [0.75, 0.8]}
    assert client.get_run(folder.record.run_id).data.metrics["test/accuracy"] == 0.8


def test_final_figures_beside_a_curve_of_the_same_name_are_logged_once(store):
    _, client = store
    folder = start_folder(store, seed=12)
    client.log_metric(folder.record.run_id, "validation/accuracy", 0.4, step=1)
    for _ in range(2):
        with track_run(folder.record, TAGS) as tracker:
            tracker.log_metrics({"validation/accuracy": 0.4})
    points = client.get_metric_history(folder.record.run_id, "validation/accuracy")
    assert sorted((point.step, point.value) for point in points) == [(0, 0.4), (1, 0.4)]


class NoStep(Callback):
    def on_step(self, epoch, step, steps, loss):
        raise AssertionError("an epoch is trained again")


class GoAway(Callback):
    """Takes the store away after an epoch."""

    def __init__(self, settings, epoch):
        self.settings, self.epoch, self.outage = settings, epoch, ExitStack()

    def on_epoch_end(self, metrics):
        if metrics.epoch == self.epoch:
            self.outage.enter_context(store_away(self.settings))


def test_a_run_whose_store_is_away_at_its_end_is_completed_by_another_try(store, capsys):
    settings, client = store
    folder = start_folder(store, seed=12)
    config, away = folder.record.config, GoAway(settings, 2)

    def train(callback):
        with track_run(folder.record, TAGS, HURRY) as tracker:
            result = fit(config, make_images(), folder.path, ALONE, [tracker, callback])
            tracker.log_training(result, WEIGHTS_SHA256)
        return result.last_weights.read_bytes()

    with away.outage, pytest.raises(TrackingError, match="trains no finished epoch again") as caught:
        train(away)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err == ""
    assert client.get_run(folder.record.run_id).info.status == "RUNNING"
    weights = (folder.path / LAST_FILE).read_bytes()
    assert train(NoStep()) == weights
    assert set(map(tuple, get_steps(client, folder.record.run_id).values())) == {(1, 2, 3, 4)}
    assert client.get_run(folder.record.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("is_told", [True, False], ids=["known to be away", "not yet known"])
def test_an_interruption_does_not_wait_for_the_store(store, is_told):
    settings, client = store
    folder = start_folder(store, seed=13)
    outage, starts_s = ExitStack(), []

    def interrupt():
        with track_run(folder.record, TAGS) as tracker:
            outage.enter_context(store_away(settings))
            if is_told:
                tracker.log_metrics({"test/loss": 0.5})
                time.sleep(1)
            starts_s.append(time.monotonic())
            raise KeyboardInterrupt

    with outage, pytest.raises(KeyboardInterrupt):
        interrupt()
    assert time.monotonic() - starts_s[0] < 3
    assert client.get_run(folder.record.run_id).info.status == "RUNNING"


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt, "KILLED"), (TrainingError, "FAILED"), (SystemExit, "FAILED"), (MemoryError, "FAILED")],
)
def test_how_a_run_ends(store, error, status):
    _, client = store
    folder = start_folder(store, seed=7)
    assert client.get_run(folder.record.run_id).info.status == "RUNNING"
    with pytest.raises(error), track_run(folder.record, TAGS):
        raise error
    assert client.get_run(folder.record.run_id).info.status == status
    with track_run(folder.record, TAGS):
        assert client.get_run(folder.record.run_id).info.status == "RUNNING"
    assert client.get_run(folder.record.run_id).info.status == "FINISHED"


def test_a_run_is_not_taken_up_with_other_settings(store):
    folder = start_folder(store, seed=8)
    with track_run(folder.record, TAGS):
        pass
    other = folder.record.model_copy(update={"config": make_config(seed=9)})
    with pytest.raises(TrackingError, match="Changing param values is not allowed"), track_run(other, TAGS):
        pass
    assert store[1].get_run(folder.record.run_id).info.status == "FINISHED"
