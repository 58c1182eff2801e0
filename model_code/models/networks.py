"""Every network by the name that a recipe calls it. torch is imported when a network is built, not before."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from model_code.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

_FILES = {
    "resnet18": ("resnet18_torchvision", "resnet18", "resnet18_improved", "resnet18_improved_nopool"),
    "swin_sizes": ("swin_cifar", "swin_cifar_window4", "swin_t", "swin_s", "swin_b", "swin_l"),
}


def _find(file: str, name: str) -> Callable[[int], "nn.Module"]:
    """Return a function that calls the function `name` of a file in this folder."""

    def build(num_classes: int) -> "nn.Module":
        network: nn.Module = getattr(import_module(f"model_code.models.{file}"), name)(num_classes)
        return network

    return build


NETWORKS = {name: _find(file, name) for file, names in _FILES.items() for name in names}


def build_network(name: str, num_classes: int) -> "nn.Module":
    """Return the untrained network `name` with `num_classes` outputs, in training mode, on the CPU.

    Raises:
        UsageError: No network has that name; the message lists those that exist.
    """
    if name not in NETWORKS:
        raise UsageError(f"no network {name!r}; choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name](num_classes)


def build_backbone(name: str) -> tuple["nn.Module", int]:
    """Return the untrained network `name` without its last layer, and the width of the features that come out.

    The other layers keep their names, so weights of a backbone fit the whole network and the other way round.

    Raises:
        UsageError: No network has that name, or it is no ResNet; the message lists those that exist.
    """
    from torch import nn

    network = build_network(name, num_classes=1)
    if not isinstance(getattr(network, "fc", None), nn.Linear):
        raise UsageError(f"{name} cannot be a backbone; choose a ResNet: {', '.join(_FILES['resnet18'])}")
    assert isinstance(network.fc, nn.Linear)
    feature_width = network.fc.in_features
    network.fc = nn.Identity()
    return network, feature_width
