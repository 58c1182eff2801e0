"""Frozen, checked config of a supervised training. A recipe is a function that returns one."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from model_code.data.view_settings import CropArea, ImageSize
from model_code.training.epoch_config import EpochConfig
from model_code.training.run_config import NetworkName, PositiveFloat

Share = Annotated[float, Field(ge=0, le=1)]
# In front of a recipe's name in `pretrained_weights`.
RECIPE_PREFIX = "recipe:"
# Value of `pretrained_weights`: torchvision's ImageNet weights, which are downloaded.
TORCHVISION = "torchvision"


# Thresholds that keep a target error need some tens of validation images.
FEW_VALIDATION, LARGE_FRACTION = 100, 0.2


class TrainingConfig(EpochConfig):
    """Every setting of one supervised training run, beside those of `EpochConfig`.

    Attributes:
        network: Key of `model_code.models.networks.NETWORKS`.
        pretrained_weights: A weights file, `torchvision` for its ImageNet download, `recipe:NAME` for the best run of
            another recipe, or None; the last layer is dropped.
        pseudo_label_confidence: Images without a label are learned from with the one that the network of
            `pretrained_weights`, another recipe's, gives them, if its probability is at least this. They are the data
            set's unlabelled images, or else the training images beyond `limit_train`. None leaves them out.
        has_partial_identity: True if the first filters of each convolution start as the identity
            (`model_code.models.initialization.start_as_partial_identity`).
        whitening_images: Training images whose patches whiten the first convolution, whose weights are then frozen; 0
            leaves it as it starts.
        whitening_bias_epochs: Epochs in which the bias of that convolution is trained.
        backbone_rate_factor: Learning rate of all layers but the last over that of the last.
        frozen_epochs: First epochs in which only the last layer learns; as many as `epochs` for a linear probe. Running
            statistics of BatchNorm follow the images all the same.
        has_frozen_norm_scale: True if the scales of BatchNorm stay at 1.
        image_size: Height and width that the network sees, pixels: in training a random resized crop (`crop_area`), in
            evaluation the middle. None takes the images as they are packed.
        crop_area: Smallest and largest share of the image that such a crop covers.
        epochs: Passes over the training images.
        optimizer: `sgd`, `adam` or `adamw`.
        learning_rate: At the start; of a warm-up, at its end.
        momentum: Momentum of SGD.
        is_nesterov: True if SGD looks ahead.
        adam_betas: Betas of Adam and AdamW.
        weight_decay: On all parameters.
        norm_bias_rate_factor: Learning rate factor of BatchNorm biases; their decay for each step is that of the other
            parameters. Not for `adam`.
        has_lookahead: True if the weights are pulled back every few steps to a slow average of themselves, which they
            become at the end (`model_code.training.lookahead`).
        schedule: `multistep` (see `decay_points`), `plateau` (by `decay_factor` when the loss that `plateau_watches`
            names has not fallen for more than `patience_epochs`, not below `min_learning_rate`), `cosine` to 0 over all
            steps, or `triangular` (see `triangle`).
        decay_points: Fractions of the epochs after which the learning rate is multiplied by `decay_factor`;
            (0.3, 0.6, 0.9) is after 30, 60 and 90 of 100 epochs.
        decay_factor: See `decay_points`.
        plateau_watches: Images whose loss `plateau` follows: `validation`, or `train`, the mean over an epoch's steps.
        patience_epochs: Patience of `plateau`.
        min_learning_rate: Lower bound of `plateau`.
        triangle: Learning rate factor of `triangular` at the first step, share of the steps after which it is 1, and
            factor at the end; linear between.
        warmup_epochs: Warm-up of `cosine`: the learning rate rises linearly over so many epochs.
        crop_padding_pixels: Border of the random crop.
        crop_border: `black`, or `reflect` for the image's own pixels mirrored at its edge.
        flip: `random` mirrors each image with probability 1/2 in each epoch; `alternating` does so in the first epoch,
            and after that each image is mirrored in every second epoch.
        has_flip: False leaves mirroring out.
        cutout_pixels: Side of the square that is hidden in each image; 0 hides none.
        erasing_probability: Probability of an image to have a random rectangle filled with noise.
        cutmix_alpha: Alpha of CutMix's Beta distribution; 0 leaves CutMix out.
        mixup_alpha: Alpha of MixUp's Beta distribution; 0 leaves MixUp out. With both, each image draws one of the two.
        label_smoothing: Share of the target spread over all classes.
        class_weights: Weights of the training loss: `equal`, or `balanced`, inverse to the number of training images of
            the class, with a mean of 1 over these images.
        sampling: `once` visits each training image once an epoch; `balanced` draws as many with replacement, each class
            with the same probability.
        ema_decay: Of the moving average of the weights, for each step; the average is what is validated and kept. None
            keeps the weights themselves.
        has_flip_averaging: True if the finished model answers with the mean of an image and its mirror image, which
            costs twice the time; validation during the run does without.
        shift_averaging_pixels: The finished model's answer is half that of the image and half the mean of two copies,
            shifted so far up and left, down and right; 0 leaves them out. Costs three times the time.
        validation_fraction: Share of the training images that are held out.
        kept_epoch: Epoch whose weights are tested and released: the one with the `best` validation accuracy, or the
            `last` one.
    """

    kind: Literal["supervised"] = "supervised"
    network: NetworkName
    pretrained_weights: str | None = None
    pseudo_label_confidence: Annotated[float, Field(gt=0, le=1)] | None = None
    has_partial_identity: bool = False
    whitening_images: int = Field(default=0, ge=0)
    whitening_bias_epochs: int = Field(default=3, ge=0)
    has_frozen_norm_scale: bool = False
    image_size: ImageSize | None = None
    crop_area: CropArea = (0.2, 1.0)
    epochs: int = Field(default=100, ge=1)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 0.01
    momentum: float = Field(default=0.9, ge=0, lt=1)
    is_nesterov: bool = False
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: float = Field(default=5e-4, ge=0, allow_inf_nan=False)
    norm_bias_rate_factor: PositiveFloat = 1
    backbone_rate_factor: PositiveFloat = 1
    frozen_epochs: int = Field(default=0, ge=0)
    has_lookahead: bool = False
    schedule: Literal["multistep", "plateau", "cosine", "triangular"] = "multistep"
    decay_points: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    decay_factor: PositiveFloat = 0.1
    plateau_watches: Literal["validation", "train"] = "validation"
    patience_epochs: int = Field(default=1, ge=0)
    min_learning_rate: float = Field(default=0, ge=0, allow_inf_nan=False)
    triangle: tuple[Share, Annotated[float, Field(gt=0, lt=1)], Share] = (0.2, 0.23, 0.07)
    warmup_epochs: int = Field(default=0, ge=0)
    crop_padding_pixels: int = Field(default=4, ge=0, le=16)
    crop_border: Literal["black", "reflect"] = "black"
    has_flip: bool = True
    flip: Literal["random", "alternating"] = "random"
    cutout_pixels: int = Field(default=0, ge=0, le=32)
    erasing_probability: float = Field(default=0, ge=0, le=1)
    cutmix_alpha: float = Field(default=0, ge=0, allow_inf_nan=False)
    mixup_alpha: float = Field(default=0, ge=0, allow_inf_nan=False)
    label_smoothing: float = Field(default=0, ge=0, lt=1)
    class_weights: Literal["equal", "balanced"] = "equal"
    sampling: Literal["once", "balanced"] = "once"
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    has_flip_averaging: bool = False
    shift_averaging_pixels: int = Field(default=0, ge=0, le=16)
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    kept_epoch: Literal["best", "last"] = "best"

    @model_validator(mode="after")
    def _has_momentum_for_nesterov(self) -> "TrainingConfig":
        if self.is_nesterov and not self.momentum:
            raise ValueError("is_nesterov needs a momentum above 0")
        return self

    @model_validator(mode="after")
    def _has_network_for_pseudo_labels(self) -> "TrainingConfig":
        has_network = (self.pretrained_weights or "").startswith(RECIPE_PREFIX)
        if self.pseudo_label_confidence is not None and not has_network:
            raise ValueError("pseudo_label_confidence needs a network that labels; give pretrained_weights=recipe:NAME")
        if self.pseudo_label_confidence is not None and self.engine.pictures == "disk":
            raise ValueError(
                "engine.pictures=disk goes without pseudo-labels, which need all images in memory; give "
                "engine.pictures=streamed"
            )
        return self

    @model_validator(mode="after")
    def _has_one_average(self) -> "TrainingConfig":
        if self.has_lookahead and self.ema_decay is not None:
            raise ValueError("has_lookahead and ema_decay are two averages of the weights; choose one")
        return self

    @model_validator(mode="after")
    def _goes_together(self) -> "TrainingConfig":
        if self.flip == "alternating" and not self.has_flip:
            raise ValueError("flip=alternating mirrors images and has_flip=false does not; choose one")
        if self.norm_bias_rate_factor != 1 and self.optimizer == "adam":
            raise ValueError("norm_bias_rate_factor is for sgd and adamw, whose decay goes with the learning rate")
        starts = self.has_partial_identity or self.whitening_images or self.has_frozen_norm_scale
        if self.pretrained_weights is not None and starts:
            raise ValueError(
                "pretrained_weights would replace the start that has_partial_identity, whitening_images and "
                "has_frozen_norm_scale ask for; leave them out"
            )
        return self


def suggest_more_validation(config: TrainingConfig, validation_count: int, *, is_own: bool) -> str:
    """Return the setting that holds out more images, if too few would choose the epoch and calibrate.

    Args:
        config: Settings of a run.
        validation_count: Number of its validation images.
        is_own: True if the data set brings them along, so that none are held out.

    Returns:
        An option with its value, or an empty text.
    """
    is_enough = validation_count >= FEW_VALIDATION or config.validation_fraction >= LARGE_FRACTION
    is_left = is_own or is_enough or config.profile == "smoke"
    return "" if is_left else f"--set validation_fraction={LARGE_FRACTION:g}"
