"""Small networks that are learned on the features of a frozen backbone.

Every random weight comes from the given generator, on whose device the layers are.

Shape suffixes: N = images, D = features, K = classes.
"""

import math

import torch
from torch import Tensor, nn

# A dimension that varies by less than this share of its largest value only has rounding errors.
CONSTANT_BELOW = 1e-6


class Standardise(nn.Module):
    """Shift and scale each dimension to mean 0 and variance 1 over some features; constant dimensions become 0.

    Args:
        features_ND: Features that say mean and scale, float; N at least 1.
    """

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, features_ND: Tensor) -> None:
        super().__init__()
        variance_D, mean_D = torch.var_mean(features_ND, dim=0, correction=0)
        std_D = variance_D.sqrt()
        is_constant_D = std_D <= CONSTANT_BELOW * features_ND.abs().amax(dim=0)
        self.register_buffer("mean_D", mean_D)
        self.register_buffer("scale_D", torch.where(is_constant_D, 0.0, 1 / std_D))

    def forward(self, features_ND: Tensor) -> Tensor:
        """Return the shape of the input."""
        return (features_ND - self.mean_D) * self.scale_D


def build_probe(
    feature_width: int, classes: int, hidden_width: int, generator: torch.Generator
) -> nn.Linear | nn.Sequential:
    """Return a linear layer, or with a hidden width above 0 an MLP with one hidden layer and ReLU.

    Weights of the last layer are normal of std 0.01, those of the hidden one kaiming_normal (made for features of
    variance 1), biases 0.
    """
    last = nn.Linear(hidden_width or feature_width, classes, device=generator.device)
    if not hidden_width:
        nn.init.normal_(last.weight, std=0.01, generator=generator)
        nn.init.zeros_(last.bias)
        return last
    hidden = nn.Linear(feature_width, hidden_width, device=generator.device)
    nn.init.kaiming_normal_(hidden.weight, nonlinearity="relu", generator=generator)
    nn.init.normal_(last.weight, std=0.01, generator=generator)
    nn.init.zeros_(hidden.bias)
    nn.init.zeros_(last.bias)
    return nn.Sequential(hidden, nn.ReLU(), last)


def build_untrained_head(feature_width: int, classes: int, generator: torch.Generator) -> nn.Linear:
    """Return a linear layer with PyTorch's default initialisation: uniform in +-1 / sqrt(feature_width)."""
    head = nn.Linear(feature_width, classes, device=generator.device)
    bound = 1 / math.sqrt(feature_width)
    for parameter in (head.weight, head.bias):
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return head
