"""The MLflow store: the server that MLFLOW_TRACKING_URI names, or an SQLite database in DARKROOM_HOME."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.exc import SQLAlchemyError

from model_code.disk import check_free_space, hold_lock
from model_code.errors import TrackingError
from model_code.settings import Settings
from model_code.tracking.revision import check_revision

EXPERIMENT = "darkroom"
_DATABASE_BYTES = 2_000_000
# MLflow shows the pages for training models, not those for language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
MOST_COMPARED = 4
# A view that `darkroom ui` opens, in the form of those that MLflow's pages share.
VIEW = "darkroom"
ORDER = ("metrics.`test/accuracy`", "metrics.`validation/best_accuracy`")
VIEW_STATE = {
    "orderByAsc": False,
    "selectedColumns": ["tags.`recipe`", "tags.`dataset`", "tags.`budget`", "tags.`precision`", *ORDER],
}
DESCRIPTION_TAG = "mlflow.note.content"
COMPARISON, CHARTS = "The newest runs side by side", "All runs as charts"


def open_store(settings: Settings) -> MlflowClient:
    """Return a client of the store; make database and experiment on first use.

    Raises:
        TrackingError: The server does not answer, or the database cannot be opened.
    """
    mlflow.set_tracking_uri(settings.tracking_uri)
    mlflow.set_registry_uri(settings.tracking_uri)
    # The first use migrates the database: only one process at a time may do that.
    with hold_lock(settings.locks_dir / "mlflow.lock", "opening MLflow's database"):
        try:
            if settings.database is not None and not settings.database.exists():
                _create_database(settings.database)
            client = MlflowClient()
            if client.get_experiment_by_name(EXPERIMENT) is None:
                location = None if settings.has_mlflow_server else as_uri(settings.artifacts_dir)
                with _allowing_others():
                    client.create_experiment(EXPERIMENT, artifact_location=location, tags=EXPERIMENT_TAGS)
            mlflow.set_experiment(EXPERIMENT)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            check_revision(settings)
            reason = str(error).splitlines()[0]
            if "disk is full" in reason:
                check_free_space(settings.home, _DATABASE_BYTES, "opening MLflow's database")
            raise TrackingError(
                f"MLflow at {settings.tracking_uri} cannot be used ({reason}); "
                "start the server or correct MLFLOW_TRACKING_URI; a damaged database can be moved away"
            ) from error
    return client


def has_store(settings: Settings) -> bool:
    """Return False if nothing was ever tracked here: opening the store would create its database."""
    return settings.database is None or settings.database.exists()


@contextmanager
def _allowing_others() -> Iterator[None]:
    """Go on if another machine has made the same at the same moment."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise


def _create_database(file: Path) -> None:
    """Make MLflow's database beside its place and move it there complete: its migration is no transaction."""
    scratch = file.with_name("mlflow.db.new")
    for leftover in file.parent.glob(f"{scratch.name}*"):
        leftover.unlink()
    store = SqlAlchemyStore(f"sqlite:///{scratch}", as_uri(file.parent / "artifacts"))
    store.engine.dispose()
    scratch.replace(file)


def share_view(client: MlflowClient) -> str:
    """Keep a view of the runs as one that was shared: what tells runs apart in columns, the best test accuracy first.

    Where no run has test images, it is the best validation accuracy.

    The experiment's description gets links to the comparison of the newest runs and to charts; what a person wrote
    there stays.

    Returns:
        Path of the view in MLflow's pages.
    """
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None, "open_store makes it"
    experiment_id, tags = str(experiment.experiment_id), {**EXPERIMENT_TAGS}
    tested = client.search_runs([experiment_id], f"{ORDER[0]} >= 0", max_results=1)
    tags[f"mlflow.sharedViewState.{VIEW}"] = json.dumps(VIEW_STATE | {"orderByKey": ORDER[0 if tested else 1]})
    view = f"experiments/{experiment_id}/runs?viewStateShareKey={VIEW}"
    if comparison := find_comparison(client, experiment_id):
        lines = experiment.tags.get(DESCRIPTION_TAG, "").splitlines()
        own = [line for line in lines if not line.startswith(f"[{COMPARISON}]")]
        links = f"[{COMPARISON}](#/{comparison}) · [{CHARTS}](#/{view}&compareRunsMode=CHART)"
        tags[DESCRIPTION_TAG] = "\n".join([links, *own])
    for key, value in tags.items():
        client.set_experiment_tag(experiment_id, key, value)
    return view


def find_comparison(client: MlflowClient, experiment_id: str) -> str:
    """Return the path of MLflow's page that compares the newest finished trainings of the newest one's kind.

    It is empty with fewer than two.
    """
    query = "attributes.status = 'FINISHED' AND tags.kind LIKE"
    if not (newest := client.search_runs([experiment_id], f"{query} '%'", max_results=1)):  # parents have no kind
        return ""
    runs = client.search_runs([experiment_id], f"{query} '{newest[0].data.tags['kind']}'", max_results=MOST_COMPARED)
    listed = quote(json.dumps([run.info.run_id for run in runs]))
    return f"compare-runs?runs={listed}&experiments={quote(json.dumps([experiment_id]))}" if len(runs) > 1 else ""


def as_uri(folder: Path) -> str:
    """Return the address of a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder.as_uri()
