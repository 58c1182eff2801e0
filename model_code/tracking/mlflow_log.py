"""A training run in MLflow."""

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path

from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from model_code.errors import PrunedError
from model_code.settings import Settings
from model_code.tracking.finished_runs import has_run
from model_code.tracking.metric_queue import MetricQueue
from model_code.tracking.outage import MLFLOW_ERRORS, Patience, insist, naming_errors
from model_code.tracking.run_tracker import EVERY_EPOCH, RunLog, RunTracker, list_params, list_tags
from model_code.tracking.store import EXPERIMENT, open_store, share_view
from model_code.tracking.system_metrics import sample_system
from model_code.tracking.tensorboard import TensorBoardWriter
from model_code.training.run_config import RunConfig
from model_code.training.run_folder import RunFolder, RunRecord

PATIENCE = Patience()
GIVE_UP_TIMEOUT_S = 3.0
DIGEST_DIGITS = 36  # as many as MLflow keeps


def create_run(
    client: MlflowClient,
    experiment: str,
    config: RunConfig,
    attempt: str,
    checkpoints_dir: Path,
    start_ms: int | None = None,
) -> str:
    """Make an MLflow run for a config and return its id.

    A run that an earlier attempt of this name left without a folder in `checkpoints_dir` is taken up.
    """
    for run_id in find_attempts(client, experiment, attempt):
        if not (checkpoints_dir / run_id).exists():
            return run_id
    found = client.get_experiment_by_name(experiment)
    assert found is not None, "open_store makes the experiment"
    name = f"{config.recipe} on {config.dataset}, {config.profile}, seed {config.seed}"
    run = client.create_run(found.experiment_id, start_time=start_ms, run_name=name, tags={"attempt": attempt})
    run_id = str(run.info.run_id)
    # Tables of MLflow cut names: what tells two apart, and what commands print and take, comes first.
    client.update_run(run_id, name=f"{run_id[:8]} {name}")
    return run_id


def find_attempts(client: MlflowClient, experiment: str, attempt: str) -> list[str]:
    """Return the MLflow runs that were made in an attempt of this name."""
    found = client.get_experiment_by_name(experiment)
    runs = [] if found is None else client.search_runs([found.experiment_id], f"tags.attempt = '{attempt}'")
    return [str(run.info.run_id) for run in runs]


@contextmanager
def track_run(record: RunRecord, tags: Mapping[str, str], patience: Patience = PATIENCE) -> Iterator[RunTracker]:
    """Log a run under its id while the block runs; a run that was interrupted is taken up again.

    The run ends as FINISHED, FAILED (an error) or KILLED (interrupted from the keyboard, or pruned by a sweep). While
    MLflow cannot be reached the block goes on; what only MLflow can take, such as figures and the run's end, waits for
    it.

    Args:
        record: Identity of the run.
        tags: Further tags to find it by, such as device, budget and published figure.
        patience: Longest wait for MLflow.

    Raises:
        TrackingError: MLflow cannot be reached at the start, or not within the limit at the end, or refuses.
    """
    client, run_id = MlflowClient(), record.run_id
    with naming_errors(run_id):
        params = [Param(key, value) for key, value in list_params(record).items()]
        client.log_batch(run_id, params=params, tags=[RunTag(*tag) for tag in list_tags(record, tags).items()])
        log_images(client, record)
        client.update_run(run_id, status="RUNNING")
        run = client.get_run(run_id)
        epochs = {metric.step for metric in client.get_metric_history(run_id, EVERY_EPOCH)}
        figures = _read_figures(client, run)
    queue = MetricQueue(client, run_id, record.config.recipe, patience)
    log = MlflowLog(record, client, queue, epochs, figures, patience)
    try:
        with sample_system(run, queue):
            yield RunTracker(record, log)
        log.finish()
        send_briefly(partial(share_view, client))  # it compares the newest runs
    except BaseException as error:
        log.give_up("KILLED" if isinstance(error, KeyboardInterrupt | PrunedError) else "FAILED")
        raise


def log_images(client: MlflowClient, record: RunRecord) -> None:
    """Record the packed images of a run, for MLflow's column of data sets."""
    digest = record.data_checksum[:DIGEST_DIGITS]
    images = Dataset(record.config.dataset, digest, "darkroom", f"darkroom data add {record.config.dataset}")
    log = partial(client.log_inputs, record.run_id, [DatasetInput(images)])
    try:
        log()
    except MlflowException:  # so MLflow answers where another run has recorded the same images at the same moment
        log()


def _read_figures(client: MlflowClient, run: Run) -> dict[str, float]:
    """Return the final figures that MLflow has of a run; they are at step 0, curves of the same name after it."""
    keys = [key for key in run.data.metrics if not key.startswith("system/")]
    points = (point for key in keys for point in client.get_metric_history(run.info.run_id, key))
    return {point.key: point.value for point in points if point.step == 0}


class MlflowLog(RunLog):
    """Sends to MLflow; metrics never wait for it, figures and files do. `track_run` makes one.

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
        epochs: set[int],
        figures: dict[str, float],
        patience: Patience,
    ) -> None:
        self._run_id, self._label = record.run_id, record.config.recipe
        self._client, self._queue, self._patience = client, queue, patience
        self.epochs, self.figures = epochs, figures

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue metrics of one step."""
        self._queue.put(metrics, step)

    def check(self) -> None:
        """Tell if MLflow refused metrics."""
        self._queue.check()

    def set_tag(self, key: str, value: str) -> None:
        """Replace a tag."""
        self._send(self._client.set_tag, key, value)

    def log_text(self, text: str, path: str) -> None:
        """Send a text as an artifact."""
        self._send(self._client.log_text, text, path)

    def log_figure(self, figure: Figure, path: str) -> None:
        """Send a figure as an artifact."""
        self._send(self._client.log_figure, figure, path)

    def log_file(self, file: Path, path: str) -> None:
        """Send a file as an artifact; MLflow takes its name from the file, so that another name is a copy."""
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:
            named = file if file.name == name else Path(shutil.copyfile(file, Path(scratch) / name))
            self._send(self._client.log_artifact, str(named), folder or None)

    def open_events(self, run_dir: Path) -> TensorBoardWriter:
        """Write events into the run's folder, from where they are sent."""
        return TensorBoardWriter(run_dir)

    def finish(self, end_ms: int | None = None) -> None:
        """Send what is left, then that the run is finished: now, or at a time since 1970.

        Raises:
            TrackingError: MLflow cannot be reached within the limit, or refuses.
        """
        self._queue.flush()
        self._send(self._client.set_terminated, "FINISHED", end_ms)

    def give_up(self, status: str) -> None:
        """Try for some seconds to send what is left and how the run ended; where that fails, a repeated run does it."""

        def send() -> None:
            self._queue.send_rest()
            self._client.set_terminated(self._run_id, status)

        self._queue.close()
        if not self._queue.is_away:
            send_briefly(send)

    def _send(self, call: Callable[..., object], *arguments: object) -> None:
        """Call a method of the client on this run until MLflow answers."""
        insist(partial(call, self._run_id, *arguments), self._run_id, self._label, self._patience)


def send_briefly(send: Callable[[], object]) -> None:
    """Try for some seconds to tell MLflow something that can be left out; a failure is silent."""

    def run() -> None:
        with suppress(*MLFLOW_ERRORS):
            send()

    thread = threading.Thread(target=run, name="end of the run to MLflow", daemon=True)
    thread.start()
    thread.join(GIVE_UP_TIMEOUT_S)


class MlflowTracking:
    """The MLflow store of the settings, as the place where runs are recorded.

    Args:
        settings: Address of the store.
        parent_run_id: Run that the pages show these runs below; None for runs of their own.
    """

    is_offline = False

    def __init__(self, settings: Settings, parent_run_id: str | None = None) -> None:
        self._settings = settings
        self._parent_tags = {} if parent_run_id is None else {MLFLOW_PARENT_RUN_ID: parent_run_id}

    @cached_property
    def _client(self) -> MlflowClient:
        return open_store(self._settings)

    def create_run(self, config: RunConfig, attempt: str) -> str:
        """Make an MLflow run and return its id."""
        return create_run(self._client, EXPERIMENT, config, attempt, self._settings.checkpoints_dir)

    def has_run(self, run_id: str) -> bool:
        """Whether MLflow holds a run that was not deleted."""
        return has_run(self._client, run_id)

    def track(self, folder: RunFolder, tags: Mapping[str, str]) -> AbstractContextManager[RunTracker]:
        """Record a run in MLflow."""
        return track_run(folder.record, {**tags, **self._parent_tags})
