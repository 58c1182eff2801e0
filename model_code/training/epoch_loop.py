"""What every run of epochs does: resume, keep the best and the last epoch, stop when the loss is not finite."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from model_code.errors import TrainingError
from model_code.training import checkpoints
from model_code.training.device import seed_everything
from model_code.training.results import Callback, Epoch, TrainingResult
from model_code.training.run_config import RunConfig

STEPS_BETWEEN_CHECKS_ON_CUDA = 50


class EpochLoop(ABC, Generic[Epoch]):
    """A run that trains in epochs; a subclass says what an epoch is.

    A run that was interrupted continues from its last checkpoint and ends, on a CPU, with the same bits as one that was
    not.

    Args:
        config: All settings.
        epochs: How many.
        run_dir: Where checkpoints go; created when missing.
        device: Where to train.
        callbacks: Told about each step and epoch, in order.

    Raises:
        TrainingError: The checkpoint in `run_dir` is damaged or belongs to another config.
    """

    epoch_type: type[Epoch]
    rate_setting: str  # the learning rate's name in the config, for the remedy
    network: nn.Module
    optimizer: Optimizer

    def __init__(
        self, config: RunConfig, epochs: int, run_dir: Path, device: torch.device, callbacks: Sequence[Callback]
    ) -> None:
        self.epochs, self.run_dir, self.device, self.callbacks = epochs, run_dir, device, callbacks
        self._rate = float(getattr(config, self.rate_setting))
        self._config_sha256 = config.sha256()
        self.generator = seed_everything(config.seed, device)
        self.state = checkpoints.load_state(run_dir, self._config_sha256)
        self.history: list[Epoch] = []
        self.best_epoch = 0

    @property
    def kept_network(self) -> nn.Module:
        """The network whose weights are saved."""
        return self.network

    @abstractmethod
    def run_epoch(self, epoch: int) -> Epoch:
        """Train and, where it is due, validate."""

    def is_saved(self, _epoch: int) -> bool:
        """Whether an epoch's checkpoint is written even when it is not the best."""
        return True

    def save_more(self) -> dict[str, Any]:
        """Return what else the next epoch depends on: state dicts for `TrainingState`'s `average` and `schedule`."""
        return {"average": None, "schedule": {}}

    def load_more(self, state: checkpoints.TrainingState) -> None:
        """Take up what `save_more` returned."""

    def train(self) -> TrainingResult[Epoch]:
        """Run every epoch that is left and return the whole run."""
        self._resume()
        for epoch in range(len(self.history) + 1, self.epochs + 1):
            metrics = self.run_epoch(epoch)
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

    def report_step(self, epoch: int, step: int, losses: Tensor) -> None:
        """Check the loss and tell the callbacks; on CUDA only now and then, since reading it waits for the device.

        Args:
            epoch: Counted from 1.
            step: Counted from 0.
            losses: One for each step of the epoch; those after `step` are not yet known.
        """
        steps = len(losses)
        if losses.is_cuda and step % STEPS_BETWEEN_CHECKS_ON_CUDA and step != steps - 1:
            return
        if not losses[: step + 1].isfinite().all():
            bad = int((~losses[: step + 1].isfinite()).nonzero()[0])
            raise self.diverged(f"the loss became {float(losses[bad])} at step {bad + 1} of epoch {epoch}")
        for callback in self.callbacks:
            callback.on_step(epoch, step + 1, steps, float(losses[step]))

    def diverged(self, what: str) -> TrainingError:
        """Return the error of a loss that is not finite."""
        return TrainingError(
            f"{what}; lower the learning rate (--set {self.rate_setting}={self._rate / 10:g}); "
            + (f"the checkpoint before stays in {self.run_dir}" if self.history else "no epoch was finished before")
        )

    def _save(self, metrics: Epoch) -> None:
        best = self.history[self.best_epoch - 1].score if self.best_epoch else None
        is_best = metrics.score is not None and metrics.score > (-math.inf if best is None else best)
        if is_best:
            self.best_epoch = metrics.epoch
            checkpoints.save_weights(self.kept_network, checkpoints.best_file(self.run_dir, metrics.epoch))
        if not is_best and not self.is_saved(metrics.epoch):
            return
        checkpoints.save_weights(self.kept_network, self.run_dir / checkpoints.LAST_FILE)
        checkpoints.save_state(
            self.run_dir,
            checkpoints.TrainingState(
                config_sha256=self._config_sha256,
                epoch=metrics.epoch,
                best_epoch=self.best_epoch,
                network=self.network.state_dict(),
                optimizer=self.optimizer.state_dict(),
                generator=self.generator.get_state(),
                torch_rng=torch.get_rng_state(),
                history=[asdict(epoch) for epoch in self.history],
                **self.save_more(),
            ),
        )
        checkpoints.remove_other_best(self.run_dir, self.best_epoch)

    def _resume(self) -> None:
        state, self.state = self.state, None
        if state is None:
            return
        checkpoints.remove_other_best(self.run_dir, state.best_epoch)
        self.network.load_state_dict(state.network)
        self.optimizer.load_state_dict(state.optimizer)
        self.load_more(state)
        self.generator.set_state(state.generator)
        torch.set_rng_state(state.torch_rng)
        self.history = [self.epoch_type(**epoch) for epoch in state.history]
        self.best_epoch = state.best_epoch
        for callback in self.callbacks:
            callback.on_resume(tuple(self.history))
