"""Settings that all configs of runs share: images, seed, length; and the change of single settings.

A config is frozen and checked when it is made. `kind` tells the kinds apart wherever a config is read from a file.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from model_code.errors import UsageError
from model_code.hints import explain_rule, suggest
from model_code.models.networks import NETWORKS

FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Channels = tuple[FiniteFloat, FiniteFloat, FiniteFloat]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Width = Annotated[int, Field(ge=1, le=2**16)]


def _check_network(network: str) -> str:
    if network not in NETWORKS:
        hint = suggest(network, known=NETWORKS) or f"the networks are {', '.join(NETWORKS)}"
        raise ValueError(f"no such network; {hint.rstrip()}")
    return network


NetworkName = Annotated[str, AfterValidator(_check_network)]

CIFAR10_MEAN: Channels = (0.4914, 0.4822, 0.4465)
CIFAR10_STD: Channels = (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)

# Learning rates that grow with the batch are given for this many images in a step.
REFERENCE_BATCH = 256

# What a recipe and a profile decide, and `--set` cannot change.
FIXED_SETTINGS = {"kind", "recipe", "profile"}


# Settings younger than hashes on record: with these values they are what was computed before.
_LATER_SETTINGS = {
    "engine.kernels": "deterministic",
    "engine.readers": 1,
    "precision": "float32",
    "backbone_rate_factor": 1,
    "frozen_epochs": 0,
}


class RunConfig(BaseModel):
    """Settings of every run; two runs with equal configs and data are the same experiment.

    Attributes:
        recipe: Name of the recipe that made this config, which the catalog writes in.
        profile: `full` is the documented run, `smoke` takes seconds on two CPU cores, `custom` has settings of its own;
            only `full` runs are compared with published figures.
        dataset: Name of a packed data set (`darkroom data list`).
        batch_size: Images in one step.
        mean: Per channel, subtracted from images in [0, 1].
        std: Per channel, divides them.
        split_seed: Seed of the choice of images; runs that are compared share it.
        limit_train: Use so many training images (before the split, same share of each class); None uses all.
        limit_test: Use so many test images, and so many of validation images that the data set brings along; None
            uses all.
        seed: Seed of everything random but the choice of images.
        device: `auto` is CUDA when there is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str = ""
    profile: Literal["full", "smoke", "custom"] = "full"
    dataset: str = "cifar10"
    batch_size: int = Field(default=128, ge=2)
    mean: Channels = CIFAR10_MEAN
    std: Channels = CIFAR10_STD
    split_seed: Seed = 42
    limit_train: int | None = Field(default=None, ge=1)
    limit_test: int | None = Field(default=None, ge=1)
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator("std")
    @classmethod
    def _is_positive(cls, std: Channels) -> Channels:
        if min(std) <= 0:
            raise ValueError("every channel must be above 0")
        return std

    def sha256(self) -> str:
        """Return the hash that names this experiment, hexadecimal."""
        settings = self.model_dump(mode="json")
        for name, default in _LATER_SETTINGS.items():
            outer, _, inner = name.rpartition(".")
            group = settings.get(outer, {}) if outer else settings
            if group.get(inner) == default:
                del group[inner]
        canonical = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def flatten(self) -> dict[str, Any]:
        """Return every setting as JSON has it, those inside others by names such as `views.hue`."""
        flat: dict[str, Any] = {}
        for key, value in self.model_dump(mode="json").items():
            flat |= {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
        return flat


Config = TypeVar("Config", bound=RunConfig)


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return the config with some settings replaced and everything checked again.

    Args:
        config: Config to start from.
        changes: New values by name, `views.hue` for a setting inside another; text is parsed as the setting's type.

    Raises:
        UsageError: No such setting, or a value outside its range; one line names them.
    """
    allowed = sorted(set(config.flatten()) - FIXED_SETTINGS)
    unknown = sorted(set(changes) - set(allowed))
    if unknown:
        hint = suggest(*unknown, known=allowed, count=2)
        raise UsageError(
            f"{config.recipe} has no setting {', '.join(map(repr, unknown))}; {hint}"
            f"`darkroom recipes {config.recipe}` lists them all"
        )
    settings = config.model_dump()
    for name, value in changes.items():
        outer, _, inner = name.rpartition(".")
        (settings[outer] if outer else settings)[inner] = value
    try:
        return type(config).model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where, value = ".".join(map(str, first["loc"])), first["input"]
        what = "" if not where else f"{where}: " if isinstance(value, dict) else f"{where}={value!r}: "
        raise UsageError(f"{what}{explain_rule(first)}") from error


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
