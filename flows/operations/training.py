"""Training as a task of a Prefect flow, recorded in MLflow."""

from collections.abc import Sequence

from prefect import task

from flows.experiments.inputs import RunInputs
from flows.experiments.training import train, train_all
from flows.operations.device_slot import hold_device
from flows.operations.runner import Runner
from flows.operations.side_by_side import train_side_by_side
from flows.printing.summaries import Outcome
from model_code.settings import load_settings
from model_code.tracking.mlflow_log import MlflowTracking
from model_code.tracking.parents import open_study
from model_code.training.run_folder import AnyConfig, RunResult


@task(name="train", task_run_name="train-{inputs.config.recipe}", persist_result=False)
def train_task(inputs: RunInputs, resume_run_id: str | None = None, parent_run_id: str | None = None) -> RunResult:
    """Run a recipe and log everything; an interrupted run of the same inputs is continued."""
    return train(inputs, MlflowTracking(load_settings(), parent_run_id), hold_device, resume_run_id)


def train_study(configs: Sequence[AnyConfig], runner: Runner | None = None) -> list[Outcome]:
    """Return one outcome for each config as `train_all` does; in MLflow the runs are nested below their study.

    Args:
        configs: Settings of every run.
        runner: Trains the runs side by side; None trains one after another in this process.
    """
    with open_study(load_settings(), configs) as study:

        def train_nested(inputs: RunInputs) -> RunResult:
            return train_task(inputs, parent_run_id=study.open_parent(inputs.config))

        if runner is None:
            outcomes = train_all(configs, train_nested)
        else:
            outcomes = train_side_by_side(configs, runner, hold_device, study.open_parent)
        for config, outcome in zip(configs, outcomes, strict=True):
            if outcome.result is None and not outcome.is_skipped:
                study.fail(config)
            elif outcome.result is not None and outcome.was_cached:
                study.adopt(config, outcome.result.run_id)
    return outcomes
