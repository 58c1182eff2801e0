"""Every network by the name that a recipe calls it. torch is imported when a network is built, not before."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from model_code.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


def _torchvision_resnet18(num_classes: int) -> "nn.Module":
    from model_code.models.resnet18 import torchvision_resnet18

    return torchvision_resnet18(num_classes)


def _resnet18(num_classes: int) -> "nn.Module":
    from model_code.models.resnet18 import ResNet18

    return ResNet18(num_classes)


def _resnet18_improved(num_classes: int) -> "nn.Module":
    from model_code.models.resnet18 import ResNet18

    return ResNet18(num_classes, stem="3x3")


def _resnet18_improved_nopool(num_classes: int) -> "nn.Module":
    from model_code.models.resnet18 import ResNet18

    return ResNet18(num_classes, stem="3x3", has_max_pool=False)


NETWORKS: dict[str, Callable[[int], "nn.Module"]] = {
    "resnet18_torchvision": _torchvision_resnet18,
    "resnet18": _resnet18,
    "resnet18_improved": _resnet18_improved,
    "resnet18_improved_nopool": _resnet18_improved_nopool,
}


def build_network(name: str, num_classes: int) -> "nn.Module":
    """Return the untrained network `name` with `num_classes` outputs, in training mode, on the CPU.

    Raises:
        UsageError: No network has that name; the message lists those that exist.
    """
    if name not in NETWORKS:
        raise UsageError(f"no network {name!r}; choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name](num_classes)
