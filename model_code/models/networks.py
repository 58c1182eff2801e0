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


def _swin_cifar(num_classes: int) -> "nn.Module":
    from model_code.models.swin_sizes import swin_cifar

    return swin_cifar(num_classes)


def _swin_cifar_window4(num_classes: int) -> "nn.Module":
    from model_code.models.swin_sizes import swin_cifar_window4

    return swin_cifar_window4(num_classes)


def _swin_t(num_classes: int) -> "nn.Module":
    from model_code.models.swin_sizes import swin_t

    return swin_t(num_classes)


def _swin_s(num_classes: int) -> "nn.Module":
    from model_code.models.swin_sizes import swin_s

    return swin_s(num_classes)


def _swin_b(num_classes: int) -> "nn.Module":
    from model_code.models.swin_sizes import swin_b

    return swin_b(num_classes)


def _swin_l(num_classes: int) -> "nn.Module":
    from model_code.models.swin_sizes import swin_l

    return swin_l(num_classes)


NETWORKS: dict[str, Callable[[int], "nn.Module"]] = {
    "resnet18_torchvision": _torchvision_resnet18,
    "resnet18": _resnet18,
    "resnet18_improved": _resnet18_improved,
    "resnet18_improved_nopool": _resnet18_improved_nopool,
    "swin_cifar": _swin_cifar,
    "swin_cifar_window4": _swin_cifar_window4,
    "swin_t": _swin_t,
    "swin_s": _swin_s,
    "swin_b": _swin_b,
    "swin_l": _swin_l,
}


def build_network(name: str, num_classes: int) -> "nn.Module":
    """Return the untrained network `name` with `num_classes` outputs, in training mode, on the CPU.

    Raises:
        UsageError: No network has that name; the message lists those that exist.
    """
    if name not in NETWORKS:
        raise UsageError(f"no network {name!r}; choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name](num_classes)
