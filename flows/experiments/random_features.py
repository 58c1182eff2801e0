"""A frozen, untrained network -> what probes learn from its features, beside raw pixels and its own untrained head."""

from functools import partial

import torch
from torch import nn

from flows.experiments.experiment import Experiment, ExperimentResult
from model_code.data.cache import PackedDataset
from model_code.data.views import plain_view
from model_code.models.image_input import ImageInput
from model_code.models.networks import build_backbone, check_image_size
from model_code.tracking.run_tracker import RunTracker
from model_code.training.device import seed_everything
from model_code.training.images import get_labelled, take, to_device
from model_code.training.random_features import measure_random_features
from model_code.training.random_features_config import RandomFeaturesConfig
from model_code.training.run_folder import RunFolder


class RandomFeaturesExperiment(Experiment):
    """One probing of random features; the arguments are those of `open_experiment`."""

    def __init__(self, config: RandomFeaturesConfig, dataset: PackedDataset, device: torch.device) -> None:
        self._config, self._device, self._classes = config, device, dataset.classes
        self._image_size = config.image_size or dataset.image_size
        if config.network is not None:
            check_image_size(config.network, self._image_size)
        train = get_labelled(dataset, "train")
        self._train = to_device(train, take(train, config.limit_train, config.split_seed), device)
        test = get_labelled(dataset, "test")
        self._test = to_device(test, take(test, config.limit_test, config.split_seed), device)

    @property
    def images_line(self) -> str:
        """How many images the probes learn from and are asked about."""
        return f"{len(self._train)} training, {len(self._test)} test images, {len(self._classes)} classes"

    def run(self, folder: RunFolder, tracker: RunTracker) -> ExperimentResult:
        """Compute the features once and measure them in every way."""
        config = self._config
        seed_everything(config.seed, self._device)
        model = None
        if config.network is not None:
            backbone, _ = build_backbone(config.network, self._image_size)
            model = nn.Sequential(ImageInput(config.mean, config.std), backbone).to(self._device)
        result = measure_random_features(
            model,
            self._train,
            self._test,
            self._classes,
            prepare=partial(plain_view, image_size=self._image_size),
            is_calibrated=config.is_calibrated,
            neighbours=config.knn_neighbours,
            linear=config.linear,
            mlp=config.mlp,
            seed=config.seed,
            batch_size=config.batch_size,
        )
        metrics = {
            "test/knn_accuracy": result.knn_accuracy,
            "test/linear_accuracy": result.linear_accuracy,
            "test/mlp_accuracy": result.mlp_accuracy,
            "test/pictures": float(len(self._test)),
            "test/feature_width": float(result.feature_width),
        }
        if result.untrained_head_accuracy is not None:
            metrics["test/untrained_head_accuracy"] = result.untrained_head_accuracy
        tracker.log_metrics(metrics)
        return ExperimentResult(metrics)
