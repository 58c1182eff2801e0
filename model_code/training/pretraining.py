"""The SimSiam loop: two views of every picture, symmetric loss, and nearest neighbours that watch the backbone.

Shape suffixes: B = pictures of a batch, H = height, W = width, C = the three colour channels, D = embedding width.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD

from model_code.data.views import plain_view, two_views
from model_code.errors import TrainingError, UsageError
from model_code.evaluation.features import LabelledFeatures, compute_features, feature_std
from model_code.evaluation.knn import knn_accuracy
from model_code.models.networks import build_backbone
from model_code.models.picture_input import PictureInput
from model_code.models.simsiam import SimSiam
from model_code.training import checkpoints
from model_code.training.device import seed_everything
from model_code.training.losses import simsiam_loss
from model_code.training.pictures import Pictures
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.pretraining_results import (
    PretrainingCallback,
    PretrainingEpoch,
    PretrainingPictures,
    PretrainingResult,
)
from model_code.training.schedules import cosine_factor

STEPS_BETWEEN_CHECKS_ON_CUDA = 50


def build_simsiam(config: SimSiamConfig) -> SimSiam:
    """Return the untrained network of a config."""
    backbone, feature_width = build_backbone(config.network)
    return SimSiam(backbone, feature_width, config.projector_layers, config.embedding_width, config.bottleneck_width)


def load_backbone(config: SimSiamConfig, weights: Path) -> nn.Sequential:
    """Return a pretrained backbone in evaluation mode, on the CPU: uint8 pictures [B, H, W, C] in, features out.

    Raises:
        TrainingError: The weights are missing or belong to another network.
    """
    backbone, _ = build_backbone(config.network)
    checkpoints.load_weights(backbone, weights)
    return nn.Sequential(PictureInput(config.mean, config.std), backbone).eval()


def evaluation_features(
    config: SimSiamConfig, model: nn.Module, pictures: Pictures, classes: tuple[str, ...]
) -> LabelledFeatures:
    """Return what a backbone sees in the plain view of labelled pictures, in full precision.

    Args:
        config: Of the run that trained the backbone.
        model: As `load_backbone` returns it, on the pictures' device; is left in evaluation mode.
        pictures: uint8.
        classes: Names in label order.
    """
    show = partial(plain_view, image_size=config.views.image_size, enlargement=config.evaluation_enlargement)
    return LabelledFeatures(compute_features(model, pictures.images_NHWC, show), pictures.labels_N, classes)


def pretrain(
    config: SimSiamConfig,
    pictures: PretrainingPictures,
    run_dir: Path,
    device: torch.device,
    callbacks: Sequence[PretrainingCallback] = (),
) -> PretrainingResult:
    """Train a backbone without labels, or go on where an interrupted run in `run_dir` stopped.

    Each epoch visits the pictures once in a new random order; those that do not fill the last batch wait for the next
    epoch. A run that was interrupted continues from its last checkpoint and ends, on a CPU, with the same bits as one
    that was not. Labels are used only to watch.

    Args:
        config: All settings.
        pictures: On `device`.
        run_dir: Where checkpoints go; created when missing.
        device: Where to train.
        callbacks: Told about each step and epoch, in order.

    Raises:
        TrainingError: The loss is not finite (the last good checkpoint stays), or a checkpoint does not fit.
        UsageError: There are fewer pictures than one batch, or fewer memory pictures than neighbours.
        DiskFullError: A checkpoint could not be written; the one before stays.
    """
    if len(pictures.images_NHWC) < config.batch_size:
        raise UsageError(
            f"{len(pictures.images_NHWC)} training pictures are fewer than one batch of {config.batch_size}; "
            "raise --limit-train or lower --set batch_size"
        )
    if len(pictures.memory) < config.knn_neighbours:
        raise UsageError(
            f"{len(pictures.memory)} memory pictures are fewer than {config.knn_neighbours} neighbours; "
            "raise --limit-train or lower --set knn_neighbours"
        )
    return _Run(config, pictures, run_dir, device, callbacks).train()


class _Run:
    """Everything that changes while a run trains."""

    def __init__(
        self,
        config: SimSiamConfig,
        pictures: PretrainingPictures,
        run_dir: Path,
        device: torch.device,
        callbacks: Sequence[PretrainingCallback],
    ) -> None:
        self.config, self.pictures, self.run_dir, self.callbacks = config, pictures, run_dir, callbacks
        self.device = device
        self.config_sha256 = config.sha256()
        self.generator = seed_everything(config.seed, device)
        self.picture_input = PictureInput(config.mean, config.std).to(device)
        self.network = build_simsiam(config).to(device)
        if device.type == "cuda":
            self.network.to(memory_format=torch.channels_last)
        encoder = [*self.network.backbone.parameters(), *self.network.projector.parameters()]
        self.optimizer = SGD(
            [{"params": encoder}, {"params": list(self.network.predictor.parameters())}],
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.history: list[PretrainingEpoch] = []
        self.best_epoch = 0

    def train(self) -> PretrainingResult:
        self._resume()
        for epoch in range(len(self.history) + 1, self.config.epochs + 1):
            metrics = self._run_epoch(epoch)
            self.history.append(metrics)
            self._save(metrics)
            for callback in self.callbacks:
                callback.on_epoch_end(metrics)
        return PretrainingResult(
            history=tuple(self.history),
            best_epoch=self.best_epoch,
            best_weights=checkpoints.best_file(self.run_dir, self.best_epoch),
            last_weights=self.run_dir / checkpoints.LAST_FILE,
        )

    def _run_epoch(self, epoch: int) -> PretrainingEpoch:
        start = time.perf_counter()
        loss, spread = self._learn(epoch)
        trained = time.perf_counter()
        accuracy = self._measure_knn() if self._is_due(epoch, self.config.monitor_every_epochs) else None
        return PretrainingEpoch(
            epoch=epoch,
            loss=loss,
            feature_std=spread,
            knn_accuracy=accuracy,
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
            seconds=time.perf_counter() - start,
            pictures_per_s=len(self.pictures.images_NHWC) / (trained - start),
        )

    def _learn(self, epoch: int) -> tuple[float, float]:
        """Visit the pictures once; return the mean loss and the spread of the last projections."""
        config, images_NHWC = self.config, self.pictures.images_NHWC
        order = torch.randperm(len(images_NHWC), generator=self.generator, device=self.device)
        steps = len(images_NHWC) // config.batch_size
        losses = torch.zeros(steps, device=self.device)
        projections_BD = torch.empty(0)
        self.network.train()
        for step in range(steps):
            chosen = order[step * config.batch_size : (step + 1) * config.batch_size]
            self._set_learning_rate((epoch - 1) * steps + step, config.epochs * steps, config.warmup_epochs * steps)
            loss, projections_BD = self._embed(images_NHWC[chosen])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            losses[step] = loss.detach()
            self._report_step(epoch, step, steps, losses)
        return float(losses.mean()), feature_std(projections_BD)

    def _embed(self, images_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch and the projections of its first views."""
        first_BHWC, second_BHWC = two_views(images_BHWC, self.generator, self.config.views)
        is_half = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_half):
            first = self.network(self.picture_input(first_BHWC))
            second = self.network(self.picture_input(second_BHWC))
        return simsiam_loss(first, second), first.projections_BD

    def _set_learning_rate(self, step: int, steps: int, warmup_steps: int) -> None:
        """Move backbone and projector along the cosine; the predictor stays (the paper's Sec. 4.2)."""
        encoder, _ = self.optimizer.param_groups
        encoder["lr"] = self.config.learning_rate * cosine_factor(step, steps, warmup_steps)

    def _report_step(self, epoch: int, step: int, steps: int, losses: Tensor) -> None:
        """Check the loss and tell the callbacks; on CUDA only now and then, since reading it waits for the device."""
        if losses.is_cuda and step % STEPS_BETWEEN_CHECKS_ON_CUDA and step != steps - 1:
            return
        if not losses[: step + 1].isfinite().all():
            bad = int((~losses[: step + 1].isfinite()).nonzero()[0])
            raise TrainingError(
                f"the loss became {float(losses[bad])} at step {bad + 1} of epoch {epoch}; lower the learning rate "
                f"(--set base_learning_rate={self.config.base_learning_rate / 10:g}); "
                f"the checkpoint before stays in {self.run_dir}"
            )
        for callback in self.callbacks:
            callback.on_step(epoch, step + 1, steps, float(losses[step]))

    def _measure_knn(self) -> float:
        return knn_accuracy(
            self._evaluate(self.pictures.memory),
            self._evaluate(self.pictures.validation),
            self.config.knn_neighbours,
            self.config.knn_temperature,
        )

    def _evaluate(self, pictures: Pictures) -> LabelledFeatures:
        model = nn.Sequential(self.picture_input, self.network.backbone)
        return evaluation_features(self.config, model, pictures, self.pictures.classes)

    def _is_due(self, epoch: int, interval: int) -> bool:
        return epoch % interval == 0 or epoch == self.config.epochs

    def _save(self, metrics: PretrainingEpoch) -> None:
        previous_best = self.best_epoch
        best = self.history[previous_best - 1].knn_accuracy if previous_best else None
        is_best = metrics.knn_accuracy is not None and (best is None or metrics.knn_accuracy > best)
        if is_best:
            self.best_epoch = metrics.epoch
            checkpoints.save_weights(self.network.backbone, checkpoints.best_file(self.run_dir, metrics.epoch))
        if not is_best and not self._is_due(metrics.epoch, self.config.checkpoint_every_epochs):
            return
        checkpoints.save_weights(self.network.backbone, self.run_dir / checkpoints.LAST_FILE)
        checkpoints.save_state(
            self.run_dir,
            checkpoints.TrainingState(
                config_sha256=self.config_sha256,
                epoch=metrics.epoch,
                best_epoch=self.best_epoch,
                network=self.network.state_dict(),
                optimizer=self.optimizer.state_dict(),
                average=None,
                schedule={},
                generator=self.generator.get_state(),
                torch_rng=torch.get_rng_state(),
                history=[asdict(epoch) for epoch in self.history],
            ),
        )
        checkpoints.remove_other_best(self.run_dir, self.best_epoch)

    def _resume(self) -> None:
        state = checkpoints.load_state(self.run_dir, self.config_sha256)
        if state is None:
            return
        self.network.load_state_dict(state.network)
        self.optimizer.load_state_dict(state.optimizer)
        self.generator.set_state(state.generator)
        torch.set_rng_state(state.torch_rng)
        self.history = [PretrainingEpoch(**{**epoch, "epoch": int(epoch["epoch"])}) for epoch in state.history]  # type: ignore[arg-type]
        self.best_epoch = state.best_epoch
        for callback in self.callbacks:
            callback.on_resume(tuple(self.history))
