"""Random features: probes on frozen, untrained networks, on CIFAR-10 and on ImageNet's validation set.

The article finds untrained networks at chance and asks why Deep Clustering reports a random AlexNet far above it: there
a trained MLP sits on the random convolutions. Each recipe freezes a backbone as torchvision initialises it and measures
kNN, a linear probe and an MLP probe on its features, beside the untrained head that the article used. Images are
enlarged to 224 pixels, which these networks are made for; the raw pixels are probed as they are.

On ImageNet the probes learn from 40 of the 50 validation images of each class and are measured on the other 10: the
article has no other images of it, and Deep Clustering's figure is on ImageNet.
"""

from model_code.recipes.catalog import recipe
from model_code.training.random_features_config import RandomFeaturesConfig
from model_code.training.run_config import IMAGENET_MEAN, IMAGENET_STD, override

CALIBRATED = {"is_calibrated": True}
SEEDS = (0, 1, 2)


@recipe(seeds=SEEDS, smoke={"image_size": None})
def pixels_cifar10_random() -> RandomFeaturesConfig:
    """Probes on the raw pixels: the control without a network.

    Published: no figure of its own.
    Ours: not yet measured.
    """
    return RandomFeaturesConfig()


@recipe(seeds=SEEDS)
def resnet18_cifar10_random() -> RandomFeaturesConfig:
    """Probes on untrained ResNet-18, BatchNorm as initialised.

    Published: no figure of its own.
    Ours: not yet measured.
    """
    return RandomFeaturesConfig(network="resnet18_torchvision", image_size=224)


@recipe(seeds=SEEDS)
def resnet18_cifar10_random_calibrated() -> RandomFeaturesConfig:
    """Probes on untrained ResNet-18, BatchNorm statistics measured on the training images.

    Published: no figure of its own.
    Ours: not yet measured.
    """
    return override(resnet18_cifar10_random(), CALIBRATED)


@recipe(seeds=SEEDS, smoke={"network": "resnet18_torchvision"})
def alexnet_cifar10_random() -> RandomFeaturesConfig:
    """Probes on untrained AlexNet, the network of Deep Clustering.

    Published: no figure of its own; Deep Clustering reports 0.12 on ImageNet for an MLP on such features.
    Ours: not yet measured.
    """
    return override(resnet18_cifar10_random(), {"network": "alexnet"})


@recipe(seeds=SEEDS)
def resnet50_cifar10_random() -> RandomFeaturesConfig:
    """Probes on untrained ResNet-50, BatchNorm as initialised.

    Published: no figure of its own.
    Ours: not yet measured.
    """
    return override(resnet18_cifar10_random(), {"network": "resnet50"})


@recipe(seeds=SEEDS)
def resnet50_cifar10_random_calibrated() -> RandomFeaturesConfig:
    """Probes on untrained ResNet-50, BatchNorm statistics measured on the training images.

    Published: no figure of its own.
    Ours: not yet measured.
    """
    return override(resnet50_cifar10_random(), CALIBRATED)


@recipe(seeds=SEEDS)
def vit_b_16_cifar10_random() -> RandomFeaturesConfig:
    """Probes on untrained ViT-B/16.

    Published: no figure of its own.
    Ours: not yet measured.
    """
    return override(resnet18_cifar10_random(), {"network": "vit_b_16"})


@recipe(seeds=SEEDS)
def swin_t_cifar10_random() -> RandomFeaturesConfig:
    """Probes on untrained Swin-T.

    Published: no figure of its own.
    Ours: not yet measured.
    """
    return override(resnet18_cifar10_random(), {"network": "swin_t_torchvision"})


@recipe(seeds=SEEDS)
def pixels_imagenet_random() -> RandomFeaturesConfig:
    """Probes on the raw pixels of ImageNet at 32 pixels: the control without a network.

    Published: no figure of its own.
    Ours: not yet measured.
    """
    return RandomFeaturesConfig(dataset="imagenet-val", image_size=32, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@recipe(seeds=SEEDS, smoke={"network": "resnet18_torchvision"})
def alexnet_imagenet_random() -> RandomFeaturesConfig:
    """Probes on untrained AlexNet on ImageNet, the network and the images of Deep Clustering.

    Published: no figure of its own; Deep Clustering reports 0.12 for an MLP on such features.
    Ours: not yet measured.
    Departures: Deep Clustering learns from the 1.28 million training images.
    """
    return override(pixels_imagenet_random(), {"network": "alexnet", "image_size": 224})


@recipe(seeds=SEEDS)
def resnet50_imagenet_random() -> RandomFeaturesConfig:
    """Probes on untrained ResNet-50 on ImageNet, BatchNorm as initialised.

    Published: no figure of its own.
    Ours: not yet measured.
    """
    return override(alexnet_imagenet_random(), {"network": "resnet50"})


@recipe(seeds=SEEDS)
def resnet50_imagenet_random_calibrated() -> RandomFeaturesConfig:
    """Probes on untrained ResNet-50 on ImageNet, BatchNorm statistics measured on the images to learn from.

    Published: no figure of its own.
    Ours: not yet measured.
    """
    return override(resnet50_imagenet_random(), CALIBRATED)
