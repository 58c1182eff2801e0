"""Labelled images -> a trained network -> its report on the test images."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from flows.experiments.experiment import EpochExperiment, ExperimentResult, follow_epochs
from model_code.data.cache import PackedDataset
from model_code.evaluation.figures import GRID_SIDE, draw_prediction_grid
from model_code.evaluation.metrics import measure, predict_logits
from model_code.models.networks import count_parameters
from model_code.tracking.run_tracker import RunTracker
from model_code.training.config import TrainingConfig, suggest_more_validation
from model_code.training.images import load_images, load_unlabelled
from model_code.training.processes import Processes
from model_code.training.pseudo_labels import PseudoLabels, add_pseudo_labels, choose_pseudo_labels, load_pseudo_labels
from model_code.training.results import Callback, EpochMetrics, TrainingResult
from model_code.training.run_folder import RunFolder
from model_code.training.supervised import check_images, fit, load_model


class SupervisedExperiment(EpochExperiment):
    """One supervised run; the arguments are those of `open_experiment`."""

    def __init__(
        self, config: TrainingConfig, dataset: PackedDataset, processes: Processes, pretrained: str | None
    ) -> None:
        self._config, self._pretrained = config, pretrained
        self._images = load_images(dataset, config, processes.device)
        self._has_own_validation = "validation" in dataset.splits
        check_images(config, self._images)
        self._unlabelled_NHWC: Tensor | None = None
        if config.pseudo_label_confidence is not None:
            self._unlabelled_NHWC = load_unlabelled(dataset, config, processes.device)
        self._pseudo_labels: PseudoLabels | None = None
        super().__init__(config, processes, self._images.train.images_NHWC)

    @property
    def images_line(self) -> str:
        """Counts of each split."""
        images = self._images
        tests = 0 if images.test is None else len(images.test)
        unlabelled = "" if self._unlabelled_NHWC is None else f"{len(self._unlabelled_NHWC)} unlabelled, "
        more = suggest_more_validation(self._config, len(images.validation), is_own=self._has_own_validation)
        return (
            f"{len(images.train)} training, {unlabelled}{len(images.validation)} validation, {tests} test images, "
            f"{len(images.classes)} classes" + (f"; few validation images: {more} holds out more" if more else "")
        )

    def run(self, folder: RunFolder, tracker: RunTracker) -> ExperimentResult:
        """Train, then label the final images once."""
        config = self._config
        self._label(folder.path)
        images = self._images
        if self._pseudo_labels is not None and self._unlabelled_NHWC is not None:
            summary = self._pseudo_labels.summarise(images.classes, len(self._unlabelled_NHWC))
            tracker.log_pseudo_labels({"confidence": config.pseudo_label_confidence} | summary)
        with follow_epochs(folder, tracker, config.epochs, self._processes) as (callbacks, events):
            training = self.train(folder.path, callbacks)
            model = load_model(config, len(images.classes), images.image_size, training.best_weights)
            model.to(self._processes.device)
            events.write_graph(model, images.validation.images_NHWC[:1].to(self._processes.device))
        counts = {
            "train/pictures": len(images.train),
            "validation/pictures": len(images.validation),
            "network/parameters": count_parameters(model),
        }
        if self._pseudo_labels is not None:
            counts["train/pseudo_labels"] = len(self._pseudo_labels.labels_N)
        tracker.log_metrics(counts)
        return ExperimentResult(self._evaluate(tracker, model), training)

    def train(self, run_dir: Path, callbacks: Sequence[Callback]) -> TrainingResult[EpochMetrics]:
        """Train the network."""
        self._label(run_dir)
        return fit(self._config, self._images, run_dir, self._processes, callbacks, self._pretrained, self._engine)

    def _label(self, run_dir: Path) -> None:
        """Give images pseudo-labels, at once in all processes; a resumed run keeps those that it has begun with."""
        images, unlabelled_NHWC = self._images, self._unlabelled_NHWC
        confidence = self._config.pseudo_label_confidence
        if confidence is None or self._pseudo_labels is not None:
            return
        assert unlabelled_NHWC is not None, "loaded where there is a confidence"
        assert self._pretrained is not None, "the config wants a recipe's"
        labels = load_pseudo_labels(run_dir)
        if labels is None:
            model = load_model(self._config, len(images.classes), images.image_size, Path(self._pretrained))
            model.to(self._processes.device)
            labels = choose_pseudo_labels(unlabelled_NHWC, model, confidence, self._processes)
            if self._processes.is_first:
                labels.save(run_dir)
        if self._processes.is_first:
            print(f"  pseudo-labels for {len(labels.labels_N)} of {len(unlabelled_NHWC)} images", flush=True)
        self._pseudo_labels = labels
        self._images = add_pseudo_labels(images, unlabelled_NHWC, labels)

    def _evaluate(self, tracker: RunTracker, model: nn.Module) -> dict[str, float]:
        """Label the test images, or without any the validation images, and log what came out."""
        split, chosen = self._images.final
        classes = self._images.classes
        logits_NK = predict_logits(model, chosen.images_NHWC, f"answering the {split} images")
        report = measure(logits_NK, chosen.labels_N)
        shown = torch.linspace(0, len(chosen) - 1, min(GRID_SIDE**2, len(chosen))).long()
        grid = draw_prediction_grid(
            chosen.images_NHWC[shown.to(chosen.images_NHWC.device)].to("cpu").numpy(),
            chosen.labels_N.cpu()[shown].numpy(),
            logits_NK.argmax(1)[shown].numpy(),
            classes,
        )
        tracker.log_report(split, report, classes, grid)
        # Validation chose the epoch: its figure is not that of a test.
        if split != "test":
            return {}
        return {
            "test/accuracy": report.accuracy_fraction,
            "test/top5_accuracy": report.top5_accuracy,
            "test/macro_f1": report.macro_f1,
        }
