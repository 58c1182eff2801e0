"""What a SimSiam run is: one frozen, checked config. A recipe is a function that returns one."""

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from model_code.data.view_settings import ViewSettings
from model_code.models.networks import NETWORKS
from model_code.training.config import CIFAR10_MEAN, CIFAR10_STD, Channels, PositiveFloat

# Learning rates are given for this many pictures in a step and grow with the batch.
REFERENCE_BATCH = 256


class SimSiamConfig(BaseModel):
    """Every setting of one pretraining run; two runs with equal configs and data are the same experiment.

    The defaults are those of Chen & He 2021, arXiv:2011.10566, Appendix D (CIFAR-10).

    Attributes:
        recipe: Name of the recipe that made this config.
        profile: `full` is the documented run, `smoke` takes seconds on two CPU cores, `custom` has settings of its own.
        dataset: Name of a packed data set (`darkroom data list`).
        network: Backbone; key of `model_code.models.networks.NETWORKS`.
        projector_layers: 2 on CIFAR, 3 for larger pictures.
        embedding_width: Of projections and predictions.
        bottleneck_width: Of the predictor's hidden layer.
        views: How two views of a picture differ.
        epochs: Passes over the pictures.
        batch_size: Pictures in one step, each in two views.
        base_learning_rate: Of SGD for a batch of 256 pictures.
        warmup_epochs: Epochs over which the learning rate rises to its highest value; then it follows half a cosine.
            The predictor's stays at the highest value throughout.
        momentum: Of SGD.
        weight_decay: Of SGD, on all parameters.
        mean: Per channel, subtracted from pictures in [0, 1].
        std: Per channel, divides them.
        precision: Of the forward pass; `bfloat16` keeps weights, BatchNorm and loss in float32.
        monitor_every_epochs: How often the nearest neighbours are asked; the last epoch always is.
        checkpoint_every_epochs: How often state is kept to go on from; the last epoch always is.
        knn_neighbours: How many vote.
        knn_temperature: Of the votes.
        evaluation_enlargement: See `plain_view`; 8/7 with larger pictures.
        validation_fraction: Share of the labelled training pictures that choose the best epoch.
        split_seed: Seed of that split; runs that are compared share it.
        limit_train: Use so many training pictures; None uses all.
        seed: Of initial weights, order of pictures and augmentation.
        device: `auto` is CUDA when there is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    profile: Literal["full", "smoke", "custom"] = "full"
    dataset: str = "cifar10"
    network: str = "resnet18_improved_nopool"
    projector_layers: Literal[2, 3] = 2
    embedding_width: int = Field(default=2048, ge=1)
    bottleneck_width: int = Field(default=512, ge=1)
    views: ViewSettings = ViewSettings()
    epochs: int = Field(default=800, ge=1)
    batch_size: int = Field(default=512, ge=2)
    base_learning_rate: PositiveFloat = 0.03
    warmup_epochs: int = Field(default=0, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    mean: Channels = CIFAR10_MEAN
    std: Channels = CIFAR10_STD
    precision: Literal["float32", "bfloat16"] = "float32"
    monitor_every_epochs: int = Field(default=10, ge=1)
    checkpoint_every_epochs: int = Field(default=1, ge=1)
    knn_neighbours: int = Field(default=200, ge=1)
    knn_temperature: PositiveFloat = 0.1
    evaluation_enlargement: float = Field(default=1.0, ge=1, le=2)
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    split_seed: int = Field(default=42, ge=0)
    limit_train: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
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
    def _has_epochs_after_warmup(self) -> "SimSiamConfig":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} must be below epochs={self.epochs}")
        return self

    @property
    def learning_rate(self) -> float:
        """The highest learning rate of the run."""
        return self.base_learning_rate * self.batch_size / REFERENCE_BATCH

    def sha256(self) -> str:
        """Return the hash that names this experiment, hexadecimal."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()
