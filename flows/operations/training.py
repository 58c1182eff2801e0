"""Training as a task of a Prefect flow, recorded in MLflow."""

from prefect import task

from flows.experiments.inputs import RunInputs
from flows.experiments.training import train
from flows.operations.device_slot import hold_device
from model_code.settings import load_settings
from model_code.tracking.mlflow_log import MlflowTracking
from model_code.training.run_folder import RunResult


@task(name="train", task_run_name="train-{inputs.config.recipe}", persist_result=False)
def train_task(inputs: RunInputs, resume_run_id: str | None = None) -> RunResult:
    """Run a recipe and log everything; an interrupted run of the same inputs is continued."""
    return train(inputs, MlflowTracking(load_settings()), hold_device, resume_run_id)
