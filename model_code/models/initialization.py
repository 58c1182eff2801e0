"""Initialisations: whitened first convolution, partial identity, frozen BatchNorm scales, Gaussian weights.

Shape suffixes: N = images, B = images of a part, C = the three colour channels, H = height, W = width, P = patches, D =
values of a patch.
"""

import torch
from torch import Tensor, nn

from model_code.errors import UsageError

# Keeps the directions in which patches hardly differ from being blown up.
WHITENING_EPSILON = 5e-4
_IMAGES_AT_ONCE = 500
# Of the weights in ViT's and Swin's papers.
GAUSSIAN_STD = 0.02


@torch.no_grad()
def whiten_first_convolution(network: nn.Module, images_NCHW: Tensor) -> None:
    """Make a network's `whitening` convolution whiten patches of some images, and freeze its weights.

    Its filters become the eigenvectors of the patches' second-moment matrix, each divided by the root of its
    eigenvalue, and their negatives. The bias becomes zero and stays trainable.

    Args:
        network: Has a convolution `whitening` with two filters for each value of a patch; changed in place.
        images_NCHW: Normalised float images.

    Raises:
        UsageError: The network has no such convolution.

    Source: Jordan 2024, arXiv:2404.00498, Sec. 3.2.
    """
    layer = find_whitening(network)
    kernel = layer.kernel_size[0]
    values = layer.in_channels * kernel**2
    moments_DD = torch.zeros(values, values, dtype=torch.float64, device=images_NCHW.device)
    count = 0
    for images_BCHW in images_NCHW.split(_IMAGES_AT_ONCE):
        patches_BDP = nn.functional.unfold(images_BCHW.float(), kernel)
        patches_PD = patches_BDP.transpose(1, 2).reshape(-1, values).double()
        moments_DD += patches_PD.T @ patches_PD
        count += len(patches_PD)
    eigenvalues_D, eigenvectors_DD = torch.linalg.eigh((moments_DD / count).cpu())
    filters_DD = (eigenvectors_DD / (eigenvalues_D + WHITENING_EPSILON).sqrt()).T.flip(0)
    weights = torch.cat([filters_DD, -filters_DD]).view_as(layer.weight)
    layer.weight.copy_(weights.to(layer.weight))
    layer.weight.requires_grad_(False)
    assert layer.bias is not None, "find_whitening has looked"
    layer.bias.zero_()


def find_whitening(network: nn.Module) -> nn.Conv2d:
    """Return a network's convolution for whitening, which has a bias and two filters for each value of a patch.

    Raises:
        UsageError: It has none.
    """
    layer = getattr(network, "whitening", None)
    if not (
        isinstance(layer, nn.Conv2d)
        and layer.bias is not None
        and layer.out_channels == 2 * layer.in_channels * layer.kernel_size[0] ** 2
    ):
        raise UsageError(
            f"whitening_images is for networks with a whitening convolution, and {type(network).__name__} has none; "
            "choose --set network=fastnet, or give --set whitening_images=0"
        )
    return layer


@torch.no_grad()
def start_as_partial_identity(network: nn.Module) -> None:
    """Make the first filters of every convolution but `whitening` pass their input channel on unchanged.

    As many filters as there are input channels become Dirac kernels; the others keep their initialisation.

    Source: Jordan 2024, arXiv:2404.00498, Sec. 3.3.
    """
    whitening = getattr(network, "whitening", None)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module is not whitening and module.groups == 1:
            nn.init.dirac_(module.weight[: module.in_channels])


def freeze_norm_scales(network: nn.Module) -> None:
    """Take the scales of every BatchNorm out of the training; their biases stay in it."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            module.weight.requires_grad_(False)


@torch.no_grad()
def draw_gaussian(network: nn.Module) -> None:
    """Draw every weight of a network from a normal distribution of mean 0 and std 0.02, and set its biases to 0.

    Weights are the parameters of two and more dimensions; the scales of normalisation layers keep their 1.
    """
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=GAUSSIAN_STD)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


@torch.no_grad()
def draw_gaussian_head(network: nn.Module) -> None:
    """Draw the weights of a network's last linear layer as `draw_gaussian` does; all others stay."""
    draw_gaussian([module for module in network.modules() if isinstance(module, nn.Linear)][-1])
