"""Labelled pictures -> a trained network -> its report on the test pictures."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from flows.experiments.experiment import EpochExperiment, ExperimentResult, follow_epochs
from model_code.data.cache import PackedDataset
from model_code.evaluation.figures import GRID_SIDE, draw_prediction_grid
from model_code.evaluation.metrics import measure, predict_logits
from model_code.tracking.run_tracker import RunTracker
from model_code.training.config import TrainingConfig
from model_code.training.pictures import load_pictures
from model_code.training.processes import Processes
from model_code.training.results import Callback, EpochMetrics, TrainingResult
from model_code.training.run_folder import RunFolder
from model_code.training.supervised import check_pictures, fit, load_model


class SupervisedExperiment(EpochExperiment):
    """One supervised run; the arguments are those of `open_experiment`."""

    def __init__(
        self, config: TrainingConfig, dataset: PackedDataset, processes: Processes, pretrained: str | None
    ) -> None:
        self._config, self._pretrained = config, pretrained
        self._pictures = load_pictures(dataset, config, processes.device)
        check_pictures(config, self._pictures)
        super().__init__(config, processes, self._pictures.train.images_NHWC)

    @property
    def pictures_line(self) -> str:
        """Counts of each split."""
        pictures = self._pictures
        tests = 0 if pictures.test is None else len(pictures.test)
        return (
            f"{len(pictures.train)} training, {len(pictures.validation)} validation, {tests} test pictures, "
            f"{len(pictures.classes)} classes"
        )

    def run(self, folder: RunFolder, tracker: RunTracker) -> ExperimentResult:
        """Train, then label the final pictures once."""
        config, pictures = self._config, self._pictures
        with follow_epochs(folder, tracker, config.epochs, self._processes) as (callbacks, events):
            training = self.train(folder.path, callbacks)
            model = load_model(config, len(pictures.classes), pictures.image_size, training.best_weights)
            model.to(self._processes.device)
            events.write_graph(model, pictures.validation.images_NHWC[:1].to(self._processes.device))
        tracker.log_metrics({"train/pictures": len(pictures.train), "validation/pictures": len(pictures.validation)})
        return ExperimentResult(self._evaluate(tracker, model), training)

    def train(self, run_dir: Path, callbacks: Sequence[Callback]) -> TrainingResult[EpochMetrics]:
        """Train the network."""
        return fit(self._config, self._pictures, run_dir, self._processes, callbacks, self._pretrained, self._engine)

    def _evaluate(self, tracker: RunTracker, model: nn.Module) -> dict[str, float]:
        """Label the test pictures, or without any the validation pictures, and log what came out."""
        split, chosen = self._pictures.final
        classes = self._pictures.classes
        logits_NK = predict_logits(model, chosen.images_NHWC)
        report = measure(logits_NK, chosen.labels_N)
        shown = torch.linspace(0, len(chosen) - 1, min(GRID_SIDE**2, len(chosen))).long()
        grid = draw_prediction_grid(
            chosen.images_NHWC.cpu()[shown].numpy(),
            chosen.labels_N.cpu()[shown].numpy(),
            logits_NK.argmax(1)[shown].numpy(),
            classes,
        )
        tracker.log_report(split, report, classes, grid)
        # Validation chose the epoch: its figure is not that of a test.
        return {"test/accuracy": report.accuracy_fraction, "test/macro_f1": report.macro_f1} if split == "test" else {}
