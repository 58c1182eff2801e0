"""The kinds of run: each joins pictures, training or evaluation, and tracking in one class."""

import torch

from flows.experiments.experiment import Experiment
from flows.experiments.random_features import RandomFeaturesExperiment
from flows.experiments.simsiam import SimSiamExperiment
from flows.experiments.supervised import SupervisedExperiment
from flows.experiments.untrained import UntrainedExperiment
from model_code.data.cache import PackedDataset
from model_code.training.config import TrainingConfig
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.run_folder import AnyConfig
from model_code.training.untrained_config import UntrainedConfig


def open_experiment(
    config: AnyConfig, dataset: PackedDataset, device: torch.device, pretrained: str | None
) -> Experiment:
    """Load what a run needs and refuse what cannot work, before anything is written.

    Args:
        config: All settings.
        dataset: The packed pictures that the config names.
        device: Where to work.
        pretrained: File of the weights that the config starts from, or `torchvision`; None for none.

    Raises:
        UsageError: The pictures and the settings do not go together.
        DataError: Pictures or labels that are needed are missing.
    """
    if isinstance(config, TrainingConfig):
        return SupervisedExperiment(config, dataset, device, pretrained)
    if isinstance(config, SimSiamConfig):
        return SimSiamExperiment(config, dataset, device)
    if isinstance(config, UntrainedConfig):
        return UntrainedExperiment(config, dataset, device)
    return RandomFeaturesExperiment(config, dataset, device)
