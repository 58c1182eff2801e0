"""An untrained network -> how it labels images it knows nothing of."""

from functools import partial

import torch
from torch import nn

from flows.experiments.experiment import Experiment, ExperimentResult
from model_code.data.augmentation import resized_crop
from model_code.data.cache import PackedDataset
from model_code.data.progress import show_progress
from model_code.evaluation.untrained import evaluate_untrained
from model_code.models.image_input import ImageInput
from model_code.models.initialization import draw_gaussian, draw_gaussian_head
from model_code.models.networks import build_network, check_image_size, count_parameters
from model_code.tracking.run_tracker import RunTracker
from model_code.training.device import seed_everything
from model_code.training.engine import choose_precision
from model_code.training.images import get_labelled, take
from model_code.training.run_folder import RunFolder
from model_code.training.untrained_config import UntrainedConfig

SPLITS = ("validation", "test", "train")


class UntrainedExperiment(Experiment):
    """One evaluation of an untrained network; the arguments are those of `open_experiment`."""

    def __init__(self, config: UntrainedConfig, dataset: PackedDataset, device: torch.device) -> None:
        self._config, self._device, self._classes = config, device, dataset.classes
        self._split = get_labelled(dataset, next(split for split in SPLITS if split in dataset.splits))
        self._chosen = take(self._split.labels_N, config.limit_test, config.split_seed)
        check_image_size(config.network, config.image_size)
        self._precision = choose_precision("precision", config.precision, device)

    @property
    def images_line(self) -> str:
        """How many images are labelled."""
        return f"{len(self._chosen)} images, {len(self._classes)} classes"

    @property
    def engine_line(self) -> str:
        """Precision of the network."""
        return str(self._precision).removeprefix("torch.")

    def run(self, folder: RunFolder, tracker: RunTracker) -> ExperimentResult:
        """Label every image once."""
        config = self._config
        generator = seed_everything(config.seed, self._device)
        network = build_network(config.network, len(self._classes), config.image_size)
        if config.initialization == "gaussian":
            draw_gaussian(network)
        elif config.initialization == "gaussian_head":
            draw_gaussian_head(network)
        model = nn.Sequential(ImageInput(config.mean, config.std), network).to(self._device)
        view = partial(resized_crop, image_size=config.image_size, crop_area=config.crop_area, generator=generator)
        images_NHWC, labels_N = self._split.images_NHWC, self._split.labels_N
        if len(self._chosen) < len(labels_N):
            images_NHWC, labels_N = images_NHWC[self._chosen], labels_N[self._chosen]
        with show_progress(config.recipe, len(labels_N), "images") as advance:
            report = evaluate_untrained(
                model, images_NHWC, labels_N, view, config.batch_size, self._device, self._precision, advance
            )
        metrics = {
            "network/parameters": count_parameters(network),
            "validation/pictures": report.count,
            "validation/correct": report.correct,
            "validation/accuracy": report.accuracy_fraction,
            "validation/distinct_classes": report.distinct_classes,
            "validation/top_class_share": report.top_class_share,
            "validation/seconds": report.seconds,
            "validation/pictures_per_s": report.pictures_per_s,
            "validation/peak_memory_bytes": report.peak_memory_bytes,
        }
        tracker.log_metrics(metrics)
        return ExperimentResult(metrics)
