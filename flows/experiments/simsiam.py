"""Images without labels -> a pretrained backbone -> what its features are worth: kNN and a linear layer."""

from collections.abc import Sequence
from pathlib import Path

from flows.experiments.experiment import EpochExperiment, ExperimentResult, follow_epochs
from model_code.data.cache import PackedDataset
from model_code.models.networks import count_parameters
from model_code.tracking.run_tracker import RunTracker
from model_code.training.images import load_pretraining_images
from model_code.training.pretraining import (
    PretrainingResult,
    build_simsiam,
    check_pretraining_images,
    evaluate_backbone,
    pretrain,
)
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.processes import Processes
from model_code.training.results import Callback
from model_code.training.run_folder import RunFolder

# Of the spread that features have when they fill the sphere evenly.
COLLAPSED_SHARE = 0.2


class SimSiamExperiment(EpochExperiment):
    """One SimSiam run; the arguments are those of `open_experiment`."""

    def __init__(
        self, config: SimSiamConfig, dataset: PackedDataset, processes: Processes, pretrained: str | None
    ) -> None:
        self._config, self._pretrained = config, pretrained
        self._images = load_pretraining_images(dataset, config, processes.device)
        check_pretraining_images(config, self._images)
        super().__init__(config, processes, self._images.images_NHWC)

    @property
    def images_line(self) -> str:
        """Counts of training, memory, validation and test images."""
        tests = 0 if self._images.test is None else len(self._images.test)
        return (
            f"{len(self._images.images_NHWC)} training images without labels, {len(self._images.memory)} "
            f"labelled in the memory, {len(self._images.validation)} validation, {tests} test images"
        )

    def run(self, folder: RunFolder, tracker: RunTracker) -> ExperimentResult:
        """Pretrain, then measure the best backbone."""
        config = self._config
        with follow_epochs(folder, tracker, config.epochs, self._processes) as (callbacks, _):
            training = self.train(folder.path, callbacks)
        report = evaluate_backbone(config, training.best_weights, self._images, self._processes.device)
        last, even = training.history[-1], config.embedding_width**-0.5
        print(
            f"{config.recipe}  kNN accuracy on validation: {training.untrained_knn_accuracy:.4f} at the start, "
            f"{training.best.score:.4f} after epoch {training.best_epoch}; std of features {last.feature_std:.4f} "
            f"(0 is collapse, {even:.4f} is spread evenly)",
            flush=True,
        )
        if last.feature_std < COLLAPSED_SHARE * even:
            print(f"{config.recipe}  the features have collapsed; lower base_learning_rate", flush=True)
        metrics = {
            "validation/untrained_knn_accuracy": training.untrained_knn_accuracy,
            "train/pictures": len(self._images.images_NHWC),
            "network/parameters": count_parameters(build_simsiam(config)),
            **report.list_metrics(),
        }
        if report.split == "validation":  # its curve has that name, and its best point is kept already
            del metrics["validation/knn_accuracy"]
        tracker.log_metrics(metrics)
        return ExperimentResult(metrics, training)

    def train(self, run_dir: Path, callbacks: Sequence[Callback]) -> PretrainingResult:
        """Pretrain the backbone."""
        return pretrain(self._config, self._images, run_dir, self._processes, callbacks, self._engine, self._pretrained)
