"""Retraining of a champion: with the feedback, and with the reason on the run's page and in the ledger."""

from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from pydantic import BaseModel, ConfigDict, ValidationError

from flows.experiments.inputs import find_kept, open_inputs
from flows.operations.release import Mode, release
from flows.operations.training import train_task
from flows.printing.lines import print_line
from flows.printing.releases import print_release
from flows.printing.runs import print_result
from model_code.data.add import add_dataset
from model_code.data.cache import FEEDBACK_SUFFIX
from model_code.disk import write_atomically
from model_code.errors import DataError, UsageError
from model_code.recipes.catalog import change_dataset
from model_code.release.ledger import LONGEST_REASON
from model_code.settings import Settings, load_settings
from model_code.tracking.store import open_store
from model_code.training.run_folder import open_run_folder
from serving.bundle.store import read_champion
from serving.observation.feedback import count_images

REASON_TAG = "retrained_because"


class AddedFeedback(BaseModel):
    """What the last retraining of a name was given.

    Attributes:
        flow_run_id: Flow run that retrains.
        dataset: Data set to train on.
        description: Reason for the ledger; empty without feedback.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flow_run_id: str
    dataset: str
    description: str


def retrain(name: str, mode: Mode, why: str) -> None:
    """Train with the champion's settings on the images that are there now, and release the run.

    Args:
        name: Registered name.
        mode: Release mode.
        why: Reason for the ledger.
    """
    settings = load_settings()
    _, _, champion = read_champion(settings.bundles_dir, name)
    config = open_run_folder(settings.checkpoints_dir, champion.run_id).record.config
    dataset, feedback = add_feedback_once(settings, name, config.dataset, read_flow_run_id())
    reason = join_reasons(why, feedback)
    print_line(f"{name} is trained again: {reason}")
    inputs = open_inputs(change_dataset(config, dataset))
    result = find_kept(inputs) or train_task(inputs)
    print_result(result)
    if result.run_id == champion.run_id:
        print_line(f"nothing was trained: settings, images and code are those of the champion, run {champion.run_id}")
    elif not note_reason(open_store(settings), result.run_id, reason, read_start_ms()):
        print_line(f"nothing was trained: run {result.run_id} has the same settings, images and code")
    print_release(release(result.run_id, name, mode, reason, head=champion.settings.get("head")))


def add_feedback_once(settings: Settings, name: str, dataset: str, flow_run_id: str) -> tuple[str, str]:
    """Add the feedback once per flow run: a retry trains on the same images, whatever came in meanwhile.

    Args:
        settings: Places of data, runs and bundles.
        name: Registered name of the model.
        dataset: Name of the data set that it was trained on, with earlier feedback or without.
        flow_run_id: Flow run that retrains.

    Returns:
        As `add_feedback`.
    """
    file = settings.retraining_dir / f"{name}.json"
    try:
        before = AddedFeedback.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        before = None
    if before is None or before.flow_run_id != flow_run_id:
        added, description = add_feedback(settings, name, dataset)
        before = AddedFeedback(flow_run_id=flow_run_id, dataset=added, description=description)
        write_atomically(file, before.model_dump_json().encode())
    return before.dataset, before.description


def add_feedback(settings: Settings, name: str, dataset: str) -> tuple[str, str]:
    """Pack the feedback of a model with the training images of a data set, as a data set of its own.

    Args:
        settings: Places of data, runs and bundles.
        name: Registered name of the model.
        dataset: Name of the data set that it was trained on, with earlier feedback or without.

    Returns:
        The data set to train on, and what came of the feedback, for the reason of the training: empty without any.
    """
    folder = settings.feedback_dir / name
    base = dataset.removesuffix(FEEDBACK_SUFFIX)
    count = count_images(folder)
    if not count:
        return base, "" if dataset == base else "without feedback, of which there is none any more"
    try:
        added = add_dataset(base + FEEDBACK_SUFFIX, [folder], cache_dir=settings.cache_dir, data_dir=settings.data_dir)
    except (DataError, UsageError) as error:
        new = "" if dataset == base else " new since the last training"
        return dataset, f"images with feedback{new} are left out: {error}"
    used = added.dataset.count_feedback()
    skipped = [f"{len(added.skipped)} left out ({one.name}: {one.reason})" for one in added.skipped[:1]]
    data = f"with {used} images of feedback among the training images, data {added.dataset.checksum[:12]}"
    return added.dataset.name, ", ".join([data, *skipped])


def join_reasons(*parts: str) -> str:
    """Return one reason that the ledger can hold."""
    return "; ".join(part for part in parts if part)[:LONGEST_REASON]


def note_reason(client: MlflowClient, run_id: str, why: str, since_ms: int) -> bool:
    """Write on a run why it was trained, unless it had ended before anybody asked for it.

    Args:
        client: Client of the store.
        run_id: Run ID of the training.
        why: The reason.
        since_ms: When it was asked for, ms since 1970.

    Returns:
        Whether it was trained since.
    """
    if client.get_run(run_id).info.end_time < since_ms:
        return False
    client.set_tag(run_id, REASON_TAG, why)
    client.set_tag(run_id, "mlflow.note.content", f"Trained again: {why}")
    return True


def read_flow_run_id() -> str:
    """Return the id of the flow run of this process; it is the same when the run is tried again."""
    return str(_read_flow_run().id)


def read_start_ms() -> int:
    """Return when the flow run of this process started the first time, ms since 1970."""
    with get_client(sync_client=True) as client:
        started = client.read_flow_run(_read_flow_run().id).start_time
    assert started is not None, "it runs"
    return int(started.timestamp() * 1000)


def _read_flow_run() -> FlowRun:
    context = FlowRunContext.get()
    assert context is not None, "a flow asks"
    assert context.flow_run is not None, "a flow asks"
    return context.flow_run
