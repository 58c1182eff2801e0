"""What deployments run: forms that people fill in, or a schedule does -> the flows of this project.

prefect.yaml names these flows and `darkroom deploy` hands them to a Prefect server. A run that was cut off is started
again (flows/operations/healing.py) and goes on from its checkpoint; one that fails is told to DARKROOM_WEBHOOK_URL.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from pydantic import Field

from flows.data import data_flow
from flows.experiments.training import find_kept, train_flow, train_task
from flows.operations.notification import tell
from flows.operations.prediction_watch import tell_causes
from flows.operations.release import Mode, release_flow
from flows.operations.retraining import add_feedback_once, join_reasons, note_reason, read_flow_run_id, read_start_ms
from flows.operations.rollback import roll_back
from flows.operations.upkeep import find_problems
from flows.plan import plan_all, plan_run
from flows.printing import tables as printing
from flows.printing.releases import print_release
from flows.report import report_flow
from flows.train_all import train_all_flow
from model_code.errors import DarkroomError, DataError, DownloadError, ReleaseError, TrainingError, UsageError
from model_code.recipes.catalog import RECIPES, change_dataset
from model_code.registry.names import RELEASE_NAMES
from model_code.settings import load_settings
from model_code.tracking.store import open_store
from model_code.training.run_folder import open_run_folder
from serving.bundle import read_champion

# The same words as the command's options.
RecipeName = Annotated[str, Field(description="See `darkroom recipes`.", json_schema_extra={"enum": list(RECIPES)})]
ReleaseName = Annotated[str, Field(description="Registered name.", json_schema_extra={"enum": list(RELEASE_NAMES)})]
Profile = Annotated[
    Literal["full", "smoke"], Field(description="full: the documented budget; smoke: minutes on two cores.")
]
Settings = Annotated[list[str], Field(description="key=value, as --set takes them.")]
Seed = Annotated[int | None, Field(description="The recipe's own when empty.", ge=0)]
Count = Annotated[int | None, Field(description="The recipe's own when empty.", ge=1)]

# Twice more after a failure: what was trained is kept, so a try goes on where the last one ended. Not after what only a
# person can mend (`_failing_for_good`): "Retry" in Prefect's pages goes on when that is done.
_KEPT: dict[str, Any] = {"log_prints": True, "on_failure": [tell], "on_crashed": [tell]}
_RETRIED: dict[str, Any] = _KEPT | {"retries": 2, "retry_delay_seconds": 60}


@contextmanager
def _failing_for_good() -> Iterator[None]:
    """Let Prefect not try again what fails for a wrong setting or for missing pictures."""
    try:
        yield
    except (UsageError, DataError) as error:
        context = FlowRunContext.get()
        if context is not None and context.flow_run is not None and not isinstance(error, DownloadError):
            with get_client(sync_client=True) as client:
                policy = client.read_flow_run(context.flow_run.id).empirical_policy
                client.update_flow_run(context.flow_run.id, empirical_policy=policy.model_copy(update={"retries": 0}))
        raise


@flow(name="add-data", flow_run_name="add-{name}", **_KEPT)
def add_data(name: str, sources: list[str] | None = None, download: bool = False, image_size: Count = None) -> None:
    """Pack pictures that the worker can see, or download the published ones."""
    printing.print_added(data_flow.fn(name, [Path(source) for source in sources or ()], download, image_size))


@flow(name="train-recipe", flow_run_name="train-{recipe}", **_RETRIED)
@_failing_for_good()
def train_recipe(
    recipe: RecipeName,
    profile: Profile = "full",
    seed: Seed = None,
    epochs: Count = None,
    limit_train: Count = None,
    settings: Settings | None = None,
) -> str:
    """Train one recipe; an interrupted run of the same settings goes on. Returns the run's id."""
    result = train_flow.fn(plan_run(recipe, profile, seed, epochs, limit_train, settings or ()))
    printing.print_result(result)
    return result.run_id


@flow(name="train-every-recipe", flow_run_name="train-every-recipe-{profile}", **_RETRIED)
@_failing_for_good()
def train_every_recipe(
    profile: Profile = "smoke", only: str = "*", seeds: list[int] | None = None, settings: Settings | None = None
) -> None:
    """Train every recipe whose name matches; what was trained before with the same settings and code is kept."""
    outcomes = train_all_flow.fn(plan_all(profile, only, seeds or (), settings or ()))
    printing.print_outcomes(outcomes)
    failed = [outcome.recipe for outcome in outcomes if outcome.result is None and not outcome.is_skipped]
    if failed:
        raise TrainingError(f"{len(failed)} of {len(outcomes)} runs failed: {', '.join(failed)}; their lines say why")


@flow(name="release-model", flow_run_name="release-{name}", **_KEPT)
def release_model(source: str, name: ReleaseName, mode: Mode = "enabled", why: str = "") -> None:
    """Make a recipe's best run, or one run, the champion of a name, if the gate finds it better."""
    released = release_flow.fn(source, name, mode, why)
    print_release(released)
    if not released.is_champion:
        raise ReleaseError(f"{name}: not promoted; the lines above say why")


@flow(name="roll-back-model", flow_run_name="roll-back-{name}", **_KEPT)
def roll_back_model(name: ReleaseName, why: str, to: str | None = None) -> None:
    """Make the champion before this one, or another version, the champion again."""
    change = roll_back(name, to, why)
    print(f"{name}: version {change.to_version} is champion (version {change.from_version} before)")


@flow(name="retrain", flow_run_name="retrain-{name}", **_RETRIED)
@_failing_for_good()
def retrain(
    name: ReleaseName, mode: Literal["enabled", "dry_run"] = "dry_run", why: str = "trained again by hand"
) -> None:
    """Train with the champion's settings on the pictures that are there now, and release it, or show that it could be.

    Feedback is added to the training pictures: DATASET-with-feedback beside DATASET, which stays as it is. A training
    of the same settings, pictures and code is kept: a release that failed does not cost another one. Why it ran is on
    the run's page and in the ledger.
    """
    settings = load_settings()
    _, _, champion = read_champion(settings.bundles_dir, name)
    config = open_run_folder(settings.checkpoints_dir, champion.run_id).record.config
    dataset, feedback = add_feedback_once(settings, name, config.dataset, read_flow_run_id())
    config = change_dataset(config, dataset)
    reason = join_reasons(why, feedback)
    print(f"{name} is trained again: {reason}")
    result = find_kept(config) or train_task(config)
    printing.print_result(result)
    if result.run_id == champion.run_id:
        print(f"nothing was trained: settings, pictures and code are those of the champion, run {champion.run_id}")
    elif not note_reason(open_store(settings), result.run_id, reason, read_start_ms()):
        print(f"nothing was trained: run {result.run_id} has the same settings, pictures and code")
    print_release(release_flow.fn(result.run_id, name, mode, reason))


@flow(name="watch-predictions", flow_run_name="watch-predictions", **_KEPT)
def watch_predictions(
    max_drift: Annotated[float, Field(description="Population stability index; 0.25 is a large shift.", gt=0)] = 0.25,
    enough_feedback: Annotated[int, Field(description="New pictures with true labels.", ge=1)] = 200,
) -> None:
    """Raise an event for each released model whose predictions drift, or that enough feedback came in for."""
    for line in tell_causes(load_settings(), max_drift, enough_feedback):
        print(line)


@flow(name="write-report", flow_run_name="write-report", **_KEPT)
def write_report() -> None:
    """Write published figures beside ours."""
    printing.print_report(report_flow.fn(load_settings().home / "report"))


@flow(name="check-health", flow_run_name="check-health", **_KEPT)
def check_health() -> None:
    """Look at the pictures that are there or needed, released models, service and disk; fail with what is wrong."""
    problems = find_problems(load_settings())
    if problems:
        raise DarkroomError("; ".join(problems))
    print("data sets, released models, service and disk are well")
