"""Frozen, checked config of a SimSiam pretraining. A recipe is a function that returns one."""

from typing import Literal

from pydantic import Field, model_validator

from model_code.data.view_settings import CropArea, ViewSettings
from model_code.training.epoch_config import EpochConfig
from model_code.training.probe_config import ProbeConfig
from model_code.training.run_config import REFERENCE_BATCH, NetworkName, PositiveFloat, Width


class SimSiamConfig(EpochConfig):
    """Every setting of one pretraining run, beside those of `EpochConfig`.

    The defaults are those of Chen & He 2021, arXiv:2011.10566, Appendix D (CIFAR-10).

    Attributes:
        network: Backbone; key of `model_code.models.networks.NETWORKS`.
        pretrained_weights: First weights of the backbone: a weights file, `torchvision` for its ImageNet download,
            `recipe:NAME` for the best run of another recipe, or None. Projector and predictor start anew.
        projector_layers: 2 on CIFAR, 3 for larger images.
        embedding_width: Width of projections and predictions.
        bottleneck_width: Width of the predictor's hidden layer.
        views: Settings of the two views of an image.
        epochs: Passes over the images.
        batch_size: Images in one step, each in two views.
        base_learning_rate: Base learning rate of SGD for a batch of 256 images.
        warmup_epochs: Epochs over which the learning rate rises to its highest value; then it follows half a cosine.
            The predictor's stays at the highest value throughout.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD, on all parameters.
        monitor_every_epochs: Epochs between two looks at the nearest neighbours; the last epoch always has one.
        checkpoint_every_epochs: Epochs between two checkpoints; the last epoch always has one.
        knn_neighbours: Number of neighbours that vote; a smaller bank votes as a whole.
        knn_temperature: Temperature of the votes.
        evaluation_enlargement: See `plain_view`; 8/7 with larger images.
        validation_fraction: Share of the labelled training images that choose the best epoch.
        linear: The linear evaluation after the run, on features of the plain view, computed once.
        linear_crop_area: Smallest and largest share of the image that a crop covers in a second linear evaluation,
            whose images are cropped and mirrored anew in each epoch; None leaves it out.
    """

    kind: Literal["simsiam"] = "simsiam"
    network: NetworkName = "resnet18_improved_nopool"
    pretrained_weights: str | None = None
    projector_layers: Literal[2, 3] = 2
    embedding_width: Width = 2048
    bottleneck_width: Width = 512
    views: ViewSettings = ViewSettings()
    epochs: int = Field(default=800, ge=1)
    batch_size: int = Field(default=512, ge=2)
    base_learning_rate: PositiveFloat = 0.03
    warmup_epochs: int = Field(default=0, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0, allow_inf_nan=False)
    monitor_every_epochs: int = Field(default=10, ge=1)
    checkpoint_every_epochs: int = Field(default=1, ge=1)
    knn_neighbours: int = Field(default=200, ge=1)
    knn_temperature: PositiveFloat = 0.1
    evaluation_enlargement: float = Field(default=1.0, ge=1, le=2)
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    linear: ProbeConfig = ProbeConfig()
    linear_crop_area: CropArea | None = None

    @model_validator(mode="after")
    def _has_epochs_after_warmup(self) -> "SimSiamConfig":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} must be below epochs={self.epochs}")
        if self.linear.hidden_width:
            raise ValueError("linear.hidden_width must be 0")
        return self

    @property
    def learning_rate(self) -> float:
        """The highest learning rate of the run."""
        return self.base_learning_rate * self.batch_size / REFERENCE_BATCH
