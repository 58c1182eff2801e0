"""Looking up finished runs in MLflow."""

from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException

from model_code.data.cache import is_dataset_taken
from model_code.errors import ReleaseError, TrackingError
from model_code.tracking.store import EXPERIMENT


@dataclass(frozen=True)
class FinishedRun:
    """A complete training run as MLflow holds it.

    Attributes:
        run_id: MLflow run.
        recipe: Recipe name.
        kind: `supervised`, `simsiam`, `untrained` or `random_features`; the last two leave no weights.
        profile: `full`, `smoke` or `custom`.
        dataset: Packed data set.
        validation_accuracy: Of the best epoch, in [0, 1]; with SimSiam its kNN accuracy; None where nothing is trained.
        test_accuracy: In [0, 1]; None without test images.
    """

    run_id: str
    recipe: str
    kind: str
    profile: str
    dataset: str
    validation_accuracy: float | None
    test_accuracy: float | None


def find_finished_runs(client: MlflowClient, recipe: str, dataset_pattern: str) -> list[FinishedRun]:
    """Return the finished runs of a recipe, full ones first, then by validation accuracy, highest first.

    Args:
        client: Client of the store.
        recipe: Exact recipe name.
        dataset_pattern: Shell pattern; only runs on data sets whose name matches, with feedback or without.
    """
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs(
        [experiment.experiment_id] if experiment else [],
        f"tags.recipe = '{recipe}' AND attributes.status = 'FINISHED' AND metrics.`validation/best_accuracy` >= 0",
        order_by=["metrics.`validation/best_accuracy` DESC"],
    )
    found = [_read(run) for run in runs if is_dataset_taken(run.data.tags.get("dataset", ""), dataset_pattern)]
    return sorted(found, key=lambda run: run.profile != "full")


def has_run(client: MlflowClient, run_id: str) -> bool:
    """Whether MLflow holds a run that was not deleted."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return bool(run.info.lifecycle_stage == LifecycleStage.ACTIVE)


def get_finished_run(client: MlflowClient, run_id: str) -> FinishedRun:
    """Return one finished run.

    Raises:
        TrackingError: MLflow knows no such run.
        ReleaseError: The run is not finished.
    """
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise TrackingError(f"MLflow holds no run {run_id!r}; `make ui` shows the runs there are") from error
    if run.info.status != "FINISHED" or "kind" not in run.data.tags:
        raise ReleaseError(
            f"run {run_id} is {run.info.status}, not a finished training; repeat its train command first"
        )
    return _read(run)


def _read(run: Run) -> FinishedRun:
    tags, metrics = run.data.tags, run.data.metrics
    return FinishedRun(
        run_id=run.info.run_id,
        recipe=tags["recipe"],
        kind=tags["kind"],
        profile=tags["profile"],
        dataset=tags["dataset"],
        validation_accuracy=metrics.get("validation/best_accuracy"),
        test_accuracy=metrics.get("test/accuracy"),
    )
