import threading
import time

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from model_code.errors import TrackingError
from model_code.tracking import metric_queue
from model_code.tracking.metric_queue import MetricQueue
from model_code.tracking.outage import Patience
from model_code.tracking.store import EXPERIMENT
from model_code.tracking.system_metrics import sample_system
from tests.unit.tracking.small_store import store_away

HURRY = Patience(first_pause_s=0.05, longest_pause_s=0.1, limit_s=1)


@pytest.fixture
def run_id(store):
    _, client = store
    return client.create_run(client.get_experiment_by_name(EXPERIMENT).experiment_id).info.run_id


@pytest.fixture
def open_queue(store, run_id):
    """Make a queue of the run; its thread ends with the test."""
    queues = []

    def open_(client=store[1], patience=HURRY):
        queues.append(MetricQueue(client, run_id, "tiny", patience))
        return queues[-1]

    yield open_
    for queue in queues:
        queue.close()


def get_points(client, run_id, key="train/loss"):
    return [(point.step, point.value) for point in client.get_metric_history(run_id, key)]


def wait_until(is_so, timeout_s=20):
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.01)


def test_metrics_arrive_without_being_waited_for(store, run_id, open_queue):
    _, client = store
    queue = open_queue()
    queue.put({"train/loss": 0.5, "train/accuracy": 0.25}, step=1)
    wait_until(lambda: get_points(client, run_id, "train/accuracy"))
    assert get_points(client, run_id) == [(1, 0.5)]
    queue.flush()
    assert get_points(client, run_id) == [(1, 0.5)]


def test_an_outage_is_told_once_and_loses_nothing(store, run_id, open_queue, capsys):
    settings, client = store
    queue = open_queue()
    with store_away(settings):
        for step in range(1, 301):  # more than one request takes
            queue.put({f"metric {number}": step + number / 10 for number in range(4)}, step)
        wait_until(lambda: queue.is_away)
        time.sleep(0.5)
        queue.check()
        assert queue.is_away
        told = capsys.readouterr()
        assert told.out.count("MLflow cannot be reached (no such table: ") == told.out.count("\n") == 1
        assert told.err == ""
    wait_until(lambda: not queue.is_away)
    queue.flush()
    for number in range(4):
        points = get_points(client, run_id, f"metric {number}")
        assert points == [(step, step + number / 10) for step in range(1, 301)]
    assert capsys.readouterr().out == "tiny  MLflow answers again; the metrics that were kept are sent\n"


def test_metrics_keep_the_time_at_which_they_were_put(store, run_id, open_queue):
    settings, client = store
    queue = open_queue()
    with store_away(settings):
        before_ms = int(time.time() * 1000)
        queue.put({"train/loss": 1.0}, step=1)
        after_ms = int(time.time() * 1000)
        wait_until(lambda: queue.is_away)
        time.sleep(0.3)
    queue.flush()
    [point] = client.get_metric_history(run_id, "train/loss")
    assert before_ms <= point.timestamp <= after_ms


class LosingClient(MlflowClient):
    """Does what it is asked, but every second answer is lost on the way."""

    calls = 0

    def log_batch(self, *args, **kwargs):
        super().log_batch(*args, **kwargs)
        self.calls += 1
        if self.calls % 2:
            raise MlflowException("the answer was lost")


def test_an_answer_that_was_lost_doubles_nothing(store, run_id, open_queue):
    _, client = store
    losing = LosingClient()
    queue = open_queue(losing)
    for step in range(1, 6):
        queue.put({"train/loss": 1 / step, "train/nan": float("nan")}, step)
        wait_until(lambda count=2 * step: losing.calls == count)
    queue.flush()
    assert get_points(client, run_id) == [(step, 1 / step) for step in range(1, 6)]
    assert [step for step, _ in get_points(client, run_id, "train/nan")] == [1, 2, 3, 4, 5]


class HangingClient(MlflowClient):
    """Its first request reaches MLflow only when it is let through."""

    def __init__(self):
        super().__init__()
        self.gate, self.is_hanging = threading.Event(), threading.Event()

    def log_batch(self, *args, **kwargs):
        if not self.is_hanging.is_set():
            self.is_hanging.set()
            self.gate.wait(60)
        super().log_batch(*args, **kwargs)


def test_the_end_does_not_wait_for_a_request_that_hangs(store, run_id, open_queue, monkeypatch):
    _, client = store
    failures = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    monkeypatch.setattr(metric_queue, "STOP_TIMEOUT_S", 0.2)
    hanging = HangingClient()
    queue = open_queue(hanging)
    queue.put({"train/loss": 1.0}, step=1)
    assert hanging.is_hanging.wait(10)
    queue.put({"train/loss": 0.5}, step=2)
    queue.flush()
    assert get_points(client, run_id) == [(1, 1.0), (2, 0.5)]
    hanging.gate.set()
    queue._thread.join(10)
    assert not queue._thread.is_alive()
    assert failures == []
    assert get_points(client, run_id) == [(1, 1.0), (2, 0.5)]


def test_what_mlflow_refuses_is_told_to_who_asks(store, run_id, open_queue):
    _, client = store
    queue = open_queue()
    client.delete_run(run_id)
    queue.put({"train/loss": 1.0}, step=1)
    with pytest.raises(TrackingError) as caught:
        wait_until(queue.check)
    assert str(caught.value).startswith(f"MLflow does not take run {run_id} (")
    assert "'active' state" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(TrackingError, match="'active' state"):
        queue.flush()


def test_the_end_waits_no_longer_than_the_limit(store, run_id, open_queue, capsys):
    settings, client = store
    queue = open_queue()
    with store_away(settings):
        queue.put({"train/loss": 1.0}, step=1)
        start_s = time.monotonic()
        with pytest.raises(TrackingError, match=r"MLflow cannot be reached .* repeat the same command") as caught:
            queue.flush()
        assert HURRY.limit_s <= time.monotonic() - start_s < HURRY.limit_s + 3
    assert "\n" not in str(caught.value)
    assert "waiting for it, at most 1 s" in capsys.readouterr().out
    queue.flush()
    assert get_points(client, run_id) == [(1, 1.0)]


def test_the_end_goes_on_when_mlflow_is_back(store, run_id, open_queue):
    settings, client = store
    queue = open_queue(patience=Patience(0.05, 0.1, 30))
    back = threading.Event()

    def be_away():
        with store_away(settings):
            queue.put({"train/loss": 1.0}, step=1)
            wait_until(lambda: queue.is_away)
            back.set()
            time.sleep(0.5)

    thread = threading.Thread(target=be_away)
    thread.start()
    assert back.wait(10)
    queue.flush()
    thread.join()
    assert get_points(client, run_id) == [(1, 1.0)]


def test_a_long_pause_ends_when_the_queue_is_closed(store, open_queue):
    settings, _ = store
    queue = open_queue(patience=Patience(first_pause_s=60, longest_pause_s=60))
    with store_away(settings):
        queue.put({"train/loss": 1.0}, step=1)
        wait_until(lambda: queue.is_away)
        queue.close()
        queue._thread.join(2)
        assert not queue._thread.is_alive()


def test_samples_of_the_machine_are_counted_on_and_outlive_an_outage(store, run_id, open_queue):
    settings, client = store
    for _ in range(2):
        queue = open_queue()
        with sample_system(client.get_run(run_id), queue, interval_s=0.05):
            queue.put({"train/loss": 1.0}, step=1)
            time.sleep(0.3)
            with store_away(settings):
                wait_until(lambda queue=queue: queue.is_away)
                time.sleep(0.3)
        queue.flush()
    steps = [step for step, _ in get_points(client, run_id, "system/cpu_utilization_percentage")]
    assert steps == list(range(len(steps)))
    assert len(steps) > 10


def test_samples_of_the_machine_come_behind_the_first_metric_of_the_training(store, run_id, open_queue):
    """MLflow's comparison of runs begins with the first that came."""
    _, client = store
    queue = open_queue()
    with sample_system(client.get_run(run_id), queue, interval_s=0.05):
        time.sleep(0.4)
        assert client.get_run(run_id).data.metrics == {}
        queue.put({"validation/accuracy": 0.5}, step=1)
        wait_until(lambda: "system/cpu_utilization_percentage" in client.get_run(run_id).data.metrics)
    queue.flush()
    assert next(iter(client.get_run(run_id).data.metrics)) == "validation/accuracy"
    points = client.get_metric_history(run_id, "system/cpu_utilization_percentage")
    assert points[0].timestamp < client.get_metric_history(run_id, "validation/accuracy")[0].timestamp


def test_samples_of_a_run_that_ends_before_its_first_metric_are_kept(store, run_id, open_queue):
    _, client = store
    queue = open_queue()
    with sample_system(client.get_run(run_id), queue, interval_s=0.05):
        time.sleep(0.2)
    queue.flush()
    assert get_points(client, run_id, "system/cpu_utilization_percentage")
