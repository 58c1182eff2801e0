"""The kinds of run: each joins images, training or evaluation, and tracking in one class."""

from flows.experiments.experiment import Experiment
from flows.experiments.random_features import RandomFeaturesExperiment
from flows.experiments.simsiam import SimSiamExperiment
from flows.experiments.supervised import SupervisedExperiment
from flows.experiments.untrained import UntrainedExperiment
from model_code.data.cache import PackedDataset
from model_code.data.local_copy import copy_locally
from model_code.errors import UsageError
from model_code.settings import load_settings
from model_code.training.config import TrainingConfig
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.processes import Processes
from model_code.training.run_folder import AnyConfig
from model_code.training.untrained_config import UntrainedConfig


def open_experiment(
    config: AnyConfig, dataset: PackedDataset, processes: Processes, pretrained: str | None
) -> Experiment:
    """Load what a run needs and refuse what cannot work, before anything is written.

    Args:
        config: All settings.
        dataset: The packed images that the config names.
        processes: Processes that train together, and the device of this one.
        pretrained: File of the weights that the config starts from, or `torchvision`; None for none.

    Raises:
        UsageError: Images, settings and hardware do not go together.
        DataError: Images or labels that are needed are missing.
    """
    local_cache_dir = load_settings().local_cache_dir
    if local_cache_dir is not None:
        dataset = copy_locally(dataset, local_cache_dir)
    if isinstance(config, TrainingConfig):
        return SupervisedExperiment(config, dataset, processes, pretrained)
    if isinstance(config, SimSiamConfig):
        return SimSiamExperiment(config, dataset, processes, pretrained)
    if processes.count > 1:
        raise UsageError(
            f"{config.recipe} trains nothing that {processes.count} processes could share; start it without torchrun"
        )
    if isinstance(config, UntrainedConfig):
        return UntrainedExperiment(config, dataset, processes.device)
    return RandomFeaturesExperiment(config, dataset, processes.device)
