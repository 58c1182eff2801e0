"""Untrained torchvision networks on the pictures of ImageNet's validation set, with and without normalisation.

The article feeds random crops (RandomResizedCrop, 20 to 100 % of the area, 224 pixels) to networks as torchvision
initialises them, in evaluation mode, and counts right answers. It wonders whether normalisation matters: each network
has a recipe with and one without (`_raw`). Departures that hold for every recipe here: crops are taken from pictures
packed at 256 pixels, the middle square of the whole picture.
"""

from model_code.recipes.catalog import recipe
from model_code.training.untrained_config import UntrainedConfig

WITHOUT_MEAN, WITHOUT_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SEEDS = (0, 1, 2)


@recipe(published_accuracy=0.001, seeds=SEEDS)
def resnet50_imagenet_untrained() -> UntrainedConfig:
    """Untrained ResNet-50 (25.56 million parameters), pictures normalised.

    Command: darkroom train resnet50_imagenet_untrained
    Published: 0.001 (50 of 50,000 right) in 35.485 s on two RTX 3090.
    Ours: not yet measured.
    """
    return UntrainedConfig(recipe="resnet50_imagenet_untrained", network="resnet50")


@recipe(seeds=SEEDS)
def resnet50_imagenet_untrained_raw() -> UntrainedConfig:
    """Untrained ResNet-50 (25.56 million parameters), pictures not normalised.

    Command: darkroom train resnet50_imagenet_untrained_raw
    Published: no figure of its own; the article asks whether normalisation matters.
    Ours: not yet measured.
    """
    return UntrainedConfig(
        recipe="resnet50_imagenet_untrained_raw", network="resnet50", mean=WITHOUT_MEAN, std=WITHOUT_STD
    )


@recipe(published_accuracy=0.001, seeds=SEEDS)
def resnet101_imagenet_untrained() -> UntrainedConfig:
    """Untrained ResNet-101 (44.55 million parameters), pictures normalised.

    Command: darkroom train resnet101_imagenet_untrained
    Published: 0.001 (50 of 50,000 right) in 45.556 s on two RTX 3090.
    Ours: not yet measured.
    """
    return UntrainedConfig(recipe="resnet101_imagenet_untrained", network="resnet101")


@recipe(seeds=SEEDS)
def resnet101_imagenet_untrained_raw() -> UntrainedConfig:
    """Untrained ResNet-101 (44.55 million parameters), pictures not normalised.

    Command: darkroom train resnet101_imagenet_untrained_raw
    Published: no figure of its own; the article asks whether normalisation matters.
    Ours: not yet measured.
    """
    return UntrainedConfig(
        recipe="resnet101_imagenet_untrained_raw", network="resnet101", mean=WITHOUT_MEAN, std=WITHOUT_STD
    )


@recipe(published_accuracy=0.001, seeds=SEEDS)
def vit_b_16_imagenet_untrained() -> UntrainedConfig:
    """Untrained ViT-B/16 (86.57 million parameters), pictures normalised.

    Command: darkroom train vit_b_16_imagenet_untrained
    Published: 0.001 (50 of 50,000 right) in 83.587 s on two RTX 3090.
    Ours: not yet measured.
    """
    return UntrainedConfig(recipe="vit_b_16_imagenet_untrained", network="vit_b_16")


@recipe(seeds=SEEDS)
def vit_b_16_imagenet_untrained_raw() -> UntrainedConfig:
    """Untrained ViT-B/16 (86.57 million parameters), pictures not normalised.

    Command: darkroom train vit_b_16_imagenet_untrained_raw
    Published: no figure of its own; the article asks whether normalisation matters.
    Ours: not yet measured.
    """
    return UntrainedConfig(
        recipe="vit_b_16_imagenet_untrained_raw", network="vit_b_16", mean=WITHOUT_MEAN, std=WITHOUT_STD
    )


@recipe(published_accuracy=0.001, seeds=SEEDS)
def vit_l_16_imagenet_untrained() -> UntrainedConfig:
    """Untrained ViT-L/16 (304.33 million parameters), pictures normalised.

    Command: darkroom train vit_l_16_imagenet_untrained
    Published: 0.001 (50 of 50,000 right) in 370.091 s on two RTX 3090.
    Ours: not yet measured.
    """
    return UntrainedConfig(recipe="vit_l_16_imagenet_untrained", network="vit_l_16", batch_size=64)


@recipe(seeds=SEEDS)
def vit_l_16_imagenet_untrained_raw() -> UntrainedConfig:
    """Untrained ViT-L/16 (304.33 million parameters), pictures not normalised.

    Command: darkroom train vit_l_16_imagenet_untrained_raw
    Published: no figure of its own; the article asks whether normalisation matters.
    Ours: not yet measured.
    """
    return UntrainedConfig(
        recipe="vit_l_16_imagenet_untrained_raw", network="vit_l_16", batch_size=64, mean=WITHOUT_MEAN, std=WITHOUT_STD
    )


@recipe(published_accuracy=0.00086, seeds=SEEDS)
def swin_t_imagenet_untrained() -> UntrainedConfig:
    """Untrained Swin-T (28.29 million parameters), pictures normalised.

    Command: darkroom train swin_t_imagenet_untrained
    Published: 0.00086 (43 of 50,000 right) in 44.616 s on two RTX 3090.
    Ours: not yet measured.
    """
    return UntrainedConfig(recipe="swin_t_imagenet_untrained", network="swin_t_torchvision")


@recipe(seeds=SEEDS)
def swin_t_imagenet_untrained_raw() -> UntrainedConfig:
    """Untrained Swin-T (28.29 million parameters), pictures not normalised.

    Command: darkroom train swin_t_imagenet_untrained_raw
    Published: no figure of its own; the article asks whether normalisation matters.
    Ours: not yet measured.
    """
    return UntrainedConfig(
        recipe="swin_t_imagenet_untrained_raw", network="swin_t_torchvision", mean=WITHOUT_MEAN, std=WITHOUT_STD
    )


@recipe(published_accuracy=0.00098, seeds=SEEDS)
def swin_s_imagenet_untrained() -> UntrainedConfig:
    """Untrained Swin-S (49.61 million parameters), pictures normalised.

    Command: darkroom train swin_s_imagenet_untrained
    Published: 0.00098 (49 of 50,000 right) in 67.754 s on two RTX 3090.
    Ours: not yet measured.
    """
    return UntrainedConfig(recipe="swin_s_imagenet_untrained", network="swin_s_torchvision")


@recipe(seeds=SEEDS)
def swin_s_imagenet_untrained_raw() -> UntrainedConfig:
    """Untrained Swin-S (49.61 million parameters), pictures not normalised.

    Command: darkroom train swin_s_imagenet_untrained_raw
    Published: no figure of its own; the article asks whether normalisation matters.
    Ours: not yet measured.
    """
    return UntrainedConfig(
        recipe="swin_s_imagenet_untrained_raw", network="swin_s_torchvision", mean=WITHOUT_MEAN, std=WITHOUT_STD
    )
