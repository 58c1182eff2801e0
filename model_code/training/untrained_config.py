"""What the evaluation of an untrained network is: one frozen, checked config."""

from typing import Literal

from pydantic import Field, field_validator

from model_code.training.config import check_crop_area, check_network
from model_code.training.run_config import IMAGENET_MEAN, IMAGENET_STD, Channels, ImageSize, Interval, RunConfig


class UntrainedConfig(RunConfig):
    """Every setting of one evaluation of an untrained network, beside those of `RunConfig`.

    Attributes:
        network: Key of `model_code.models.networks.NETWORKS`.
        image_size: Height and width that the network sees, pixels.
        crop_area: Smallest and largest share of a picture that the random crop covers.
    """

    kind: Literal["untrained"] = "untrained"
    dataset: str = "imagenet-val"
    network: str
    batch_size: int = Field(default=256, ge=1)
    image_size: ImageSize = 224
    crop_area: Interval = (0.2, 1.0)
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD

    @field_validator("network")
    @classmethod
    def _is_known(cls, network: str) -> str:
        return check_network(network)

    @field_validator("crop_area")
    @classmethod
    def _is_share(cls, crop_area: Interval) -> Interval:
        return check_crop_area(crop_area)
