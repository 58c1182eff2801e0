"""Linear evaluation: one linear layer learned on the features of a frozen backbone.

Source: Chen & He 2021, arXiv:2011.10566, Sec. 4 and Appendix D; the published SimSiam runs learn with SGD at
30 * batch / 256. The features are computed once, so pictures are not augmented.

Shape suffixes: N = pictures, B = pictures of a batch, D = features, K = classes.
"""

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.optim import SGD

from model_code.errors import TrainingError, UsageError
from model_code.evaluation.features import LabelledFeatures
from model_code.training.config import PositiveFloat
from model_code.training.pretraining_config import REFERENCE_BATCH
from model_code.training.schedules import cosine_factor


class LinearProbeConfig(BaseModel):
    """Settings of one linear evaluation.

    Attributes:
        epochs: Passes over the training features.
        warmup_epochs: Epochs over which the learning rate rises to its highest value; then it follows half a cosine.
        batch_size: Pictures in one step.
        base_learning_rate: Of SGD for a batch of 256 pictures.
        momentum: Of SGD.
        weight_decay: Of SGD.
        seed: Of initial weights and order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=100, ge=1)
    warmup_epochs: int = Field(default=10, ge=0)
    batch_size: int = Field(default=256, ge=1)
    base_learning_rate: PositiveFloat = 30.0
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _has_epochs_after_warmup(self) -> "LinearProbeConfig":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} must be below epochs={self.epochs}")
        return self


@dataclass(frozen=True)
class LinearProbeResult:
    """What the linear layer reaches after its last epoch.

    Attributes:
        train_accuracy: Share of right labels of the features learned from, in [0, 1].
        test_accuracy: The same of the others.
        layer: The learned layer, on the features' device.
    """

    train_accuracy: float
    test_accuracy: float
    layer: nn.Linear


def train_linear_probe(
    train: LabelledFeatures, test: LabelledFeatures, config: LinearProbeConfig | None = None
) -> LinearProbeResult:
    """Learn one linear layer on frozen features and measure it on others; every picture counts once.

    Args:
        train: Features to learn from.
        test: Features to measure on, on the same device.
        config: Settings; None takes the published ones.

    Raises:
        UsageError: The two have different classes, or one of them is empty.
        TrainingError: The loss is not finite.
    """
    config = config or LinearProbeConfig()
    if train.classes != test.classes or not len(train) or not len(test):
        raise UsageError(
            f"{len(train)} features of {', '.join(train.classes)} cannot be probed on {len(test)} of "
            f"{', '.join(test.classes)}; give two splits of one data set, neither empty"
        )
    device = train.features_ND.device
    generator = torch.Generator(device=device).manual_seed(config.seed)
    layer = _new_layer(train.features_ND.shape[1], len(train.classes), generator)
    learning_rate = config.base_learning_rate * config.batch_size / REFERENCE_BATCH
    optimizer = SGD(layer.parameters(), lr=learning_rate, momentum=config.momentum, weight_decay=config.weight_decay)
    steps_per_epoch = -(-len(train) // config.batch_size)
    steps, warmup_steps = config.epochs * steps_per_epoch, config.warmup_epochs * steps_per_epoch
    step = 0
    for epoch in range(1, config.epochs + 1):
        loss = torch.zeros((), device=device)
        for chosen in torch.randperm(len(train), generator=generator, device=device).split(config.batch_size):
            optimizer.param_groups[0]["lr"] = learning_rate * cosine_factor(step, steps, warmup_steps)
            loss = nn.functional.cross_entropy(layer(train.features_ND[chosen]), train.labels_N[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
        if not loss.isfinite():
            raise TrainingError(
                f"the probe's loss became {float(loss.detach())} in epoch {epoch}; lower base_learning_rate "
                f"(now {config.base_learning_rate:g})"
            )
    return LinearProbeResult(_accuracy(layer, train), _accuracy(layer, test), layer)


def _new_layer(feature_width: int, classes: int, generator: torch.Generator) -> nn.Linear:
    """Return a layer with small random weights, drawn from the generator and not from torch's global one."""
    layer = nn.Linear(feature_width, classes, device=generator.device)
    nn.init.normal_(layer.weight, std=0.01, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def _accuracy(layer: nn.Linear, pictures: LabelledFeatures) -> float:
    predicted_N: Tensor = layer(pictures.features_ND).argmax(dim=1)
    return int((predicted_N == pictures.labels_N).sum()) / len(pictures)
