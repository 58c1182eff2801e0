"""One training run as it is recorded: parameters, tags, a metric for each epoch, figures, checkpoints.

`RunTracker` names and draws; a `RunLog` keeps it: MLflow (`mlflow_log.py`) or a journal (`journal.py`).
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from matplotlib.figure import Figure
from torch import Tensor, nn

from model_code.evaluation.figures import draw_confusion, draw_curves
from model_code.evaluation.metrics import Report
from model_code.tracking.provenance import read_git_sha, read_versions
from model_code.training.results import Callback, DeviceChange, Epoch, FinishedEpoch, TrainingResult
from model_code.training.run_config import RunConfig
from model_code.training.run_folder import RunFolder, RunRecord

EVERY_EPOCH = "train/loss"  # the metric that every epoch of every kind has
METRICS_WITHOUT_CURVE = {"pictures_per_s", "seconds", "macro_f1"}
TENSORBOARD_FOLDER = "tensorboard"


class Events(Callback):
    """Events for TensorBoard; this base writes none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left."""

    def write_graph(self, model: nn.Module, images_BHWC: Tensor) -> None:
        """Write the model's graph, traced with some uint8 images."""


class RunLog(Protocol):
    """Place that one run is recorded in, while it is open.

    Attributes:
        epochs: Epochs that it has already.
        figures: Final figures that it has already, by name.
    """

    epochs: set[int]
    figures: dict[str, float]

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Take metrics of one step; nobody waits for it."""

    def check(self) -> None:
        """Tell what taking metrics met; TrackingError if they are refused."""

    def set_tag(self, key: str, value: str) -> None:
        """Replace a tag."""

    def log_text(self, text: str, path: str) -> None:
        """Keep a text as an artifact; `path` is its place among the run's artifacts."""

    def log_figure(self, figure: Figure, path: str) -> None:
        """Keep a figure as an artifact."""

    def log_file(self, file: Path, path: str) -> None:
        """Keep a file of the run's folder as an artifact."""

    def open_events(self, run_dir: Path) -> Events:
        """Return where the events for TensorBoard go."""


class Tracking(Protocol):
    """Store that runs are recorded in.

    Attributes:
        is_offline: True if its runs are recorded in their own folders.
    """

    is_offline: bool

    def create_run(self, config: RunConfig, attempt: str) -> str:
        """Make a run and return its id: the same again if an earlier attempt of this name left no folder."""

    def has_run(self, run_id: str) -> bool:
        """Whether the store holds a run."""

    def track(self, folder: RunFolder, tags: Mapping[str, str]) -> AbstractContextManager["RunTracker"]:
        """Record a run while the block runs; it ends as FINISHED, FAILED or KILLED."""


class RunTracker(Callback):
    """Records epochs as they end, and figures and files when the run is complete.

    Args:
        record: Identity of the run.
        log: Takes what is recorded.

    Attributes:
        followers: Further callbacks of a run of epochs, the last to be told.
    """

    def __init__(self, record: RunRecord, log: RunLog) -> None:
        self._title = f"{record.config.recipe} ({record.config.profile}, seed {record.config.seed})"
        self._log = log
        self.followers: Sequence[Callback] = ()

    def on_device_change(self, change: DeviceChange) -> None:
        """Record that the device's tag is not that of all epochs."""
        self._log.set_tag("resumed_on", change.describe())

    def on_resume(self, history: tuple[FinishedEpoch, ...]) -> None:
        """Record the epochs that were finished but not recorded before the interruption."""
        for metrics in history:
            self.on_epoch_end(metrics)

    def on_epoch_end(self, metrics: FinishedEpoch) -> None:
        """Record an epoch, unless it is there: one that ended after the last checkpoint is trained twice.

        Raises:
            TrackingError: An epoch was refused before; waiting does not help.
        """
        self._log.check()
        if metrics.epoch not in self._log.epochs:
            self._log.epochs.add(metrics.epoch)
            self._log.log_metrics(metrics.list_metrics(), metrics.epoch)

    def log_training(self, result: TrainingResult[Epoch], weights_sha256: str) -> None:
        """Record curves and the best epoch's figures; the best score chooses runs for release."""
        score = result.best.score
        assert score is not None, "the best epoch has a score"
        self.log_metrics({"validation/best_accuracy": score, "validation/best_epoch": result.best_epoch})
        self._log.set_tag("weights_sha256", weights_sha256)
        curves = draw_curves(self._title, _list_curves(result.history))
        self._log.log_figure(curves, "figures/curves.png")

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Record final figures by their names, `<split>/<metric>`, except those that are there already.

        Raises:
            TrackingError: Metrics were refused before; waiting does not help.
        """
        self._log.check()
        new = {key: value for key, value in metrics.items() if self._log.figures.get(key) != value}
        self._log.figures |= new
        if new:
            self._log.log_metrics(new, step=0)

    def log_config(self, folder: RunFolder) -> None:
        """Record the whole config as a file."""
        self._log.log_text(folder.record.config.model_dump_json(indent=2), "config.json")

    def log_pseudo_labels(self, summary: Mapping[str, object]) -> None:
        """Record which pseudo-labels were given as a file."""
        self._log.log_text(json.dumps(summary, indent=2), "reports/pseudo_labels.json")

    def log_report(self, split: str, report: Report, classes: tuple[str, ...], grid: Figure) -> None:
        """Record the metrics of a split, its per-class table, confusion matrix and grid of images."""
        # JSON has no NaN: a class without images has no accuracy.
        accuracies = [None if math.isnan(accuracy) else accuracy for accuracy in report.per_class_accuracy]
        per_class = dict(zip(classes, accuracies, strict=True))
        metrics = {
            "loss": report.loss,
            "accuracy": report.accuracy_fraction,
            "top5_accuracy": report.top5_accuracy,
            "macro_f1": report.macro_f1,
            "pictures": report.count,
        }
        # Each epoch has recorded these on validation; another value would be one more point of their curves.
        per_epoch = {"loss", "accuracy", "macro_f1"} if split == "validation" and self._log.epochs else set[str]()
        self.log_metrics({f"{split}/{name}": value for name, value in metrics.items() if name not in per_epoch})
        table = {
            "pictures": report.count,
            "accuracy": report.accuracy_fraction,
            "top5_accuracy": report.top5_accuracy,
            "macro_f1": report.macro_f1,
            "loss": report.loss,
            "per_class_accuracy": per_class,
            "confusion": report.confusion_KK.tolist(),
        }
        title = f"{self._title}: {split}, {report.accuracy_fraction:.1%} of {report.count} right"
        confusion = draw_confusion(title, report.confusion_KK, classes)
        self._log.log_text(json.dumps(table, indent=2), f"reports/{split}.json")
        self._log.log_figure(confusion, f"figures/{split}_confusion.png")
        self._log.log_figure(grid, f"figures/{split}_pictures.png")

    def log_checkpoints(self, folder: RunFolder, result: TrainingResult[Epoch]) -> None:
        """Record checkpoints and TensorBoard events."""
        self._log.log_file(result.best_weights, "checkpoints/best.safetensors")
        self._log.log_file(result.last_weights, "checkpoints/last.safetensors")
        for file in sorted((folder.path / TENSORBOARD_FOLDER).glob("*")):
            self._log.log_file(file, f"{TENSORBOARD_FOLDER}/{file.name}")

    def open_events(self, run_dir: Path) -> Events:
        """Return where the run's events for TensorBoard go."""
        return self._log.open_events(run_dir)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Replace tags of the run, such as those of settings that the device's memory has changed."""
        for key, value in tags.items():
            self._log.set_tag(key, value)


def _list_curves(history: Sequence[FinishedEpoch]) -> dict[str, dict[str, dict[int, float]]]:
    """Return the epochs' metrics as panels: one for each metric, with one curve for each split."""
    panels: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for metrics in history:
        for key, value in metrics.list_metrics().items():
            split, _, name = key.partition("/")
            if name not in METRICS_WITHOUT_CURVE:
                panels[name.replace("_", " ")][split][metrics.epoch] = value
    return panels


def list_params(record: RunRecord) -> dict[str, str]:
    """Return every setting of a run as text."""
    return {key: _as_text(value) for key, value in record.config.flatten().items()}


def list_tags(record: RunRecord, tags: Mapping[str, str]) -> dict[str, str]:
    """Return what a run is found by, with its provenance, and further tags."""
    config = record.config
    return {
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


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
