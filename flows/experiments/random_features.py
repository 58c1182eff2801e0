"""A frozen, untrained network -> what probes learn from its features, beside raw pixels and its own untrained head."""

from functools import partial

import numpy as np
import torch
from torch import nn

from flows.experiments.experiment import Experiment, ExperimentResult
from model_code.data.cache import PackedDataset
from model_code.data.splits import split_stratified
from model_code.data.views import plain_view
from model_code.models.image_input import ImageInput
from model_code.models.networks import build_backbone, check_image_size, count_parameters
from model_code.tracking.run_tracker import RunTracker
from model_code.training.batches import fits_device
from model_code.training.device import seed_everything
from model_code.training.images import Place, get_labelled, take, to_device
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
        if len(dataset.splits) == 1:
            only = get_labelled(dataset, *dataset.splits)
            learned_N, measured_N = split_stratified(only.labels_N, config.test_fraction, config.split_seed)
            parts = [(only, learned_N), (only, measured_N)]
        else:
            splits = [get_labelled(dataset, name) for name in ("train", "test")]
            parts = [(split, np.arange(len(split.labels_N))) for split in splits]
        # Raw pixels are features where the images are.
        size_bytes = sum(split.images_NHWC.nbytes for split in dataset.splits.values())
        place: Place = "resident" if config.network is None or fits_device(size_bytes, device) else "streamed"
        self._train, self._test = (
            to_device(split, indices[take(split.labels_N[indices], limit, config.split_seed)], device, place)
            for (split, indices), limit in zip(parts, (config.limit_train, config.limit_test), strict=True)
        )

    @property
    def images_line(self) -> str:
        """Counts of training and test images of the probes, and of classes."""
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
        if model is not None:
            metrics["network/parameters"] = count_parameters(model)
        if result.untrained_head_accuracy is not None:
            metrics["test/untrained_head_accuracy"] = result.untrained_head_accuracy
        tracker.log_metrics(metrics)
        return ExperimentResult(metrics)
