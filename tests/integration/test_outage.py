"""A training whose MLflow server is killed while it goes on: a real server, a real command."""

import re
import signal
import time

import pytest

from model_code.errors import TrackingError
from model_code.tracking.mlflow_log import create_run, track_run
from model_code.tracking.outage import Patience
from model_code.tracking.store import EXPERIMENT, open_store
from model_code.training.processes import ALONE
from model_code.training.results import Callback
from model_code.training.run_folder import RunRecord, create_run_folder, find_interrupted
from model_code.training.supervised import fit
from tests.integration.mlflow_server import Server
from tests.unit.tracking.small_store import make_settings, mlflow_given_back
from tests.unit.training.small_runs import make_config, make_images, tiny_network_entered

RUN_LINE = re.compile(r"run ([0-9a-f]{32})")
EPOCHS = 7
TRAIN = (
    *("train", "resnet18_cifar10_exp", "--set", "dataset=shapes", "--limit-train", 500, "--set", "batch_size=50"),
    *("--set", "limit_test=100", "--set", f"epochs={EPOCHS}"),
)


@pytest.fixture(scope="module")
def killable(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("mlflow-server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(killable):
    """A server that answers."""
    killable.run()
    return killable


@pytest.fixture
def client(server, tmp_path):
    with mlflow_given_back():
        yield open_store(make_settings(tmp_path, server.url))


@pytest.fixture(scope="module")
def _shapes(home):
    from model_code.data.add import add_dataset
    from model_code.settings import load_settings

    settings = load_settings()
    add_dataset("shapes", cache_dir=settings.cache_dir, data_dir=settings.data_dir, progress=False)


def count_points(client, run_id):
    """{metric: steps in order} of everything that MLflow has of a run."""
    return {
        key: sorted(point.step for point in client.get_metric_history(run_id, key))
        for key in client.get_run(run_id).data.metrics
    }


def check_each_step_is_there_once(client, run_id, epochs):
    steps = count_points(client, run_id)
    assert steps["train/loss"] == steps["validation/accuracy"] == list(range(1, epochs + 1))
    assert {key: found for key, found in steps.items() if len(set(found)) < len(found)} == {}
    machine = steps["system/cpu_utilization_percentage"]
    assert machine == list(range(len(machine)))


@pytest.mark.usefixtures("_shapes")
def test_a_training_goes_on_without_mlflow_and_sends_everything_later(
    server, client, home, start_darkroom, prefect_server
):
    process = start_darkroom(*TRAIN, "--seed", 21, MLFLOW_TRACKING_URI=server.url, **prefect_server)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if f"epoch 2/{EPOCHS}" in line:
            server.kill()
        if "metrics are kept" in line:
            server.start()
    out = "".join(lines)
    assert process.wait(60) == 0, out
    told, back = (next(n for n, line in enumerate(lines) if words in line) for words in ("cannot be", "answers again"))
    assert any(f"epoch {n}/{EPOCHS}" in line for line in lines[told:back] for n in range(3, EPOCHS + 1)), out
    assert out.count("metrics are kept") == out.count("answers again") == 1
    assert "Traceback" not in out

    run_id = RUN_LINE.search(out).group(1)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    check_each_step_is_there_once(client, run_id, EPOCHS)
    assert "test/accuracy" in run.data.metrics
    artifacts = {file.path for folder in ("figures", "checkpoints") for file in client.list_artifacts(run_id, folder)}
    assert {"figures/curves.png", "checkpoints/best.safetensors", "checkpoints/last.safetensors"} <= artifacts
    assert (home / "checkpoints" / run_id / "result.json").exists()


@pytest.mark.usefixtures("_shapes")
def test_a_signal_ends_a_training_without_mlflow_at_once(server, home, start_darkroom, prefect_server):
    addresses = prefect_server | {"MLFLOW_TRACKING_URI": server.url}
    process = start_darkroom(*TRAIN, "--seed", 22, "--epochs", 100, **addresses)
    lines, sent_s = [], 0.0
    for line in process.stdout:
        lines.append(line)
        if "epoch 1/100" in line:
            server.kill()
        if "metrics are kept" in line:
            process.send_signal(signal.SIGTERM)
            sent_s = time.monotonic()
    assert process.wait(30) == 130, "".join(lines)
    assert time.monotonic() - sent_s < 30
    assert "Traceback" not in "".join(lines)
    run_id = RUN_LINE.search("".join(lines)).group(1)
    assert (home / "checkpoints" / run_id / "state.pt").exists()
    assert not (home / "checkpoints" / run_id / "result.json").exists()


class Killer(Callback):
    """Kills the server after an epoch."""

    def __init__(self, server, epoch):
        self.server, self.epoch = server, epoch

    def on_epoch_end(self, metrics):
        if metrics.epoch == self.epoch:
            self.server.kill()


class Counter(Callback):
    """Counts the epochs that are trained."""

    def __init__(self):
        self.epochs = []

    def on_epoch_end(self, metrics):
        self.epochs.append(metrics.epoch)


@pytest.fixture
def _tiny_network():
    with tiny_network_entered():
        yield


@pytest.mark.usefixtures("_tiny_network")
def test_a_run_that_mlflow_did_not_see_end_is_completed_by_the_same_command(server, client, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    patience = Patience(first_pause_s=0.1, longest_pause_s=0.5, limit_s=2)
    config = make_config(epochs=6)
    run_id = create_run(client, EXPERIMENT, config, "attempt", tmp_path)
    record = RunRecord(run_id=run_id, data_checksum="c" * 64, config=config)
    folder = create_run_folder(tmp_path, record)
    counter = Counter()

    def train(*callbacks):
        with track_run(record, {}, patience) as tracker:
            result = fit(config, make_images(), folder.path, ALONE, [tracker, counter, *callbacks])
            tracker.log_training(result, "d" * 64)
            tracker.log_checkpoints(folder, result)
            tracker.log_metrics({"seconds": 1.0})
        return result

    start_s = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        train(Killer(server, 2))
    assert time.monotonic() - start_s < 15
    assert str(caught.value).startswith(f"MLflow cannot be reached (Connection refused); run {record.run_id} is ")
    assert "\n" not in str(caught.value)
    weights = (folder.path / "last.safetensors").read_bytes()
    assert find_interrupted(tmp_path, record).path == folder.path

    server.run()
    result = train()
    assert counter.epochs == [1, 2, 3, 4, 5, 6]
    assert result.last_weights.read_bytes() == weights
    assert client.get_run(record.run_id).info.status == "FINISHED"
    check_each_step_is_there_once(client, record.run_id, 6)
    assert len(client.list_artifacts(record.run_id, "checkpoints")) == 2
