"""One training run -> one MLflow run: parameters, tags, a metric for each epoch, figures, checkpoints, TensorBoard."""

import json
import math
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric

from model_code.evaluation.figures import draw_confusion, draw_curves
from model_code.evaluation.metrics import Report
from model_code.tracking.provenance import read_git_sha, read_versions
from model_code.tracking.tensorboard import TENSORBOARD_FOLDER
from model_code.training.results import Callback, Epoch, FinishedEpoch, TrainingResult
from model_code.training.run_config import RunConfig
from model_code.training.run_folder import RunFolder, RunRecord

SYSTEM_METRICS_INTERVAL_S = 5
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
def track_run(record: RunRecord, tags: Mapping[str, str]) -> Iterator["RunTracker"]:
    """Log a run under its id while the block runs; a run that was interrupted is taken up again.

    The run ends as FINISHED, FAILED (an error) or KILLED (interrupted from the keyboard).

    Args:
        record: What the run is.
        tags: What else it is to be found by, such as device, budget and published figure.
    """
    mlflow.set_system_metrics_sampling_interval(SYSTEM_METRICS_INTERVAL_S)
    config = record.config
    mlflow.start_run(run_id=record.run_id, log_system_metrics=True)
    status = "FAILED"
    try:
        mlflow.log_params({key: _as_text(value) for key, value in config.flatten().items()})
        mlflow.set_tags(
            {
                "recipe": config.recipe,
                "kind": record.config.kind,
                "profile": config.profile,
                "dataset": config.dataset,
                "seed": str(config.seed),
                "config_sha256": config.sha256(),
                "data_checksum": record.data_checksum,
                "git_sha": read_git_sha(),
                **{f"version.{name}": version for name, version in read_versions().items()},
                **tags,
            }
        )
        yield RunTracker(record)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        mlflow.end_run(status)


class RunTracker(Callback):
    """Sends epochs as they end, and figures and files when the run is complete."""

    def __init__(self, record: RunRecord) -> None:
        self._run_id = record.run_id
        self._title = f"{record.config.recipe} ({record.config.profile}, seed {record.config.seed})"
        self._client = MlflowClient()

    def on_resume(self, history: tuple[FinishedEpoch, ...]) -> None:
        """Send the epochs that were finished but not logged before the interruption."""
        logged = {metric.step for metric in self._client.get_metric_history(self._run_id, "train/loss")}
        for metrics in history:
            if metrics.epoch not in logged:
                self.on_epoch_end(metrics)

    def on_epoch_end(self, metrics: FinishedEpoch) -> None:
        """Send one epoch, all values in one request."""
        now_ms = int(time.time() * 1000)
        entries = [Metric(key, value, now_ms, metrics.epoch) for key, value in metrics.list_metrics().items()]
        self._client.log_batch(self._run_id, metrics=entries)

    def log_training(self, result: TrainingResult[Epoch], weights_sha256: str) -> None:
        """Send curves and the best epoch's figures; the best score chooses runs for release."""
        score = result.best.score
        assert score is not None, "the best epoch has a score"
        mlflow.log_metrics({"validation/best_accuracy": score, "validation/best_epoch": result.best_epoch})
        mlflow.set_tag("weights_sha256", weights_sha256)
        mlflow.log_figure(draw_curves(self._title, _list_curves(result.history)), "figures/curves.png")

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Send final figures by their names, `<split>/<metric>`."""
        mlflow.log_metrics(dict(metrics))

    def log_config(self, folder: RunFolder) -> None:
        """Send the whole config as a file."""
        mlflow.log_text(folder.record.config.model_dump_json(indent=2), "config.json")

    def log_report(self, split: str, report: Report, classes: tuple[str, ...], grid: Figure) -> None:
        """Send the metrics of a split, its per-class table, confusion matrix and grid of pictures."""
        # JSON has no NaN: a class without pictures has no accuracy.
        accuracies = [None if math.isnan(accuracy) else accuracy for accuracy in report.per_class_accuracy]
        per_class = dict(zip(classes, accuracies, strict=True))
        mlflow.log_metrics(
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
        mlflow.log_text(json.dumps(table, indent=2), f"reports/{split}.json")
        title = f"{self._title}: {split}, {report.accuracy_fraction:.1%} of {report.count} right"
        mlflow.log_figure(draw_confusion(title, report.confusion_KK, classes), f"figures/{split}_confusion.png")
        mlflow.log_figure(grid, f"figures/{split}_pictures.png")

    def log_checkpoints(self, folder: RunFolder, result: TrainingResult[Epoch]) -> None:
        """Send checkpoints and TensorBoard events."""
        with tempfile.TemporaryDirectory() as scratch:
            best = Path(scratch) / "best.safetensors"
            shutil.copyfile(result.best_weights, best)
            mlflow.log_artifact(str(best), "checkpoints")
        mlflow.log_artifact(str(result.last_weights), "checkpoints")
        events = folder.path / TENSORBOARD_FOLDER
        if events.is_dir():
            mlflow.log_artifacts(str(events), TENSORBOARD_FOLDER)


def _list_curves(history: Sequence[FinishedEpoch]) -> dict[str, dict[str, dict[int, float]]]:
    """Return the epochs' metrics as panels: one for each metric, with one curve for each split."""
    panels: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for metrics in history:
        for key, value in metrics.list_metrics().items():
            split, _, name = key.partition("/")
            if name not in METRICS_WITHOUT_CURVE:
                panels[name.replace("_", " ")][split][metrics.epoch] = value
    return panels


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
