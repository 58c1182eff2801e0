"""Optimisers and learning-rate schedules by the names that a config gives them."""

import warnings
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, ReduceLROnPlateau

from model_code.training.config import TrainingConfig
from model_code.training.schedules import cosine_factor


def build_optimizer(config: TrainingConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Return the optimiser of a config; weight decay acts on every parameter."""
    rate, decay = config.learning_rate, config.weight_decay
    parameters = list(parameters)
    # One kernel for all parameters.
    is_fused = parameters[0].is_cuda or None
    if config.optimizer == "sgd":
        return SGD(
            parameters,
            rate,
            momentum=config.momentum,
            weight_decay=decay,
            nesterov=config.is_nesterov,
            fused=is_fused,
        )
    kind = Adam if config.optimizer == "adam" else AdamW
    return kind(parameters, rate, betas=config.adam_betas, weight_decay=decay, fused=is_fused)


class Schedule:
    """The learning rate over a run: `cosine` moves with each step, `multistep` and `plateau` with each epoch.

    Args:
        config: Names the schedule and its settings.
        optimizer: Whose learning rate it sets.
        steps_per_epoch: Optimiser steps in one epoch.
    """

    def __init__(self, config: TrainingConfig, optimizer: Optimizer, steps_per_epoch: int) -> None:
        self._is_per_step = config.schedule == "cosine"
        self._scheduler: LambdaLR | MultiStepLR | ReduceLROnPlateau
        if config.schedule == "cosine":
            warmup, total = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch

            # The scheduler asks once more after the last step.
            self._scheduler = LambdaLR(optimizer, lambda step: cosine_factor(min(step, total - 1), total, warmup))
        elif config.schedule == "plateau":
            self._scheduler = ReduceLROnPlateau(
                optimizer,
                factor=config.decay_factor,
                patience=config.patience_epochs,
                min_lr=config.min_learning_rate,
            )
        else:
            milestones = [max(1, round(point * config.epochs)) for point in config.decay_points]
            self._scheduler = MultiStepLR(optimizer, milestones, gamma=config.decay_factor)

    def end_step(self) -> None:
        """An optimiser step is done."""
        if self._is_per_step:
            self._scheduler.step()  # type: ignore[call-arg]

    def end_epoch(self, validation_loss: float) -> None:
        """An epoch is validated."""
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(validation_loss)
        elif not self._is_per_step:
            with warnings.catch_warnings():
                # A run that was interrupted after an epoch's last step has taken no step in this process.
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs; it loads with weights_only."""
        return {key: value for key, value in self._scheduler.state_dict().items() if key != "lr_lambdas"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        extra = {"lr_lambdas": [None]} if isinstance(self._scheduler, LambdaLR) else {}
        self._scheduler.load_state_dict({**state, **extra})
