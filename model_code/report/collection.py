"""MLflow -> frozen data: finished runs by recipe and budget, their histories and their per-class reports."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from model_code.tracking.store import EXPERIMENT

FULL, SMOKE = "full", "smoke"
_SMOKE_ON = f"{SMOKE} on "
PAGE_RUNS = 1000
# Histories to read of a run, by its kind.
HISTORIES = {
    "supervised": ("train/loss", "train/accuracy", "train/seconds", "validation/accuracy", "validation/loss"),
    "simsiam": ("train/loss", "train/feature_std", "validation/knn_accuracy"),
}
# Settings that follow the images of `--data`.
ADAPTED = {
    *("dataset", "mean", "std", "image_size", "views.image_size", "evaluation_enlargement"),
    *("batch_size", "learning_rate"),
}
# A figure that is read from a history: how far a run is after this share of its epochs.
EARLY_METRIC, EARLY_HISTORY, EARLY_SHARE = "validation/early_accuracy", "validation/accuracy", 0.1

History = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class ClassReport:
    """What a run labelled, class by class, from its artifact `reports/<split>.json`.

    Attributes:
        split: `test`, or `validation` where there were no test images.
        accuracy: In [0, 1].
        per_class: Accuracy of each class in [0, 1], in class order; None for a class without images.
        confusion_KK: Counts of images, [true class, predicted class].
    """

    split: str
    accuracy: float
    per_class: Mapping[str, float | None]
    confusion_KK: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        run_id: MLflow run.
        experiment_id: MLflow experiment.
        recipe: Recipe name.
        kind: `supervised`, `simsiam`, `untrained` or `random_features`.
        budget: `full`, `smoke`, `smoke on` other images than the recipe's, or what a custom run changed, e.g.
            `custom: epochs=5`.
        dataset: Packed data set.
        seed: Seed of everything random.
        epochs: Epochs of the whole run; None where there are none.
        device: Name of the device, with the precision of its computation where there is one, for people.
        data_checksum: Checksum of the packed images.
        git_sha: Commit of the code.
        seconds: Time of the run without interruptions; of runs of earlier versions from start to end in MLflow, None if
            MLflow does not know.
        ended_ms: Since 1970.
        metrics: Last value of each finite metric.
        params: Settings, as text.
        histories: Metric -> ((step, value), ...) in ascending order of steps.
        report: None where there is none.
        pretrained_run_id: MLflow run that a fine-tuned one started from; empty where none is recorded.
        pretrained_sha256: SHA-256 of the weights that it started from; empty where none is recorded.
    """

    run_id: str
    experiment_id: str
    recipe: str
    kind: str
    budget: str
    dataset: str
    seed: int
    epochs: int | None
    device: str
    data_checksum: str
    git_sha: str
    seconds: float | None
    ended_ms: int
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    histories: Mapping[str, History] = field(default_factory=lambda: MappingProxyType({}))
    report: ClassReport | None = None
    pretrained_run_id: str = ""
    pretrained_sha256: str = ""

    def get_at(self, metric: str, epoch: int) -> float | None:
        """Return a history's value at one epoch, or None."""
        return dict(self.histories.get(metric, ())).get(epoch)


@dataclass(frozen=True)
class Group:
    """The runs of one recipe at one budget, one for each seed, by ascending seed."""

    recipe: str
    budget: str
    runs: tuple[Run, ...]

    @property
    def is_full(self) -> bool:
        """Whether the runs are the documented ones."""
        return self.budget == FULL

    @property
    def is_elsewhere(self) -> bool:
        """Whether the images are other ones than the recipe's."""
        return "dataset" in self._changed or self.budget.startswith(_SMOKE_ON)

    @property
    def name(self) -> str:
        """The recipe, with the images where they are other ones than its own."""
        return f"{self.recipe} on {self.latest.dataset}" if self.is_elsewhere else self.recipe

    @property
    def is_full_elsewhere(self) -> bool:
        """Whether the runs are the documented ones but on images other than the recipe's."""
        return "dataset" in self._changed <= ADAPTED

    @property
    def is_smoke(self) -> bool:
        """Whether the runs are too short to be a result."""
        return is_smoke(self.budget)

    @property
    def has_one_data_set(self) -> bool:
        """Whether every run saw the same images."""
        return len({run.data_checksum for run in self.runs}) <= 1

    @property
    def has_one_start(self) -> bool:
        """Whether every run started from the weights of the same run, or none from any."""
        return len({(run.pretrained_run_id, run.pretrained_sha256) for run in self.runs}) <= 1

    @property
    def _changed(self) -> set[str]:
        return set(re.findall(r"([\w.]+)=", self.budget))

    @property
    def latest(self) -> Run:
        """The run that ended last."""
        return max(self.runs, key=lambda run: run.ended_ms)


@dataclass(frozen=True)
class Collection:
    """Every group of finished runs.

    Attributes:
        groups: Recipe -> its groups, the best budget first.
        runs: Every finished run in MLflow, also those that a later run of the same seed and budget replaces.
    """

    groups: Mapping[str, tuple[Group, ...]]
    runs: tuple[Run, ...]

    @property
    def finished_count(self) -> int:
        """Number of finished runs in MLflow."""
        return len(self.runs)

    def list_documented(self, recipe: str) -> list[Group]:
        """Return a recipe's groups on its own images, which the articles ask about, the best budget first."""
        return [group for group in self.groups.get(recipe, ()) if not group.is_elsewhere]

    def get_best(self, recipe: str) -> Group | None:
        """Return the first of `list_documented`: full, else the custom one with most seeds, else smoke."""
        return next(iter(self.list_documented(recipe)), None)

    def get_group(self, recipe: str, budget: str) -> Group | None:
        """Return the runs of a recipe at one budget, or None."""
        return next((group for group in self.groups.get(recipe, ()) if group.budget == budget), None)

    def list_best(self, kind: str) -> list[Group]:
        """Return the groups that stand for each recipe of a kind, by name: the best on each data set."""
        best: dict[tuple[str, str], Group] = {}
        for recipe, groups in sorted(self.groups.items()):
            for group in groups:
                best.setdefault((recipe, group.latest.dataset), group)
        return [group for group in best.values() if group.latest.kind == kind]


def is_smoke(budget: str) -> bool:
    """Return whether a budget is that of smoke runs, on the recipe's images or on others: `smoke on shapes`."""
    return budget == SMOKE or budget.startswith(_SMOKE_ON)


def rank_budget(budget: str, seed_count: int, epochs: int = 0) -> tuple[int, int, int, str]:
    """Return a sort key: full, custom with many seeds and then epochs first, smoke, and last smoke on other images."""
    order = 0 if budget == FULL else 1 if not is_smoke(budget) else 2 if budget == SMOKE else 3
    return order, -seed_count, -epochs, budget


def _rank(entry: tuple[str, list[Run]]) -> tuple[int, int, int, str]:
    budget, runs = entry
    return rank_budget(budget, len(runs), max(run.epochs or 0 for run in runs))


def collect_runs(client: MlflowClient) -> Collection:
    """Read every finished run; reports and whole histories only of the best group of a recipe on each data set."""
    finished = [run for found in _search(client) if (run := _read(found)) is not None]
    latest: dict[tuple[str, str, int], Run] = {}
    for run in sorted(finished, key=lambda run: (run.ended_ms, run.run_id)):
        latest[run.recipe, run.budget, run.seed] = run
    by_budget: dict[str, dict[str, list[Run]]] = {}
    for (recipe, budget, _), run in sorted(latest.items()):
        by_budget.setdefault(recipe, {}).setdefault(budget, []).append(run)
    groups = {}
    for recipe, budgets in by_budget.items():
        ranked, shown = [], set[str]()
        for budget, runs in sorted(budgets.items(), key=_rank):
            dataset = Group(recipe, budget, tuple(runs)).latest.dataset
            completed = tuple(_complete(client, run, is_shown=dataset not in shown) for run in runs)
            ranked.append(Group(recipe, budget, completed))
            shown.add(dataset)
        groups[recipe] = tuple(ranked)
    return Collection(MappingProxyType(groups), tuple(finished))


def _search(client: MlflowClient) -> list[MlflowRun]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    found: list[MlflowRun] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment.experiment_id],
            "attributes.status = 'FINISHED'",
            max_results=PAGE_RUNS,
            page_token=token,
        )
        found.extend(page)
        token = page.token
        if not token:
            return found


def _read(found: MlflowRun) -> Run | None:
    """Return the run, or None if it is not one of a recipe."""
    tags, info = found.data.tags, found.info
    if "recipe" not in tags or not tags.get("seed", "").isdecimal():
        return None
    epochs = found.data.params.get("epochs", "")
    wall_s = (info.end_time - info.start_time) / 1000 if info.end_time and info.start_time else None
    return Run(
        run_id=info.run_id,
        experiment_id=info.experiment_id,
        recipe=tags["recipe"],
        kind=tags.get("kind", "supervised"),
        budget=_read_budget(found),
        dataset=tags.get("dataset", ""),
        seed=int(tags["seed"]),
        epochs=int(epochs) if epochs.isdecimal() else None,
        device=_describe_device(tags),
        data_checksum=tags.get("data_checksum", ""),
        git_sha=tags.get("git_sha", "unknown"),
        seconds=found.data.metrics.get("total_seconds", wall_s),
        ended_ms=info.end_time or 0,
        metrics=MappingProxyType({key: value for key, value in found.data.metrics.items() if math.isfinite(value)}),
        params=MappingProxyType(dict(found.data.params)),
        pretrained_run_id=tags.get("pretrained_run_id", ""),
        pretrained_sha256=tags.get("pretrained_sha256", ""),
    )


def _describe_device(tags: Mapping[str, str]) -> str:
    """Return the device, the precision that the engine's description begins with, and a change of device."""
    device, engine = tags.get("device", "unknown"), tags.get("engine")
    described = f"{device}, {engine.partition(',')[0]}" if engine else device
    return f"{described} (resumed, {change})" if (change := tags.get("resumed_on")) else described


def _read_budget(found: MlflowRun) -> str:
    """Return the budget; a custom run that does not say what it changed is a budget of its own."""
    tags = found.data.tags
    if "budget" in tags:
        return str(tags["budget"])
    profile = tags.get("profile")
    return str(profile) if profile in (FULL, SMOKE) else f"custom: run {found.info.run_id[:8]}, settings not recorded"


def _complete(client: MlflowClient, run: Run, *, is_shown: bool) -> Run:
    """Read histories and report of a run; of one that is only compared, its early accuracy."""
    wanted = [key for key in HISTORIES.get(run.kind, ()) if is_shown or key == EARLY_HISTORY]
    histories = {key: _read_history(client, run.run_id, key) for key in wanted}
    early = dict(histories.get(EARLY_HISTORY, ())).get(math.ceil((run.epochs or 0) * EARLY_SHARE))
    if early is not None:
        run = replace(run, metrics=MappingProxyType({**run.metrics, EARLY_METRIC: early}))
    if not is_shown:
        return run
    report = _read_report(run.run_id) if run.kind == "supervised" else None
    return replace(run, histories=MappingProxyType(histories), report=report)


def _read_history(client: MlflowClient, run_id: str, key: str) -> History:
    """Return a metric's values by step; where a resumed run logged a step twice, the later value."""
    points = sorted(client.get_metric_history(run_id, key), key=lambda point: point.timestamp)
    by_step = {point.step: point.value for point in points if math.isfinite(point.value)}
    return tuple(sorted(by_step.items()))


def _read_report(run_id: str) -> ClassReport | None:
    """Return the run's report on the test images, else on the validation images, or None if it has none."""
    for split in ("test", "validation"):
        try:
            table = json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/reports/{split}.json"))
            return ClassReport(
                split=split,
                accuracy=float(table["accuracy"]),
                per_class=MappingProxyType(dict(table["per_class_accuracy"])),
                confusion_KK=np.asarray(table["confusion"], dtype=np.int64),
            )
        except (MlflowException, OSError, KeyError, ValueError, TypeError):
            continue
    return None


def average(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation; the latter is None for one value."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), spread
