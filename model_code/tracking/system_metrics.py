"""System metrics during a run: processor, memory, disk, network, GPU."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.entities import Run
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from model_code.tracking.metric_queue import MetricQueue

INTERVAL_S = 5.0
PREFIX = "system/"

logger = logging.getLogger(__name__)


@contextmanager
def sample_system(run: Run, queue: MetricQueue, interval_s: float = INTERVAL_S) -> Iterator[None]:
    """Queue a sample now and then while the block runs, and one when it ends.

    The probes are those of MLflow's monitor; its own way of sending ends with the first failure.

    Args:
        run: MLflow run; its samples are counted on.
        queue: Queue of that run.
        interval_s: Time between two samples.
    """
    monitor = SystemMetricsMonitor(run.info.run_id)
    steps = [metric.step for metric in run.data._metric_objs if metric.key.startswith(PREFIX)]
    is_over = threading.Event()

    def work() -> None:
        step = max(steps, default=-1) + 1
        is_last = False
        while not is_last:
            is_last = is_over.wait(interval_s)
            try:
                monitor.collect_metrics()
                sample = monitor.aggregate_metrics()
            except Exception as error:  # noqa: BLE001 - a probe that fails costs a sample, never the training
                logger.debug("no system metrics this time: %s", error)
                continue
            queue.put({f"{PREFIX}{key}": value for key, value in sample.items()}, step, is_first=False)
            for probe in monitor.monitors:
                probe.clear_metrics()
            step += 1

    thread = threading.Thread(target=work, name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
