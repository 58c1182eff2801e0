"""Frozen, checked config of the probing of an untrained network."""

from typing import Literal

from pydantic import Field, model_validator

from model_code.data.view_settings import ImageSize
from model_code.training.probe_config import RANDOM_FEATURES_LINEAR, RANDOM_FEATURES_MLP, ProbeConfig
from model_code.training.run_config import NetworkName, RunConfig


class RandomFeaturesConfig(RunConfig):
    """Every setting of one probing of random features, beside those of `RunConfig`.

    Attributes:
        network: Backbone; key of `model_code.models.networks.NETWORKS`, or None for the pixels themselves.
        image_size: Height and width that the network sees, pixels; None takes the images as they are packed.
        is_calibrated: True if BatchNorm's statistics are measured on the training images; else they are mean 0 and
            variance 1, as an untrained network has them.
        test_fraction: Share of the images that the probes are measured on, where one split has all labels, as in
            ImageNet's validation set; where there are training and test images it means nothing.
        knn_neighbours: Number of neighbours that vote; a smaller bank votes as a whole.
        linear: Settings of the linear probe.
        mlp: The same of the probe with a hidden layer.
    """

    kind: Literal["random_features"] = "random_features"
    network: NetworkName | None = None
    image_size: ImageSize | None = None
    is_calibrated: bool = False
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    knn_neighbours: int = Field(default=200, ge=1)
    linear: ProbeConfig = RANDOM_FEATURES_LINEAR
    mlp: ProbeConfig = RANDOM_FEATURES_MLP

    @model_validator(mode="after")
    def _has_one_hidden_layer_in_the_mlp_only(self) -> "RandomFeaturesConfig":
        if self.linear.hidden_width or not self.mlp.hidden_width:
            raise ValueError("linear.hidden_width must be 0 and mlp.hidden_width above 0")
        return self
