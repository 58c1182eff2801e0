"""One training run -> one MLflow run: parameters, tags, a metric for each epoch, figures, checkpoints, TensorBoard."""

import json
import math
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Param, Run, RunTag

from model_code.evaluation.figures import draw_confusion, draw_curves
from model_code.evaluation.metrics import Report
from model_code.tracking.metric_queue import MetricQueue
from model_code.tracking.outage import MLFLOW_ERRORS, Patience, insist, naming_errors
from model_code.tracking.provenance import read_git_sha, read_versions
from model_code.tracking.system_metrics import sample_system
from model_code.tracking.tensorboard import TENSORBOARD_FOLDER
from model_code.training.results import Callback, Epoch, FinishedEpoch, TrainingResult
from model_code.training.run_config import RunConfig
from model_code.training.run_folder import RunFolder, RunRecord

PATIENCE = Patience()
GIVE_UP_TIMEOUT_S = 3.0
EVERY_EPOCH = "train/loss"  # the metric that every epoch of every kind has
METRICS_WITHOUT_CURVE = {"pictures_per_s", "seconds", "macro_f1"}


def create_run(client: MlflowClient, experiment: str, config: RunConfig, attempt: str, checkpoints_dir: Path) -> str:
    """Make an MLflow run for a config and return its id.

    A run that an earlier attempt of this name left without a folder in `checkpoints_dir` is taken up.
    """
    found = client.get_experiment_by_name(experiment)
    assert found is not None, "open_store makes the experiment"
    for run in client.search_runs([found.experiment_id], f"tags.attempt = '{attempt}'"):
        if not (checkpoints_dir / run.info.run_id).exists():
            return str(run.info.run_id)
    name = f"{config.recipe}-{config.profile}-seed{config.seed}"
    run = client.create_run(found.experiment_id, run_name=name, tags={"attempt": attempt})
    return str(run.info.run_id)


@contextmanager
def track_run(record: RunRecord, tags: Mapping[str, str], patience: Patience = PATIENCE) -> Iterator["RunTracker"]:
    """Log a run under its id while the block runs; a run that was interrupted is taken up again.

    The run ends as FINISHED, FAILED (an error) or KILLED (interrupted from the keyboard). While MLflow cannot be
    reached the block goes on; what only MLflow can take, such as figures and the run's end, waits for it.

    Args:
        record: Identity of the run.
        tags: Further tags to find it by, such as device, budget and published figure.
        patience: Longest wait for MLflow.

    Raises:
        TrackingError: MLflow cannot be reached at the start, or not within the limit at the end, or refuses.
    """
    client, run_id = MlflowClient(), record.run_id
    with naming_errors(run_id):
        client.log_batch(run_id, params=_list_params(record), tags=_list_tags(record, tags))
        client.update_run(run_id, status="RUNNING")
        run = client.get_run(run_id)
        epochs = {metric.step for metric in client.get_metric_history(run_id, EVERY_EPOCH)}
        figures = _read_figures(client, run)
    queue = MetricQueue(client, run_id, record.config.recipe, patience)
    tracker = RunTracker(record, client, queue, epochs, figures, patience)
    try:
        with sample_system(run, queue):
            yield tracker
        tracker.finish()
    except BaseException as error:
        tracker.give_up("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise


def _read_figures(client: MlflowClient, run: Run) -> dict[str, float]:
    """Return the final figures that MLflow has of a run; they are at step 0, curves of the same name after it."""
    keys = [key for key in run.data.metrics if not key.startswith("system/")]
    points = (point for key in keys for point in client.get_metric_history(run.info.run_id, key))
    return {point.key: point.value for point in points if point.step == 0}


class RunTracker(Callback):
    """Sends epochs as they end, and figures and files when the run is complete.

    Metrics never wait for MLflow; figures and files do. `track_run` makes one.

    Args:
        record: Identity of the run.
        client: Client of the store.
        queue: Takes the run's metrics.
        epochs: Those that MLflow has already; they are not sent again.
        figures: The same for final figures by name.
        patience: Longest wait of figures and files for MLflow.
    """

    def __init__(
        self,
        record: RunRecord,
        client: MlflowClient,
        queue: MetricQueue,
        epochs: Iterable[int],
        figures: Mapping[str, float],
        patience: Patience,
    ) -> None:
        self._run_id, self._label = record.run_id, record.config.recipe
        self._title = f"{record.config.recipe} ({record.config.profile}, seed {record.config.seed})"
        self._client, self._queue, self._patience = client, queue, patience
        self._epochs, self._figures = set(epochs), dict(figures)

    def on_resume(self, history: tuple[FinishedEpoch, ...]) -> None:
        """Send the epochs that were finished but did not reach MLflow before the interruption."""
        for metrics in history:
            self.on_epoch_end(metrics)

    def on_epoch_end(self, metrics: FinishedEpoch) -> None:
        """Send one epoch, unless MLflow has it: one that ended after the last checkpoint is trained twice.

        Raises:
            TrackingError: MLflow refused an epoch before; waiting does not help.
        """
        self._queue.check()
        if metrics.epoch not in self._epochs:
            self._epochs.add(metrics.epoch)
            self._queue.put(metrics.list_metrics(), metrics.epoch)

    def log_training(self, result: TrainingResult[Epoch], weights_sha256: str) -> None:
        """Send curves and the best epoch's figures; the best score chooses runs for release."""
        score = result.best.score
        assert score is not None, "the best epoch has a score"
        self.log_metrics({"validation/best_accuracy": score, "validation/best_epoch": result.best_epoch})
        self._send(self._client.set_tag, "weights_sha256", weights_sha256)
        curves = draw_curves(self._title, _list_curves(result.history))
        self._send(self._client.log_figure, curves, "figures/curves.png")

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Send final figures by their names, `<split>/<metric>`, except those that MLflow has already.

        Raises:
            TrackingError: MLflow refused metrics before; waiting does not help.
        """
        self._queue.check()
        new = {key: value for key, value in metrics.items() if self._figures.get(key) != value}
        self._figures |= new
        self._queue.put(new, step=0)

    def log_config(self, folder: RunFolder) -> None:
        """Send the whole config as a file."""
        self._send(self._client.log_text, folder.record.config.model_dump_json(indent=2), "config.json")

    def log_report(self, split: str, report: Report, classes: tuple[str, ...], grid: Figure) -> None:
        """Send the metrics of a split, its per-class table, confusion matrix and grid of images."""
        # JSON has no NaN: a class without images has no accuracy.
        accuracies = [None if math.isnan(accuracy) else accuracy for accuracy in report.per_class_accuracy]
        per_class = dict(zip(classes, accuracies, strict=True))
        self.log_metrics(
            {
                f"{split}/loss": report.loss,
                f"{split}/accuracy": report.accuracy_fraction,
                f"{split}/macro_f1": report.macro_f1,
                f"{split}/pictures": report.count,
            }
        )
        table = {
            "pictures": report.count,
            "accuracy": report.accuracy_fraction,
            "macro_f1": report.macro_f1,
            "loss": report.loss,
            "per_class_accuracy": per_class,
            "confusion": report.confusion_KK.tolist(),
        }
        title = f"{self._title}: {split}, {report.accuracy_fraction:.1%} of {report.count} right"
        confusion = draw_confusion(title, report.confusion_KK, classes)
        self._send(self._client.log_text, json.dumps(table, indent=2), f"reports/{split}.json")
        self._send(self._client.log_figure, confusion, f"figures/{split}_confusion.png")
        self._send(self._client.log_figure, grid, f"figures/{split}_pictures.png")

    def log_checkpoints(self, folder: RunFolder, result: TrainingResult[Epoch]) -> None:
        """Send checkpoints and TensorBoard events."""
        with tempfile.TemporaryDirectory() as scratch:
            best = Path(scratch) / "best.safetensors"
            shutil.copyfile(result.best_weights, best)
            self._send(self._client.log_artifact, str(best), "checkpoints")
        self._send(self._client.log_artifact, str(result.last_weights), "checkpoints")
        events = folder.path / TENSORBOARD_FOLDER
        if events.is_dir():
            self._send(self._client.log_artifacts, str(events), TENSORBOARD_FOLDER)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Replace tags of the run, such as those of settings that the device's memory has changed."""
        for key, value in tags.items():
            self._send(self._client.set_tag, key, value)

    def finish(self) -> None:
        """Send what is left, then that the run is finished.

        Raises:
            TrackingError: MLflow cannot be reached within the limit, or refuses.
        """
        self._queue.flush()
        self._send(self._client.set_terminated, "FINISHED")

    def give_up(self, status: str) -> None:
        """Try for some seconds to send what is left and how the run ended; where that fails, a repeated run does it."""

        def send() -> None:
            with suppress(*MLFLOW_ERRORS):
                self._queue.send_rest()
                self._client.set_terminated(self._run_id, status)

        self._queue.close()
        if not self._queue.is_away:
            thread = threading.Thread(target=send, name="end of the run to MLflow", daemon=True)
            thread.start()
            thread.join(GIVE_UP_TIMEOUT_S)

    def _send(self, call: Callable[..., object], *arguments: object) -> None:
        """Call a method of the client on this run until MLflow answers."""
        insist(partial(call, self._run_id, *arguments), self._run_id, self._label, self._patience)


def _list_curves(history: Sequence[FinishedEpoch]) -> dict[str, dict[str, dict[int, float]]]:
    """Return the epochs' metrics as panels: one for each metric, with one curve for each split."""
    panels: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for metrics in history:
        for key, value in metrics.list_metrics().items():
            split, _, name = key.partition("/")
            if name not in METRICS_WITHOUT_CURVE:
                panels[name.replace("_", " ")][split][metrics.epoch] = value
    return panels


def _list_params(record: RunRecord) -> list[Param]:
    return [Param(key, _as_text(value)) for key, value in record.config.flatten().items()]


def _list_tags(record: RunRecord, tags: Mapping[str, str]) -> list[RunTag]:
    config = record.config
    every = {
        "recipe": config.recipe,
        "kind": config.kind,
        "profile": config.profile,
        "dataset": config.dataset,
        "seed": str(config.seed),
        "config_sha256": config.sha256(),
        "data_checksum": record.data_checksum,
        "git_sha": read_git_sha(),
        **{f"version.{name}": version for name, version in read_versions().items()},
        **tags,
    }
    return [RunTag(key, value) for key, value in every.items()]


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
