"""Metrics on their way to MLflow: a thread sends them, and keeps them while MLflow cannot be reached."""

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Metric

from model_code.tracking.outage import MLFLOW_ERRORS, Patience, as_tracking_error, describe, insist, is_lasting, say

METRICS_PER_REQUEST = 1000  # MLflow takes no more
STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class _Batch:
    """Metrics of one step; they are sent with the time at which they were put, however often they are sent."""

    values: dict[str, float]
    step: int
    time_ms: int

    def as_metrics(self) -> list[Metric]:
        return [Metric(key, value, self.time_ms, self.step) for key, value in self.values.items()]


class MetricQueue:
    """Sends a run's metrics in the order in which they are put; nobody who puts one waits.

    A request whose answer was lost is sent again unchanged, and MLflow counts a metric with the same step, time and
    value once. The queue is in memory: whoever fills it can fill it again after a crash.

    Args:
        client: Client of the store.
        run_id: MLflow run.
        label: At the start of each line on the console.
        patience: Longest wait for MLflow.
    """

    def __init__(self, client: MlflowClient, run_id: str, label: str, patience: Patience) -> None:
        self._client, self._run_id, self._label, self._patience = client, run_id, label, patience
        self._unsent: deque[_Batch] = deque()
        self._held: list[_Batch] = []
        self._has_first = False
        self._error: Exception | None = None
        self._is_away = self._is_told = self._is_closed = self._is_taken_over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="metrics to MLflow", daemon=True)
        self._thread.start()

    @property
    def is_away(self) -> bool:
        """Whether MLflow could not be reached at the last try."""
        return self._is_away

    def put(self, values: Mapping[str, float], step: int, time_ms: int | None = None, *, is_first: bool = True) -> None:
        """Take metrics of now, or of a time since 1970, to be sent; returns at once.

        MLflow's pages list metrics in the order in which they came: those that may not be the first of the run
        (`is_first=False`) wait for others, at most until `close`.
        """
        batch = _Batch(dict(values), step, int(time.time() * 1000) if time_ms is None else time_ms)
        with self._changed:
            self._has_first = self._has_first or is_first
            if not self._has_first:
                self._held.append(batch)
                return
            self._unsent.append(batch)
            self._send_held()
            self._changed.notify()

    def _send_held(self) -> None:
        self._unsent.extend(self._held)
        self._held.clear()

    def check(self) -> None:
        """Tell what the thread met.

        Raises:
            TrackingError: MLflow refused metrics; waiting does not help.
        """
        if self._error is not None:
            raise as_tracking_error(self._run_id, self._error) from self._error

    def flush(self) -> None:
        """Send what is left and end the queue.

        Raises:
            TrackingError: MLflow cannot be reached within the patience's limit, or refuses.
        """
        insist(self.send_rest, self._run_id, self._label, self._patience)

    def send_rest(self) -> None:
        """Try once to send what is left, from the calling thread, and end the one in the background."""
        self.close()
        self._thread.join(STOP_TIMEOUT_S)
        with self._changed:
            self._is_taken_over = True  # its request may still be on its way
        while self._send_some():
            pass

    def close(self) -> None:
        """Let the background thread end as soon as everything is sent or a request fails."""
        with self._changed:
            self._is_closed = True
            self._send_held()
            self._changed.notify()

    def _work(self) -> None:
        pauses = self._patience.list_pauses()
        while self._wait_for_work():
            try:
                self._send_some()
            except Exception as error:  # noqa: BLE001 - what ends the thread is told by `check`
                if is_lasting(error) or not isinstance(error, MLFLOW_ERRORS):
                    self._error = error
                    return
                self._note_failure(error)
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed, next(pauses))
                    if self._is_closed:
                        return
            else:
                pauses = self._patience.list_pauses()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._unsent or self._is_closed)
            return bool(self._unsent) and not self._is_taken_over

    def _send_some(self) -> bool:
        """Send the oldest batches in one request; return whether there were any."""
        batches = self._choose()
        if not batches:
            return False
        metrics = [metric for batch in batches for metric in batch.as_metrics()]
        self._client.log_batch(self._run_id, metrics=metrics)
        with self._changed:
            if not self._is_taken_over or threading.current_thread() is not self._thread:
                for _ in batches:
                    self._unsent.popleft()
            self._is_away = False
            is_done = self._is_told and not self._unsent
            self._is_told = self._is_told and not is_done
        if is_done:
            say(self._label, "MLflow answers again; the metrics that were kept are sent")
        return True

    def _choose(self) -> list[_Batch]:
        """Return as many of the oldest batches as one request takes."""
        chosen: list[_Batch] = []
        count = 0
        with self._changed:
            for batch in self._unsent:
                count += len(batch.values)
                if chosen and count > METRICS_PER_REQUEST:
                    break
                chosen.append(batch)
        return chosen

    def _note_failure(self, error: Exception) -> None:
        self._is_away = True
        if not self._is_told and not self._is_closed:
            self._is_told = True
            say(
                self._label,
                f"MLflow cannot be reached ({describe(error)}); metrics are kept and sent when it answers",
            )
