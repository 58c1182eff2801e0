"""Frozen, checked config of the evaluation of an untrained network."""

from typing import Literal

from pydantic import Field, model_validator

from model_code.data.view_settings import CropArea, ImageSize
from model_code.training.run_config import IMAGENET_MEAN, IMAGENET_STD, Channels, NetworkName, RunConfig


class UntrainedConfig(RunConfig):
    """Every setting of one evaluation of an untrained network, beside those of `RunConfig`.

    Attributes:
        network: Key of `model_code.models.networks.NETWORKS`.
        image_size: Height and width that the network sees, pixels.
        crop_area: Smallest and largest share of an image that the random crop covers.
        initialization: `own` keeps the weights as the network starts; `gaussian` draws all of them from a normal
            distribution of std 0.02, `gaussian_head` those of the last layer only.
        precision: Of the forward pass: `float32`, `bfloat16`, or `auto`, which is bfloat16 on a device that has
            instructions for it.
    """

    kind: Literal["untrained"] = "untrained"
    dataset: str = "imagenet-val"
    network: NetworkName
    batch_size: int = Field(default=256, ge=1)
    image_size: ImageSize = 224
    crop_area: CropArea = (0.2, 1.0)
    initialization: Literal["own", "gaussian", "gaussian_head"] = "own"
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD

    @model_validator(mode="after")
    def _has_no_training_images(self) -> "UntrainedConfig":
        if self.limit_train is not None:
            raise ValueError("nothing is trained here: limit_test limits the images that are evaluated")
        return self
