"""The ResNet-18 study on CIFAR-10: nine published runs, two at full resolution, two that swap the initialisation.

The article gives learning rate, decay, epochs, augmentation and split; momentum 0.9, weight decay 5e-4 and batch 128
are the usual ones and our choice. Departures that hold for every recipe here: validation and test are kept apart (the
published figure is the best epoch on the pictures that chose it); the split is a seeded permutation, disjoint and
stratified; pictures that do not fill the last batch of an epoch are left for the next one.
"""

from model_code.recipes.catalog import recipe
from model_code.training.config import TrainingConfig

DECAY_AFTER_30_60_90_PERCENT = (0.3, 0.6, 0.9)
# Recipes on whose difference a claim rests: what the initialisation and the max-pool are worth.
COMPARED_SEEDS = (0, 1, 2)


@recipe(published_accuracy=0.827, seeds=COMPARED_SEEDS)
def resnet18_cifar10_exp() -> TrainingConfig:
    """Torchvision's ResNet-18, learning rate 0.01, no decay.

    Command: darkroom train resnet18_cifar10_exp
    Published: 0.827 validation accuracy after 100 epochs.
    Ours: not yet measured.
    """
    return TrainingConfig(recipe="resnet18_cifar10_exp", network="resnet18_torchvision", learning_rate=0.01)


@recipe(published_accuracy=0.846, seeds=COMPARED_SEEDS)
def resnet18_cifar10_exp2() -> TrainingConfig:
    """Our ResNet-18 with the 7x7 stem, learning rate 0.01, no decay.

    Command: darkroom train resnet18_cifar10_exp2
    Published: 0.846 validation accuracy after 100 epochs.
    Ours: not yet measured.
    """
    return TrainingConfig(recipe="resnet18_cifar10_exp2", network="resnet18", learning_rate=0.01)


@recipe(published_accuracy=0.919, seeds=COMPARED_SEEDS)
def resnet18_cifar10_exp3() -> TrainingConfig:
    """Improved stem (3x3, stride 1, max-pool kept as in the printed code), learning rate 0.01, no decay.

    Command: darkroom train resnet18_cifar10_exp3
    Published: 0.919 validation accuracy after 100 epochs.
    Ours: not yet measured.
    """
    return TrainingConfig(recipe="resnet18_cifar10_exp3", network="resnet18_improved", learning_rate=0.01)


@recipe(published_accuracy=0.903)
def resnet18_cifar10_exp4() -> TrainingConfig:
    """Improved stem, learning rate 0.1, no decay.

    Command: darkroom train resnet18_cifar10_exp4
    Published: 0.903 validation accuracy after 100 epochs.
    Ours: not yet measured.
    """
    return TrainingConfig(recipe="resnet18_cifar10_exp4", network="resnet18_improved", learning_rate=0.1)


@recipe(published_accuracy=0.897)
def resnet18_cifar10_exp5() -> TrainingConfig:
    """Improved stem, learning rate 0.001, no decay.

    Command: darkroom train resnet18_cifar10_exp5
    Published: 0.897 validation accuracy after 100 epochs.
    Ours: not yet measured.
    """
    return TrainingConfig(recipe="resnet18_cifar10_exp5", network="resnet18_improved", learning_rate=0.001)


@recipe(published_accuracy=0.923, seeds=COMPARED_SEEDS)
def resnet18_cifar10_exp6() -> TrainingConfig:
    """Improved stem, learning rate 0.01, decay by 10 after 30, 60 and 90 % of the epochs: the article's best.

    Command: darkroom train resnet18_cifar10_exp6
    Published: 0.923 validation accuracy after 100 epochs.
    Ours: not yet measured.
    """
    return TrainingConfig(
        recipe="resnet18_cifar10_exp6",
        network="resnet18_improved",
        learning_rate=0.01,
        decay_points=DECAY_AFTER_30_60_90_PERCENT,
    )


@recipe(published_accuracy=0.922)
def resnet18_cifar10_exp7() -> TrainingConfig:
    """Improved stem, learning rate 0.1, decay by 10 after 30, 60 and 90 % of the epochs.

    Command: darkroom train resnet18_cifar10_exp7
    Published: 0.922 validation accuracy after 100 epochs.
    Ours: not yet measured.
    """
    return TrainingConfig(
        recipe="resnet18_cifar10_exp7",
        network="resnet18_improved",
        learning_rate=0.1,
        decay_points=DECAY_AFTER_30_60_90_PERCENT,
    )


@recipe(published_accuracy=0.893)
def resnet18_cifar10_exp8() -> TrainingConfig:
    """Improved stem, learning rate 0.001, decay by 10 after 30, 60 and 90 % of the epochs.

    Command: darkroom train resnet18_cifar10_exp8
    Published: 0.893 validation accuracy after 100 epochs.
    Ours: not yet measured.
    """
    return TrainingConfig(
        recipe="resnet18_cifar10_exp8",
        network="resnet18_improved",
        learning_rate=0.001,
        decay_points=DECAY_AFTER_30_60_90_PERCENT,
    )


@recipe(published_accuracy=0.857)
def resnet18_cifar10_exp9() -> TrainingConfig:
    """Torchvision's ResNet-18 from ImageNet weights (last layer dropped), learning rate 0.01, no decay.

    Command: darkroom train resnet18_cifar10_exp9 [--set pretrained_weights=PATH]
    Published: 0.857 validation accuracy after 100 epochs.
    Ours: not yet measured.
    """
    return TrainingConfig(
        recipe="resnet18_cifar10_exp9",
        network="resnet18_torchvision",
        learning_rate=0.01,
        pretrained_weights="torchvision",
    )


@recipe(seeds=COMPARED_SEEDS, smoke={"limit_train": 320})
def resnet18_cifar10_exp3_nopool() -> TrainingConfig:
    """exp3 as its prose says: improved stem without the max-pool, learning rate 0.01, no decay.

    Command: darkroom train resnet18_cifar10_exp3_nopool
    Published: no figure of its own; the article describes this net and prints the one with max-pool (0.919).
    Ours: not yet measured.
    """
    return TrainingConfig(recipe="resnet18_cifar10_exp3_nopool", network="resnet18_improved_nopool", learning_rate=0.01)


@recipe(seeds=COMPARED_SEEDS, smoke={"limit_train": 320})
def resnet18_cifar10_exp6_nopool() -> TrainingConfig:
    """exp6 as its prose says: improved stem without the max-pool, learning rate 0.01 with decay.

    Command: darkroom train resnet18_cifar10_exp6_nopool
    Published: no figure of its own; the article describes this net and prints the one with max-pool (0.923).
    Ours: not yet measured.
    """
    return TrainingConfig(
        recipe="resnet18_cifar10_exp6_nopool",
        network="resnet18_improved_nopool",
        learning_rate=0.01,
        decay_points=DECAY_AFTER_30_60_90_PERCENT,
    )


@recipe(seeds=COMPARED_SEEDS)
def resnet18_cifar10_exp_default() -> TrainingConfig:
    """The run exp with PyTorch's default initialisation, that of our own network, in place of torchvision's.

    Command: darkroom train resnet18_cifar10_exp_default
    Published: no figure of its own; the article cannot say why its own network beat torchvision's.
    Ours: not yet measured.
    """
    return TrainingConfig(
        recipe="resnet18_cifar10_exp_default", network="resnet18_torchvision_default", learning_rate=0.01
    )


@recipe(seeds=COMPARED_SEEDS)
def resnet18_cifar10_exp2_fan_out() -> TrainingConfig:
    """exp2 with torchvision's initialisation (kaiming_normal, fan_out) in place of PyTorch's default.

    Command: darkroom train resnet18_cifar10_exp2_fan_out
    Published: no figure of its own; the article cannot say why its own network beat torchvision's.
    Ours: not yet measured.
    """
    return TrainingConfig(recipe="resnet18_cifar10_exp2_fan_out", network="resnet18_fan_out", learning_rate=0.01)
