"""The supervised loop: cross-entropy by gradient descent, validation after each epoch, best and last checkpoint.

Shape suffixes: B = pictures of a batch, H = height, W = width, C = the three colour channels.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model_code.data.augmentation import crop_and_flip
from model_code.data.mixing import cut_out, mix_rectangles
from model_code.errors import TrainingError, UsageError
from model_code.evaluation.metrics import measure, predict_logits
from model_code.models.networks import build_network
from model_code.models.picture_input import PictureInput
from model_code.training import checkpoints
from model_code.training.config import TrainingConfig
from model_code.training.device import seed_everything
from model_code.training.optimization import Schedule, build_optimizer
from model_code.training.pictures import TrainingPictures
from model_code.training.results import Callback, EpochMetrics, TrainingResult


def build_model(config: TrainingConfig, num_classes: int) -> nn.Sequential:
    """Return the untrained model of a config: uint8 pictures [B, H, W, C] in, logits [B, classes] out."""
    return nn.Sequential(PictureInput(config.mean, config.std), build_network(config.network, num_classes))


def load_model(config: TrainingConfig, num_classes: int, weights: Path) -> nn.Sequential:
    """Return a trained model in evaluation mode, on the CPU.

    Raises:
        TrainingError: The weights are missing or belong to another network.
    """
    model = build_model(config, num_classes)
    checkpoints.load_weights(model[1], weights)
    return model.eval()


def check_enough_pictures(config: TrainingConfig, pictures: TrainingPictures) -> None:
    """Refuse a run whose pictures do not fill one batch.

    Raises:
        UsageError: There are fewer training pictures than one batch.
    """
    if len(pictures.train) < config.batch_size:
        raise UsageError(
            f"{len(pictures.train)} training pictures are fewer than one batch of {config.batch_size}; "
            "raise --limit-train or lower --set batch_size"
        )


def fit(
    config: TrainingConfig,
    pictures: TrainingPictures,
    run_dir: Path,
    device: torch.device,
    callbacks: Sequence[Callback] = (),
) -> TrainingResult:
    """Train a network, or go on where an interrupted run in `run_dir` stopped.

    Each epoch visits the training pictures once in a new random order; the pictures that do not fill the last batch
    wait for the next epoch. A run that was interrupted continues from its last finished epoch and ends, on a CPU, with
    the same bits as one that was not.

    Args:
        config: All settings.
        pictures: On `device`.
        run_dir: Where checkpoints go; created when missing.
        device: Where to train.
        callbacks: Told about each step and epoch, in order.

    Raises:
        TrainingError: The loss is not finite (the last good checkpoint stays), or a checkpoint does not fit.
        UsageError: There are fewer training pictures than one batch.
        DiskFullError: A checkpoint could not be written; the one before stays.
    """
    check_enough_pictures(config, pictures)
    return _Run(config, pictures, run_dir, device, callbacks).train()


class _Run:
    """Everything that changes while a run trains."""

    def __init__(
        self,
        config: TrainingConfig,
        pictures: TrainingPictures,
        run_dir: Path,
        device: torch.device,
        callbacks: Sequence[Callback],
    ) -> None:
        self.config, self.pictures, self.run_dir, self.callbacks = config, pictures, run_dir, callbacks
        self.config_sha256 = config.sha256()
        self.generator = seed_everything(config.seed, device)
        self.state = checkpoints.load_state(run_dir, self.config_sha256)
        model = build_model(config, len(pictures.classes))
        if config.pretrained_weights and self.state is None:
            checkpoints.load_pretrained(model[1], config.pretrained_weights)
        self.model = model.to(device)
        self.average: AveragedModel | None = None
        if config.ema_decay is not None:
            average = get_ema_multi_avg_fn(config.ema_decay)
            self.average = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        self.optimizer = build_optimizer(config, self.model.parameters())
        self.schedule = Schedule(config, self.optimizer, len(pictures.train) // config.batch_size)
        self.history: list[EpochMetrics] = []
        self.best_epoch = 0

    @property
    def kept_model(self) -> nn.Sequential:
        """The model that is validated and saved: the moving average where there is one."""
        return self.model if self.average is None else cast(nn.Sequential, self.average.module)

    def train(self) -> TrainingResult:
        self._resume()
        for epoch in range(len(self.history) + 1, self.config.epochs + 1):
            metrics = self._run_epoch(epoch)
            self.history.append(metrics)
            self._save(metrics)
            for callback in self.callbacks:
                callback.on_epoch_end(metrics)
        return TrainingResult(
            history=tuple(self.history),
            best_epoch=self.best_epoch,
            best_weights=checkpoints.best_file(self.run_dir, self.best_epoch),
            last_weights=self.run_dir / checkpoints.LAST_FILE,
        )

    def _run_epoch(self, epoch: int) -> EpochMetrics:
        start = time.perf_counter()
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        train_loss, train_accuracy = self._learn(epoch)
        trained = time.perf_counter()
        validation = self.pictures.validation
        report = measure(predict_logits(self.kept_model, validation.images_NHWC), validation.labels_N)
        if not math.isfinite(report.loss):
            raise self._diverged(f"the validation loss became {report.loss} after epoch {epoch}")
        self.schedule.end_epoch(report.loss)
        return EpochMetrics(
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            validation_loss=report.loss,
            validation_accuracy=report.accuracy_fraction,
            validation_macro_f1=report.macro_f1,
            learning_rate=learning_rate,
            seconds=time.perf_counter() - start,
            pictures_per_s=len(self.pictures.train) / (trained - start),
        )

    def _learn(self, epoch: int) -> tuple[float, float]:
        """Visit the training pictures once; return mean loss and accuracy."""
        train, batch_size = self.pictures.train, self.config.batch_size
        device = train.labels_N.device
        order = torch.randperm(len(train), generator=self.generator, device=device)
        steps = len(train) // batch_size
        losses, right = torch.zeros(steps, device=device), torch.zeros((), device=device)
        self.model.train()
        for step in range(steps):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            labels_B = train.labels_N[chosen]
            loss, logits_BK = self._forward(train.images_NHWC[chosen], labels_B)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.end_step()
            if self.average is not None:
                self.average.update_parameters(self.model)
            losses[step] = loss.detach()
            right += (logits_BK.detach().argmax(1) == labels_B).sum()
            self._report_step(epoch, step, steps, losses)
        return float(losses.mean()), float(right) / (steps * batch_size)

    def _forward(self, images_BHWC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch; return its mean loss and the logits."""
        config, generator = self.config, self.generator
        images_BHWC = crop_and_flip(images_BHWC, config.crop_padding_pixels, config.has_flip, generator)
        images_BHWC = cut_out(images_BHWC, config.cutout_pixels, generator)
        if not config.cutmix_alpha:
            logits_BK = self.model(images_BHWC)
            return nn.functional.cross_entropy(logits_BK, labels_B, label_smoothing=config.label_smoothing), logits_BK
        images_BHWC, pasted_labels_B, own_share_B = mix_rectangles(
            images_BHWC, labels_B, config.cutmix_alpha, generator
        )
        logits_BK = self.model(images_BHWC)
        own_loss_B, pasted_loss_B = (
            nn.functional.cross_entropy(logits_BK, targets, reduction="none", label_smoothing=config.label_smoothing)
            for targets in (labels_B, pasted_labels_B)
        )
        return (own_share_B * own_loss_B + (1 - own_share_B) * pasted_loss_B).mean(), logits_BK

    def _report_step(self, epoch: int, step: int, steps: int, losses: torch.Tensor) -> None:
        """Check the loss and tell the callbacks; on CUDA only now and then, since reading it waits for the device."""
        if losses.is_cuda and step % 50 and step != steps - 1:
            return
        if not losses[: step + 1].isfinite().all():
            bad = int((~losses[: step + 1].isfinite()).nonzero()[0])
            raise self._diverged(f"the loss became {float(losses[bad])} at step {bad + 1} of epoch {epoch}")
        for callback in self.callbacks:
            callback.on_step(epoch, step + 1, steps, float(losses[step]))

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"{what}; lower the learning rate (--set learning_rate={self.config.learning_rate / 10:g}); "
            f"the checkpoint before stays in {self.run_dir}"
        )

    def _save(self, metrics: EpochMetrics) -> None:
        network, previous_best = self.kept_model[1], self.best_epoch
        is_best = not previous_best or metrics.validation_accuracy > self.history[previous_best - 1].validation_accuracy
        if is_best:
            self.best_epoch = metrics.epoch
            checkpoints.save_weights(network, checkpoints.best_file(self.run_dir, metrics.epoch))
        checkpoints.save_weights(network, self.run_dir / checkpoints.LAST_FILE)
        checkpoints.save_state(
            self.run_dir,
            checkpoints.TrainingState(
                config_sha256=self.config_sha256,
                epoch=metrics.epoch,
                best_epoch=self.best_epoch,
                network=self.model[1].state_dict(),
                average=None if self.average is None else self.average.state_dict(),
                optimizer=self.optimizer.state_dict(),
                schedule=self.schedule.state_dict(),
                generator=self.generator.get_state(),
                torch_rng=torch.get_rng_state(),
                history=[asdict(epoch) for epoch in self.history],
            ),
        )
        checkpoints.remove_other_best(self.run_dir, self.best_epoch)

    def _resume(self) -> None:
        state, self.state = self.state, None
        if state is None:
            return
        checkpoints.remove_other_best(self.run_dir, state.best_epoch)
        self.model[1].load_state_dict(state.network)
        self.optimizer.load_state_dict(state.optimizer)
        self.schedule.load_state_dict(state.schedule)
        if self.average is not None and state.average is not None:
            self.average.load_state_dict(state.average)
        self.generator.set_state(state.generator)
        torch.set_rng_state(state.torch_rng)
        self.history = [EpochMetrics(**{**epoch, "epoch": int(epoch["epoch"])}) for epoch in state.history]  # type: ignore[arg-type]
        self.best_epoch = state.best_epoch
        for callback in self.callbacks:
            callback.on_resume(tuple(self.history))
