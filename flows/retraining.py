"""What an automatic training does beyond an ordinary one: it takes the feedback in, and says why it ran."""

from mlflow import MlflowClient
from prefect import task

from flows.data import data_flow
from model_code.data.cache import FEEDBACK_SUFFIX
from model_code.errors import DataError, UsageError
from model_code.registry.ledger import LONGEST_REASON
from model_code.settings import Settings, load_settings
from serving.feedback import count_pictures

REASON_TAG = "retrained_because"


@task(name="add feedback", persist_result=True)
def add_feedback_task(name: str, dataset: str) -> tuple[str, str]:
    """Add it once for a flow run: one that is tried again goes on with the same pictures."""
    return add_feedback(load_settings(), name, dataset)


def add_feedback(settings: Settings, name: str, dataset: str) -> tuple[str, str]:
    """Pack the feedback of a model with the training pictures of a data set, as a data set of its own.

    Args:
        settings: Where everything lies.
        name: Registered name of the model.
        dataset: That it was trained on, with earlier feedback or without.

    Returns:
        The data set to train on, and what came of the feedback, for the reason of the training: empty without any.
    """
    folder = settings.feedback_dir / name
    base = dataset.removesuffix(FEEDBACK_SUFFIX)
    count = count_pictures(folder)
    if not count:
        return base, ""
    try:
        added = data_flow.fn(base + FEEDBACK_SUFFIX, [folder])
    except (DataError, UsageError) as error:
        new = "" if dataset == base else " new since the last training"
        return dataset, f"pictures with feedback{new} are left out: {error}"
    assert added.dataset.base is not None, "that is what was packed"
    used = len(added.dataset.splits["train"].labels_N) - added.dataset.base.train_count
    skipped = [f"{len(added.skipped)} left out ({one.name}: {one.reason})" for one in added.skipped[:1]]
    if not used:
        return base, ", ".join([f"none of {count} pictures with feedback can be used", *skipped])
    data = f"with {used} pictures of feedback among the training pictures, data {added.dataset.checksum[:12]}"
    return added.dataset.name, ", ".join([data, *skipped])


def join_reasons(*parts: str) -> str:
    """Return one reason that the ledger can hold."""
    return "; ".join(part for part in parts if part)[:LONGEST_REASON]


def note_reason(client: MlflowClient, run_id: str, why: str) -> bool:
    """Write on a run why it was trained; one that has a reason keeps it.

    Returns:
        Whether this is its reason.
    """
    tags = client.get_run(run_id).data.tags
    if REASON_TAG not in tags:
        client.set_tag(run_id, REASON_TAG, why)
        client.set_tag(run_id, "mlflow.note.content", f"Trained again: {why}")
    return tags.get(REASON_TAG, why) == why
