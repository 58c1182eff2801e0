"""What an automatic training does beyond an ordinary one: it takes the feedback in, and says why it ran."""

import shlex
from pathlib import Path

from mlflow import MlflowClient

from flows.data import data_flow
from model_code.data.cache import read_manifest
from model_code.errors import DataError, UsageError
from model_code.registry.ledger import LONGEST_REASON
from model_code.settings import Settings
from serving.feedback import count_pictures

REASON_TAG = "retrained_because"


def add_feedback(settings: Settings, name: str, dataset: str) -> str:
    """Pack a data set anew with the feedback of a model among its training pictures, where its sources are known.

    Args:
        settings: Where everything lies.
        name: Registered name of the model.
        dataset: That it was trained on.

    Returns:
        What came of it, for the reason of the training; empty without feedback.
    """
    folder = settings.feedback_dir / name
    count = count_pictures(folder)
    if not count:
        return ""
    manifest = read_manifest(dataset, settings.cache_dir)
    sources = [Path(path) for path in manifest.source_paths if Path(path) != folder]
    missing = [path for path in sources if not path.exists()]
    remedy = f"`darkroom data add {dataset} --from ORIGINAL --from {shlex.quote(str(folder))}`"
    left_out = f"{count} pictures with feedback are not among the training pictures of {dataset}"
    if missing:
        return f"{left_out}: {missing[0]} is not here any more; add them with {remedy}"
    if not sources:
        return f"{left_out}: it is not known which files it was packed from; add them with {remedy}, if they are files"
    try:
        added = data_flow.fn(dataset, [*sources, folder], image_size=manifest.image_size)
    except (DataError, UsageError) as error:
        return f"{left_out}: {error}"
    return f"with {count} pictures of feedback among the training pictures, data {added.dataset.checksum[:12]}"


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
