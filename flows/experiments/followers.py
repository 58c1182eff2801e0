"""Work of the ranks above 0 under torchrun: their share of each batch, no tracking."""

from dataclasses import dataclass
from pathlib import Path

from flows.experiments import open_experiment
from flows.experiments.experiment import EpochExperiment
from model_code.data.cache import open_dataset
from model_code.settings import load_settings
from model_code.training.device import choose_device, keep_freed_memory
from model_code.training.processes import join_processes
from model_code.training.run_folder import AnyConfig


@dataclass(frozen=True)
class Assignment:
    """What the first process tells the others when the run's folder is there."""

    run_dir: Path
    pretrained: str | None


def follow_training(config: AnyConfig) -> None:
    """Train beside the first process, which is told the same command.

    Raises:
        UsageError: Images, settings and hardware do not go together.
        TrainingError: Another process has ended, or the training diverged.
    """
    dataset = open_dataset(config.dataset, load_settings().cache_dir)
    keep_freed_memory()
    with join_processes(choose_device(config.device)) as processes:
        assignment: Assignment = processes.tell()
        experiment = open_experiment(config, dataset, processes, assignment.pretrained)
        assert isinstance(experiment, EpochExperiment), "open_experiment refuses to share the others"
        experiment.follow(assignment.run_dir)
