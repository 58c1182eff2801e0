"""Optimisers and learning-rate schedules by the names that a config gives them."""

import warnings
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, ReduceLROnPlateau

from model_code.models.networks import list_backbone
from model_code.training.config import TrainingConfig
from model_code.training.schedules import cosine_factor, triangular_factor


def build_optimizer(config: TrainingConfig, model: nn.Module, is_recorded: bool = False) -> Optimizer:
    """Return the optimiser of a model's trainable parameters; weight decay acts on all of them.

    Args:
        config: Its settings.
        model: Model that it trains.
        is_recorded: True if a CUDA graph replays it.
    """
    rate, decay = config.learning_rate, config.weight_decay
    groups = _group_parameters(config, model)
    # One kernel for all parameters.
    is_fused = next(model.parameters()).is_cuda or None
    if config.optimizer == "sgd":
        return SGD(
            groups,
            rate,
            momentum=config.momentum,
            weight_decay=decay,
            nesterov=config.is_nesterov,
            fused=is_fused,
        )
    kind = Adam if config.optimizer == "adam" else AdamW
    is_capturable = bool(is_recorded and is_fused)
    return kind(groups, rate, betas=config.adam_betas, weight_decay=decay, fused=is_fused, capturable=is_capturable)


def _group_parameters(config: TrainingConfig, model: nn.Module) -> list[dict[str, Any]]:
    """Return the trainable parameters, a group for each learning rate; the one with the config's own is the first.

    A backbone that thaws later has groups of its own: torch's fused SGD refuses a group in which only some parameters
    have momentum.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    biases = {id(norm.bias) for norm in norms}
    backbone = {id(one) for network in model.children() for one in list_backbone(network)}
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {(1, 1, False): []}
    for one in model.parameters():
        if one.requires_grad:
            backbone_factor = config.backbone_rate_factor if id(one) in backbone else 1
            bias_factor = config.norm_bias_rate_factor if id(one) in biases else 1
            is_thawing = config.frozen_epochs > 0 and id(one) in backbone
            groups.setdefault((backbone_factor, bias_factor, is_thawing), []).append(one)
    return [
        {
            "params": parameters,
            "lr": config.learning_rate * backbone_factor * bias_factor,
            # SGD multiplies the decay by the rate.
            "weight_decay": config.weight_decay / bias_factor,
        }
        for (backbone_factor, bias_factor, _), parameters in groups.items()
        if parameters
    ]


class Schedule:
    """The learning rate over a run: `cosine` and `triangular` move with each step, the others with each epoch.

    Args:
        config: Names the schedule and its settings.
        optimizer: Whose learning rate it sets.
        steps_per_epoch: Optimiser steps in one epoch.
    """

    def __init__(self, config: TrainingConfig, optimizer: Optimizer, steps_per_epoch: int) -> None:
        self._is_per_step = config.schedule in {"cosine", "triangular"}
        self._watches_training = config.plateau_watches == "train"
        self._scheduler: LambdaLR | MultiStepLR | ReduceLROnPlateau
        total = config.epochs * steps_per_epoch
        # The scheduler asks once more after the last step.
        if config.schedule == "cosine":
            warmup = config.warmup_epochs * steps_per_epoch
            self._scheduler = LambdaLR(optimizer, lambda step: cosine_factor(min(step, total - 1), total, warmup))
        elif config.schedule == "triangular":
            self._scheduler = LambdaLR(
                optimizer, lambda step: triangular_factor(min(step, total - 1), total, config.triangle)
            )
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

    def end_epoch(self, train_loss: float, validation_loss: float) -> None:
        """An epoch is validated; the losses are its means."""
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(train_loss if self._watches_training else validation_loss)
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
        is_lambda = isinstance(self._scheduler, LambdaLR)
        extra = {"lr_lambdas": [None] * len(self._scheduler.base_lrs)} if is_lambda else {}
        self._scheduler.load_state_dict({**state, **extra})
