"""Every network by the name that a recipe calls it. torch is imported when a network is built, not before."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from model_code.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

_FILES = {
    "fastnet": ("fastnet", "fastnet_wide"),
    "resnet18": (
        "resnet18_torchvision",
        "resnet18_torchvision_default",
        "resnet18",
        "resnet18_fan_out",
        "resnet18_improved",
        "resnet18_improved_nopool",
    ),
    "swin_sizes": ("swin_cifar", "swin_cifar_window4", "swin_t", "swin_s", "swin_b", "swin_l"),
    "torchvision_networks": (
        "resnet50",
        "resnet101",
        "vit_b_16",
        "vit_l_16",
        "swin_t_torchvision",
        "swin_s_torchvision",
    ),
}
# Built for one image size; the others take any size that `check_image_size` allows.
_SIZED = (*_FILES["swin_sizes"], "vit_b_16", "vit_l_16")
_LAST_LAYERS = ("fc", "head", "heads")
# Start of a network's name -> its smallest images and the step between sizes, pixels. 7x7 stem and max-pool turn 4x4
# pixels into one place, so a ResNet's first stage sees 2x2 places at 8; with less, all its maps are single places, most
# of each convolution reads padding, and in training BatchNorm has one value for each image. A Swin pads maps to whole
# windows and, where it halves them, to even sizes, so a single patch is enough. A FastNet loses a row and a column and
# halves the rest three times. The first start that fits counts.
_SIZES = {"fastnet": (9, 1), "resnet": (8, 1), "vit": (16, 16), "swin_cifar": (2, 1), "swin": (4, 1)}


def _find(file: str, name: str) -> Callable[..., "nn.Module"]:
    """Return a function that calls the function `name` of a file in this folder."""

    def build(num_classes: int, **sizes: int) -> "nn.Module":
        network: nn.Module = getattr(import_module(f"model_code.models.{file}"), name)(num_classes, **sizes)
        return network

    return build


NETWORKS: dict[str, Callable[..., "nn.Module"]] = {
    name: _find(file, name) for file, names in _FILES.items() for name in names
}


def check_image_size(network_name: str, image_size: int) -> None:
    """Refuse images that a network cannot read.

    Args:
        network_name: Key of `NETWORKS`.
        image_size: Height and width of the images, pixels.

    Raises:
        UsageError: No network has that name, or its images cannot have that size; the message says which can.
    """
    _check_name(network_name)
    smallest, step = next((sizes for start, sizes in _SIZES.items() if network_name.startswith(start)), (1, 1))
    if image_size >= smallest and image_size % step == 0:
        return
    nearest = max(smallest, round(image_size / step) * step)
    sizes = f"{smallest} and more" if step == 1 else f"multiples of {step} from {smallest}"
    raise UsageError(
        f"{network_name} cannot read images of {image_size} pixels; {sizes} are allowed, the nearest is {nearest}"
    )


def build_network(name: str, num_classes: int, image_size: int | None = None) -> "nn.Module":
    """Return the untrained network `name` with `num_classes` outputs, in training mode, on the CPU.

    Args:
        name: Key of `NETWORKS`.
        num_classes: Width of the output.
        image_size: Height and width of the images, pixels; None takes the network's own size, where it has one.

    Raises:
        UsageError: No network has that name, the message lists those that exist; or as `check_image_size`.
    """
    _check_name(name)
    if image_size is None:
        return NETWORKS[name](num_classes)
    check_image_size(name, image_size)
    return NETWORKS[name](num_classes, image_size=image_size) if name in _SIZED else NETWORKS[name](num_classes)


def build_backbone(name: str, image_size: int | None = None) -> tuple["nn.Module", int]:
    """Return the untrained network `name` without its last layer, and the width of the features that come out.

    A ViT's features are those of its class token. The other layers keep their names, so weights of a backbone fit the
    whole network and the other way round.

    Args:
        name: Key of `NETWORKS`.
        image_size: See `build_network`.

    Raises:
        UsageError: As `build_network`, or the network does not end in one linear layer.
    """
    from torch import nn

    network = build_network(name, num_classes=1, image_size=image_size)
    for layer_name in _LAST_LAYERS:
        layer = getattr(network, layer_name, None)
        linear = layer[-1] if isinstance(layer, nn.Sequential) and len(layer) == 1 else layer
        if isinstance(linear, nn.Linear):
            setattr(network, layer_name, nn.Identity())
            return network, linear.in_features
    raise UsageError(
        f"{name} cannot be a backbone, since it has no linear layer called {', '.join(_LAST_LAYERS[:-1])} or "
        f"{_LAST_LAYERS[-1]}; choose one of {', '.join(name for names in _FILES.values() for name in names)}"
    )


def _check_name(name: str) -> None:
    if name not in NETWORKS:
        raise UsageError(f"no network {name!r}; choose one of {', '.join(NETWORKS)}")
