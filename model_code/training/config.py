"""What a training run is: one frozen, checked config. A recipe is a function that returns one."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from model_code.errors import UsageError
from model_code.models.networks import NETWORKS

FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Channels = tuple[FiniteFloat, FiniteFloat, FiniteFloat]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

CIFAR10_MEAN: Channels = (0.4914, 0.4822, 0.4465)
CIFAR10_STD: Channels = (0.2023, 0.1994, 0.2010)


class TrainingConfig(BaseModel):
    """Every setting of one supervised training run; two runs with equal configs and data are the same experiment.

    Attributes:
        recipe: Name of the recipe that made this config.
        profile: `full` is the documented run, `smoke` takes seconds on two CPU cores, `custom` has settings of its own;
            only `full` runs are compared with published figures.
        dataset: Name of a packed data set (`darkroom data list`).
        network: Key of `model_code.models.networks.NETWORKS`.
        pretrained_weights: A weights file, `torchvision` for its ImageNet download, or None; the last layer is dropped.
        epochs: Passes over the training pictures.
        batch_size: Pictures in one step.
        optimizer: `sgd`, `adam` or `adamw`.
        learning_rate: At the start; of a warm-up, at its end.
        momentum: Of SGD.
        is_nesterov: Whether SGD looks ahead.
        adam_betas: Of Adam and AdamW.
        weight_decay: On all parameters.
        schedule: `multistep` (see `decay_points`), `plateau` (by `decay_factor` when the validation loss has not fallen
            for more than `patience_epochs`, not below `min_learning_rate`), or `cosine` to 0 over all steps.
        decay_points: Fractions of the epochs after which the learning rate is multiplied by `decay_factor`;
            (0.3, 0.6, 0.9) is after 30, 60 and 90 of 100 epochs.
        decay_factor: See `decay_points`.
        patience_epochs: Of `plateau`.
        min_learning_rate: Of `plateau`.
        warmup_epochs: Of `cosine`: the learning rate rises linearly over so many epochs.
        crop_padding_pixels: Black border of the random crop.
        has_flip: Whether pictures are mirrored at random.
        cutout_pixels: Side of the square that is hidden in each picture; 0 hides none.
        cutmix_alpha: Of CutMix's Beta distribution; 0 mixes nothing.
        label_smoothing: Share of the target spread over all classes.
        ema_decay: Of the moving average of the weights, for each step; the average is what is validated and kept. None
            keeps the weights themselves.
        mean: Per channel, subtracted from pictures in [0, 1].
        std: Per channel, divides them.
        validation_fraction: Share of the training pictures kept for choosing the best epoch.
        split_seed: Seed of that split; runs that are compared share it.
        limit_train: Use so many training pictures (before the split, same share of each class); None uses all.
        seed: Of initial weights, order of pictures and augmentation.
        device: `auto` is CUDA when there is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    profile: Literal["full", "smoke", "custom"] = "full"
    dataset: str = "cifar10"
    network: str
    pretrained_weights: str | None = None
    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=128, ge=2)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 0.01
    momentum: float = Field(default=0.9, ge=0, lt=1)
    is_nesterov: bool = False
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: float = Field(default=5e-4, ge=0, allow_inf_nan=False)
    schedule: Literal["multistep", "plateau", "cosine"] = "multistep"
    decay_points: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    decay_factor: PositiveFloat = 0.1
    patience_epochs: int = Field(default=1, ge=0)
    min_learning_rate: float = Field(default=0, ge=0, allow_inf_nan=False)
    warmup_epochs: int = Field(default=0, ge=0)
    crop_padding_pixels: int = Field(default=4, ge=0, le=16)
    has_flip: bool = True
    cutout_pixels: int = Field(default=0, ge=0, le=32)
    cutmix_alpha: float = Field(default=0, ge=0, allow_inf_nan=False)
    label_smoothing: float = Field(default=0, ge=0, lt=1)
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    mean: Channels = CIFAR10_MEAN
    std: Channels = CIFAR10_STD
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    split_seed: Seed = 42
    limit_train: int | None = Field(default=None, ge=1)
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator("network")
    @classmethod
    def _is_known(cls, network: str) -> str:
        if network not in NETWORKS:
            raise ValueError(f"choose one of {', '.join(NETWORKS)}")
        return network

    @field_validator("std")
    @classmethod
    def _is_positive(cls, std: Channels) -> Channels:
        if min(std) <= 0:
            raise ValueError("every channel must be above 0")
        return std

    @model_validator(mode="after")
    def _has_momentum_for_nesterov(self) -> "TrainingConfig":
        if self.is_nesterov and not self.momentum:
            raise ValueError("is_nesterov needs a momentum above 0")
        return self

    def sha256(self) -> str:
        """Return the hash that names this experiment, hexadecimal."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def override(config: TrainingConfig, changes: Mapping[str, Any]) -> TrainingConfig:
    """Return the config with some settings replaced and everything checked again.

    Args:
        config: Where to start from.
        changes: New values by name; text is parsed as the setting's type.

    Raises:
        UsageError: No such setting, or a value outside its range; one line names them.
    """
    allowed = sorted(set(TrainingConfig.model_fields) - {"recipe", "profile"})
    unknown = sorted(set(changes) - set(allowed))
    if unknown:
        raise UsageError(f"no setting {', '.join(map(repr, unknown))}; settings are {', '.join(allowed)}")
    try:
        return TrainingConfig.model_validate({**config.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}={first['input']!r}: " if first["loc"] else ""
        raise UsageError(f"{what}{first['msg']}") from error


def parse_assignment(text: str) -> tuple[str, Any]:
    """Return (key, value) of `key=value`; the value is read as JSON where it is JSON, else as text.

    Raises:
        UsageError: There is no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {text!r}: write key=value, for example --set learning_rate=0.05")
    try:
        return key.strip(), json.loads(value)
    except (ValueError, RecursionError):
        return key.strip(), value
