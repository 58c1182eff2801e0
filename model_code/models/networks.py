"""Every network by the name that a recipe calls it. torch is imported when a network is built, not before."""

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from model_code.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

LAST_LAYERS = ("fc", "head", "heads")


@dataclass(frozen=True)
class _ImageSizes:
    smallest: int = 1
    step: int = 1
    is_argument: bool = False


_SIZES: dict[str, _ImageSizes] = {}
Builder = TypeVar("Builder", bound=Callable[..., "nn.Module"])


def network(*, smallest: int, step: int = 1) -> Callable[[Builder], Builder]:
    """Register a function of a file in this folder as the network of its name.

    The function takes the number of classes and, if the network is built for one image size, `image_size`.

    Args:
        smallest: Height and width of the smallest images, pixels.
        step: Step between sizes, pixels.
    """

    def enter(function: Builder) -> Builder:
        is_argument = "image_size" in inspect.signature(function).parameters
        _SIZES[function.__name__] = _ImageSizes(smallest, step, is_argument)
        return function

    return enter


def _find_files() -> dict[str, str]:
    """Return the file of each network, found in the source: importing a file imports torch."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(file.read_bytes()).body:
            if isinstance(node, ast.FunctionDef):
                decorators = [one.func for one in node.decorator_list if isinstance(one, ast.Call)]
                if any(isinstance(one, ast.Name) and one.id == network.__name__ for one in decorators):
                    found[node.name] = file.stem
    return found


def _build_lazily(file: str, name: str) -> Callable[..., "nn.Module"]:
    def build(num_classes: int, **sizes: int) -> "nn.Module":
        built: nn.Module = getattr(import_module(f"model_code.models.{file}"), name)(num_classes, **sizes)
        return built

    return build


_FILES = _find_files()
NETWORKS: dict[str, Callable[..., "nn.Module"]] = {name: _build_lazily(file, name) for name, file in _FILES.items()}


def check_image_size(network_name: str, image_size: int) -> None:
    """Refuse images that a network cannot read.

    Args:
        network_name: Key of `NETWORKS`.
        image_size: Height and width of the images, pixels.

    Raises:
        UsageError: No network has that name, or its images cannot have that size; the message says which can.
    """
    found = _get_sizes(network_name)
    smallest, step = found.smallest, found.step
    if image_size >= smallest and image_size % step == 0:
        return
    nearest = max(smallest, round(image_size / step) * step)
    sizes = f"{smallest} and more" if step == 1 else f"multiples of {step} from {smallest}"
    raise UsageError(
        f"{network_name} cannot read images of {image_size} pixels; {sizes} are allowed, the nearest is {nearest}"
    )


def fit_image_size(network_name: str, image_size: int) -> int:
    """Return the largest size of images, up to `image_size` pixels, that a network can read.

    Raises:
        UsageError: As `check_image_size`, where there is none.
    """
    fitting = image_size - image_size % _get_sizes(network_name).step
    check_image_size(network_name, fitting or image_size)
    return fitting


def build_network(name: str, num_classes: int, image_size: int | None = None) -> "nn.Module":
    """Return the untrained network `name` with `num_classes` outputs, in training mode, on the CPU.

    Args:
        name: Key of `NETWORKS`.
        num_classes: Width of the output.
        image_size: Height and width of the images, pixels; None takes the network's own size, where it has one.

    Raises:
        UsageError: No network has that name, the message lists those that exist; or as `check_image_size`.
    """
    sizes = _get_sizes(name)
    if image_size is None:
        return NETWORKS[name](num_classes)
    check_image_size(name, image_size)
    return NETWORKS[name](num_classes, **({"image_size": image_size} if sizes.is_argument else {}))


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
    for layer_name in LAST_LAYERS:
        layer = getattr(network, layer_name, None)
        linear = layer[-1] if isinstance(layer, nn.Sequential) and len(layer) == 1 else layer
        if isinstance(linear, nn.Linear):
            setattr(network, layer_name, nn.Identity())
            return network, linear.in_features
    raise UsageError(
        f"{name} cannot be a backbone, since it has no linear layer called {', '.join(LAST_LAYERS[:-1])} or "
        f"{LAST_LAYERS[-1]}; choose one of {', '.join(_FILES)}"
    )


def list_backbone(network: "nn.Module") -> "list[nn.Parameter]":
    """Return all parameters but those of the last layer."""
    return [one for name, one in network.named_parameters() if name.partition(".")[0] not in LAST_LAYERS]


def count_parameters(network: "nn.Module") -> int:
    """Return how many numbers a network learns."""
    return sum(parameter.numel() for parameter in network.parameters())


def _get_sizes(name: str) -> _ImageSizes:
    if name not in NETWORKS:
        raise UsageError(f"no network {name!r}; choose one of {', '.join(NETWORKS)}")
    if name in _FILES:
        import_module(f"model_code.models.{_FILES[name]}")
    return _SIZES.get(name, _ImageSizes())
