"""ResNet-18 for 32x32 images: torchvision's, our own, and ours with a stem made for small images.

torchvision's and our own compute the same but start from other weights, so each is also here with the other's start:
four corners that tell the implementation from the initialisation.

Shape suffixes: B = images, C = channels, H = height, W = width, D = features, K = classes.

Source: He et al. 2016, arXiv:1512.03385, Table 1 and Fig. 5 (left).
"""

from typing import Literal

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from model_code.models.networks import network

Stem = Literal["7x7", "3x3"]
STAGE_WIDTHS = (64, 128, 256, 512)
# Stem and max-pool turn 4x4 pixels into one place, so the first stage sees 2x2 places; with less, all maps are single
# places, most of each convolution reads padding, and in training BatchNorm has one value for each image.
SMALLEST_IMAGE = 8


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the first halves height and width when `stride` is 2."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Return [B, out_channels, H / stride, W / stride]."""
        hidden = F.relu(self.bn1(self.conv1(features_BCHW)))
        hidden = self.bn2(self.conv2(hidden))
        return F.relu(hidden + self.shortcut(features_BCHW))


class ResNet18(nn.Module):
    """Our own ResNet-18 with PyTorch's default initialisation.

    Args:
        num_classes: Width K of the output.
        stem: `7x7` is the paper's first convolution (stride 2), `3x3` keeps the resolution.
        has_max_pool: True if a 3x3 stride-2 max-pool follows the stem.
    """

    def __init__(self, num_classes: int, stem: Stem = "7x7", has_max_pool: bool = True) -> None:
        super().__init__()
        kernel, stride, padding = (7, 2, 3) if stem == "7x7" else (3, 1, 1)
        width = STAGE_WIDTHS[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, kernel, stride, padding, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.max_pool = nn.MaxPool2d(3, stride=2, padding=1) if has_max_pool else nn.Identity()
        stages = []
        for index, out_channels in enumerate(STAGE_WIDTHS):
            stages += [
                BasicBlock(width, out_channels, stride=1 if index == 0 else 2),
                BasicBlock(out_channels, out_channels, stride=1),
            ]
            width = out_channels
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits [B, K] of normalised float images [B, 3, H, W]; H and W at least 32."""
        logits_BK: Tensor = self.fc(self.features(images_BCHW))
        return logits_BK

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return what the last layer reads, [B, D = 512], 0 and above, of normalised float images [B, 3, H, W]."""
        features_BCHW: Tensor = self.stages(self.max_pool(self.stem(images_BCHW)))
        return features_BCHW.mean(dim=(2, 3))


@network(smallest=SMALLEST_IMAGE)
def resnet18(num_classes: int) -> ResNet18:
    """Return our ResNet-18 as the paper has it: 7x7 stem, max-pool; 11,181,642 parameters with 10 classes."""
    return ResNet18(num_classes)


@network(smallest=SMALLEST_IMAGE)
def resnet18_fan_out(num_classes: int) -> ResNet18:
    """Return `resnet18` with torchvision's initialisation: convolutions kaiming_normal, fan_out.

    11,181,642 parameters with 10 classes.
    BatchNorm starts at 1 and 0 and the last layer at PyTorch's default in both implementations.
    """
    network = ResNet18(num_classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


@network(smallest=SMALLEST_IMAGE)
def resnet18_improved(num_classes: int) -> ResNet18:
    """Return our ResNet-18 with the 3x3 stem and the max-pool; 11,173,962 parameters with 10 classes."""
    return ResNet18(num_classes, stem="3x3")


@network(smallest=SMALLEST_IMAGE)
def resnet18_improved_nopool(num_classes: int) -> ResNet18:
    """Return our ResNet-18 with the 3x3 stem and without the max-pool; 11,173,962 parameters with 10 classes."""
    return ResNet18(num_classes, stem="3x3", has_max_pool=False)


@network(smallest=SMALLEST_IMAGE)
def resnet18_torchvision(num_classes: int) -> nn.Module:
    """Return torchvision's ResNet-18, untrained (its initialisation is kaiming_normal, fan_out).

    11,181,642 parameters with 10 classes.
    """
    network: nn.Module = torchvision.models.resnet18(weights=None, num_classes=num_classes)
    return network


@network(smallest=SMALLEST_IMAGE)
def resnet18_torchvision_default(num_classes: int) -> nn.Module:
    """Return `resnet18_torchvision` with PyTorch's default initialisation: convolutions uniform, +-1 / sqrt(fan_in).

    11,181,642 parameters with 10 classes.
    """
    network = resnet18_torchvision(num_classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return network
