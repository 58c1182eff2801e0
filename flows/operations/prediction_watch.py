"""Reasons to retrain a model: drifting predictions, or enough true labels.

Each cause is told once. Drift counts anew after it went away or another version answers; feedback after as many more
came. DARKROOM_HOME/retraining/<name>.told.json remembers what was told.
"""

from dataclasses import dataclass
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.events.schemas.events import Event, Resource
from pydantic import BaseModel, ConfigDict, ValidationError

from flows.operations.upkeep import ask_service
from model_code.disk import write_atomically
from model_code.errors import ServiceError
from model_code.settings import Settings
from serving.bundle.store import list_released
from serving.observation.feedback import count_images

DRIFT = "darkroom.drift"
ENOUGH_FEEDBACK = "darkroom.feedback.enough"


@dataclass(frozen=True)
class Cause:
    """Why a model should be trained again.

    Attributes:
        event: Name of the event.
        name: Registered name of the model.
        why: One sentence with the figures.
    """

    event: str
    name: str
    why: str


class Told(BaseModel):
    """What was told of one model.

    Attributes:
        drifted_version: Version whose drift was told and has not gone away; None without one.
        feedback: Number of images when enough had come the last time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    drifted_version: str | None = None
    feedback: int = 0


def tell_causes(settings: Settings, max_drift: float, enough_feedback: int) -> list[str]:
    """Raise an event for each new cause, and return a line for each model and problem.

    Raises:
        ServiceError: The service does not answer; feedback was looked at all the same.
        prefect.exceptions.PrefectException: The server did not take an event, which the next look raises.
    """
    lines, problem = [], None
    drifts: dict[str, tuple[str, float | None]] = {}
    if settings.service_url is None:
        lines.append("DARKROOM_SERVICE_URL is not set: no drift is looked at, only feedback")
    else:
        try:
            drifts = {model["name"]: (model["version"], model.get("drift_score")) for model in ask_service(settings)}
        except ServiceError as error:
            problem = error
    for name in list_released(settings.bundles_dir):
        file = settings.retraining_dir / f"{name}.told.json"
        # Where earlier versions kept it.
        told = read_told(file if file.exists() else settings.home / "feedback" / f"{name}.json")
        version, score = drifts.get(name, ("", None))
        drift, after_drift = judge_drift(name, told, version, score, max_drift)
        count = count_images(settings.feedback_dir / name)
        feedback, after = judge_feedback(name, after_drift, count, enough_feedback)
        for cause in (drift, feedback):
            if cause is not None:
                raise_event(cause)
                lines.append(f"{cause.event}: {cause.why}")
        if after != told:
            write_atomically(file, after.model_dump_json().encode())
        shown = "unknown" if score is None else f"{score:.2f}"
        lines.append(f"{name}: drift {shown}, {count} images with feedback, {after.feedback} of them told before")
    if problem is not None:
        print("\n".join(lines), flush=True)
        raise problem
    return lines


def judge_drift(
    name: str, told: Told, version: str, score: float | None, max_drift: float
) -> tuple[Cause | None, Told]:
    """Return the cause if there is a new one, and what is told then; without a score nothing changes."""
    if score is None:
        return None, told
    if score <= max_drift:
        return None, told.model_copy(update={"drifted_version": None})
    if told.drifted_version == version:
        return None, told
    why = (
        f"the predictions of {name} version {version} drift: their confidence is {score:.2f} away from that on the "
        f"images it was measured on, {max_drift:g} is allowed"
    )
    return Cause(DRIFT, name, why), told.model_copy(update={"drifted_version": version})


def judge_feedback(name: str, told: Told, count: int, enough: int) -> tuple[Cause | None, Told]:
    """Return the cause if there is a new one, and what is told then; where images were removed, less counts."""
    new = count - told.feedback
    if new < 0:
        return None, told.model_copy(update={"feedback": count})
    if new < enough:
        return None, told
    why = f"people gave the true labels of {new} more images to {name}, {enough} are enough"
    return Cause(ENOUGH_FEEDBACK, name, why), told.model_copy(update={"feedback": count})


def read_told(file: Path) -> Told:
    """Return what was told of a model; nothing where the file is missing or damaged."""
    try:
        return Told.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return Told()


def raise_event(cause: Cause) -> None:
    """Give an event to Prefect's server; it has it when this returns."""
    resource = Resource({"prefect.resource.id": f"darkroom.model.{cause.name}", "darkroom.model": cause.name})
    event = Event(event=cause.event, resource=resource, payload={"why": cause.why})
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()
