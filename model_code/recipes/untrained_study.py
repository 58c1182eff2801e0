"""Untrained torchvision networks on the images of ImageNet's validation set, with and without normalisation.

The article feeds random crops (RandomResizedCrop, 20 to 100 % of the area, 224 pixels) to networks as torchvision
initialises them, in evaluation mode, and counts right answers. It wonders whether normalisation matters: each network
has a recipe with and one without (`_raw`). Departures that hold for every recipe here: crops are taken from images
packed at 256 pixels, the middle square of the whole image.
"""

from model_code.recipes.catalog import recipe
from model_code.training.run_config import override
from model_code.training.untrained_config import UntrainedConfig

WITHOUT_NORMALISATION = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SEEDS = (0, 1, 2)


@recipe(published_accuracy=50 / 50_000, seeds=SEEDS)
def resnet50_imagenet_untrained() -> UntrainedConfig:
    """Untrained ResNet-50 (25.56 million parameters), images normalised.

    Published: of the 50,000 validation images, on two RTX 3090.
    Ours: not yet measured.
    """
    return UntrainedConfig(network="resnet50")


@recipe(seeds=SEEDS)
def resnet50_imagenet_untrained_raw() -> UntrainedConfig:
    """Untrained ResNet-50 (25.56 million parameters), images not normalised.

    Published: no figure of its own; the article asks whether normalisation matters.
    Ours: not yet measured.
    """
    return override(resnet50_imagenet_untrained(), WITHOUT_NORMALISATION)


@recipe(published_accuracy=50 / 50_000, seeds=SEEDS)
def resnet101_imagenet_untrained() -> UntrainedConfig:
    """Untrained ResNet-101 (44.55 million parameters), images normalised.

    Published: of the 50,000 validation images, on two RTX 3090.
    Ours: not yet measured.
    """
    return UntrainedConfig(network="resnet101")


@recipe(seeds=SEEDS)
def resnet101_imagenet_untrained_raw() -> UntrainedConfig:
    """Untrained ResNet-101 (44.55 million parameters), images not normalised.

    Published: no figure of its own; the article asks whether normalisation matters.
    Ours: not yet measured.
    """
    return override(resnet101_imagenet_untrained(), WITHOUT_NORMALISATION)


@recipe(published_accuracy=50 / 50_000, seeds=SEEDS)
def vit_b_16_imagenet_untrained() -> UntrainedConfig:
    """Untrained ViT-B/16 (86.57 million parameters), images normalised.

    Published: of the 50,000 validation images, on two RTX 3090.
    Ours: not yet measured.
    """
    return UntrainedConfig(network="vit_b_16")


@recipe(seeds=SEEDS)
def vit_b_16_imagenet_untrained_raw() -> UntrainedConfig:
    """Untrained ViT-B/16 (86.57 million parameters), images not normalised.

    Published: no figure of its own; the article asks whether normalisation matters.
    Ours: not yet measured.
    """
    return override(vit_b_16_imagenet_untrained(), WITHOUT_NORMALISATION)


@recipe(published_accuracy=50 / 50_000, seeds=SEEDS)
def vit_l_16_imagenet_untrained() -> UntrainedConfig:
    """Untrained ViT-L/16 (304.33 million parameters), images normalised.

    Published: of the 50,000 validation images, on two RTX 3090.
    Ours: not yet measured.
    """
    return UntrainedConfig(network="vit_l_16", batch_size=64)


@recipe(seeds=SEEDS)
def vit_l_16_imagenet_untrained_raw() -> UntrainedConfig:
    """Untrained ViT-L/16 (304.33 million parameters), images not normalised.

    Published: no figure of its own; the article asks whether normalisation matters.
    Ours: not yet measured.
    """
    return override(vit_l_16_imagenet_untrained(), WITHOUT_NORMALISATION)


@recipe(published_accuracy=43 / 50_000, seeds=SEEDS)
def swin_t_imagenet_untrained() -> UntrainedConfig:
    """Untrained Swin-T (28.29 million parameters), images normalised.

    Published: of the 50,000 validation images, on two RTX 3090.
    Ours: not yet measured.
    """
    return UntrainedConfig(network="swin_t_torchvision")


@recipe(seeds=SEEDS)
def swin_t_imagenet_untrained_raw() -> UntrainedConfig:
    """Untrained Swin-T (28.29 million parameters), images not normalised.

    Published: no figure of its own; the article asks whether normalisation matters.
    Ours: not yet measured.
    """
    return override(swin_t_imagenet_untrained(), WITHOUT_NORMALISATION)


@recipe(published_accuracy=49 / 50_000, seeds=SEEDS)
def swin_s_imagenet_untrained() -> UntrainedConfig:
    """Untrained Swin-S (49.61 million parameters), images normalised.

    Published: of the 50,000 validation images, on two RTX 3090.
    Ours: not yet measured.
    """
    return UntrainedConfig(network="swin_s_torchvision")


@recipe(seeds=SEEDS)
def swin_s_imagenet_untrained_raw() -> UntrainedConfig:
    """Untrained Swin-S (49.61 million parameters), images not normalised.

    Published: no figure of its own; the article asks whether normalisation matters.
    Ours: not yet measured.
    """
    return override(swin_s_imagenet_untrained(), WITHOUT_NORMALISATION)
