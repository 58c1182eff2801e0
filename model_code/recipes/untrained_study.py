"""Untrained torchvision networks on the images of ImageNet's validation set, with and without normalisation.

The article feeds random crops (RandomResizedCrop, 20 to 100 % of the area, 224 pixels) to networks as torchvision
initialises them, in evaluation mode, and counts right answers, with seed 2022. It wonders whether normalisation
matters: each network has a recipe with and one without (`_raw`). It suspects the initialisation: some networks have a
recipe with all weights from a normal distribution (`_gaussian`), ViT-B/16 one with only its last layer so (`_head`),
which torchvision sets to 0. AlexNet is the network of the paper that the article is about.

Departures of every recipe here: crops are taken from images packed at 256 pixels, the middle square of the whole image;
one GPU and no gradients, where the article has two GPUs and computes what gradients need; images are visited in order,
not shuffled, which changes the crops only.
"""

from model_code.recipes.catalog import recipe
from model_code.training.run_config import override
from model_code.training.untrained_config import UntrainedConfig

WITHOUT_NORMALISATION = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
GAUSSIAN = {"initialization": "gaussian"}
SEED = 2022
SEEDS = (SEED, 0, 1)


@recipe(published_accuracy=50 / 50_000, seeds=SEEDS)
def resnet50_imagenet_untrained() -> UntrainedConfig:
    """Untrained ResNet-50 (25.56 million parameters), images normalised.

    Published: of the 50,000 validation images, on two RTX 3090.
    Ours: not yet measured.
    """
    return UntrainedConfig(seed=SEED, network="resnet50")


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
    return UntrainedConfig(seed=SEED, network="resnet101")


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
    return UntrainedConfig(seed=SEED, network="vit_b_16")


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

    The article's table says batch 64, a comment in its code 16.

    Published: of the 50,000 validation images, on two RTX 3090.
    Ours: not yet measured.
    """
    return UntrainedConfig(seed=SEED, network="vit_l_16", batch_size=64)


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
    return UntrainedConfig(seed=SEED, network="swin_t_torchvision")


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
    return UntrainedConfig(seed=SEED, network="swin_s_torchvision")


@recipe(seeds=SEEDS)
def swin_s_imagenet_untrained_raw() -> UntrainedConfig:
    """Untrained Swin-S (49.61 million parameters), images not normalised.

    Published: no figure of its own; the article asks whether normalisation matters.
    Ours: not yet measured.
    """
    return override(swin_s_imagenet_untrained(), WITHOUT_NORMALISATION)


@recipe(seeds=SEEDS)
def resnet50_imagenet_untrained_gaussian() -> UntrainedConfig:
    """Untrained ResNet-50, all weights from a normal distribution.

    Published: no figure of its own; the article suspects the initialisation and does not try another.
    Ours: not yet measured.
    """
    return override(resnet50_imagenet_untrained(), GAUSSIAN)


@recipe(seeds=SEEDS)
def vit_b_16_imagenet_untrained_gaussian() -> UntrainedConfig:
    """Untrained ViT-B/16, all weights from a normal distribution.

    Published: no figure of its own; the article suspects the initialisation and does not try another.
    Ours: not yet measured.
    """
    return override(vit_b_16_imagenet_untrained(), GAUSSIAN)


@recipe(seeds=SEEDS)
def vit_b_16_imagenet_untrained_head() -> UntrainedConfig:
    """Untrained ViT-B/16, only the last layer from a normal distribution: torchvision sets it to 0.

    Published: no figure of its own; the article suspects the initialisation and does not try another.
    Ours: not yet measured.
    """
    return override(vit_b_16_imagenet_untrained(), {"initialization": "gaussian_head"})


@recipe(seeds=SEEDS)
def swin_t_imagenet_untrained_gaussian() -> UntrainedConfig:
    """Untrained Swin-T, all weights from a normal distribution.

    Published: no figure of its own; the article suspects the initialisation and does not try another.
    Ours: not yet measured.
    """
    return override(swin_t_imagenet_untrained(), GAUSSIAN)


@recipe(seeds=SEEDS, smoke={"network": "resnet18_torchvision"})
def alexnet_imagenet_untrained() -> UntrainedConfig:
    """Untrained AlexNet (61.10 million parameters), the network of Deep Clustering, images normalised.

    Published: no figure of its own; the article does not try it.
    Ours: not yet measured.
    """
    return UntrainedConfig(seed=SEED, network="alexnet")


@recipe(seeds=SEEDS, smoke={"network": "resnet18_torchvision"})
def alexnet_imagenet_untrained_gaussian() -> UntrainedConfig:
    """Untrained AlexNet, all weights from a normal distribution, as the paper describes them.

    Published: no figure of its own; the article suspects the initialisation and does not try another.
    Ours: not yet measured.
    """
    return override(alexnet_imagenet_untrained(), GAUSSIAN)
