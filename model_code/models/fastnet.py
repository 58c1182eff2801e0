"""A small convolutional network that learns CIFAR-10 in a tenth of a ResNet-18's arithmetic.

Whitened convolution, three groups of two 3x3 convolutions, global max-pool, linear layer. How it starts (whitening,
partial identity) and which of its weights are frozen are settings of the training, not of the network.

Shape suffixes: B = images, C = channels, H = height, W = width, D = features, K = classes.

Source: Jordan 2024, arXiv:2404.00498, Sec. 3 and Listing 4 (airbench94, airbench95).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from model_code.models.networks import network

# torch counts the share of the new batch: the source's 0.6 is the share of the old average.
NORM_MOMENTUM = 0.4
NORM_EPSILON = 1e-12
LOGIT_SCALE = 1 / 9


class ConvGroup(nn.Module):
    """Two 3x3 convolutions with BatchNorm and GELU; max-pool after the first halves height and width."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels, NORM_EPSILON, NORM_MOMENTUM)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels, NORM_EPSILON, NORM_MOMENTUM)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Return [B, out_channels, H // 2, W // 2]."""
        hidden = F.gelu(self.norm1(F.max_pool2d(self.conv1(features_BCHW), 2)))
        return F.gelu(self.norm2(self.conv2(hidden)))


class FastNet(nn.Module):
    """The network: behind the whitened convolution three groups halve height and width three times.

    Args:
        num_classes: Width K of the output.
        widths: Channels of the three groups.
        kernel: Height and width of the whitened patches, pixels.
        stride: Step between patches, pixels.
    """

    def __init__(self, num_classes: int, widths: tuple[int, int, int], kernel: int = 2, stride: int = 1) -> None:
        super().__init__()
        # Each eigenvector of the patches and its negative.
        patch_values = 3 * kernel**2
        self.whitening = nn.Conv2d(3, 2 * patch_values, kernel, stride)
        channels = (2 * patch_values, *widths)
        self.groups = nn.Sequential(*(ConvGroup(*channels[index : index + 2]) for index in range(len(widths))))
        self.fc = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits [B, K] of normalised float images [B, 3, H, W]."""
        features_BD = self.groups(F.gelu(self.whitening(images_BCHW))).amax(dim=(2, 3))
        logits_BK: Tensor = self.fc(features_BD) * LOGIT_SCALE
        return logits_BK


@network(smallest=9)
def fastnet(num_classes: int) -> FastNet:
    """Return the narrow network, airbench94's: 1,972,792 parameters with 10 classes, 118 MMAC an image of 32 pixels."""
    return FastNet(num_classes, (64, 256, 256))


@network(smallest=9)
def fastnet_wide(num_classes: int) -> FastNet:
    """Return the wide network, airbench95's: 4,606,520 parameters with 10 classes, 302 MMAC an image of 32 pixels."""
    return FastNet(num_classes, (128, 384, 384))


@network(smallest=17)
def fastnet_strided(num_classes: int) -> FastNet:
    """Return a narrow network for images of about 64 pixels, whitened in 3x3 patches with stride 2.

    1,991,272 parameters with 10 classes, 136 MMAC an image of 64 pixels.
    """
    return FastNet(num_classes, (64, 256, 256), kernel=3, stride=2)
