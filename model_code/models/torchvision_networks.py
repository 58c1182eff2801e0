"""torchvision's larger networks, untrained, as it initialises them.

The last layer of a ViT starts at 0, so untrained it answers the same to every image; those of the others start from
random weights. `image_size` is the height and width of the images, pixels; a ViT has a position for each patch, so
its parameters grow with it.

Shape suffixes: B = images, C = channels, H = height, W = width, K = classes.

Sources: Krizhevsky 2014, arXiv:1404.5997; He et al. 2016, arXiv:1512.03385; Dosovitskiy et al. 2021, arXiv:2010.11929;
Liu et al. 2021, arXiv:2103.14030; Tan and Le 2019, arXiv:1905.11946.
"""

import torchvision
from torch import Tensor, nn

from model_code.models.networks import network
from model_code.models.resnet18 import SMALLEST_IMAGE


class AlexNet(torchvision.models.AlexNet):  # type: ignore[misc]
    """torchvision's AlexNet, its last layer called `head`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head = self.classifier.pop(len(self.classifier) - 1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits [B, K] of normalised float images [B, 3, H, W]; H and W at least 63."""
        logits_BK: Tensor = self.head(super().forward(images_BCHW))
        return logits_BK


@network(smallest=63)
def alexnet(num_classes: int) -> AlexNet:
    """Return AlexNet in its one-column form; 61,100,840 parameters with 1000 classes."""
    return AlexNet(num_classes)


class EfficientNet(nn.Module):
    """torchvision's EfficientNet-B0, its last layer called `head`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        whole = torchvision.models.efficientnet_b0(weights=None, num_classes=num_classes)
        self.features, self.avgpool = whole.features, whole.avgpool
        self.dropout, self.head = whole.classifier

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits [B, K] of normalised float images [B, 3, H, W]."""
        logits_BK: Tensor = self.head(self.dropout(self.avgpool(self.features(images_BCHW)).flatten(1)))
        return logits_BK


@network(smallest=SMALLEST_IMAGE)
def efficientnet_b0(num_classes: int) -> EfficientNet:
    """Return EfficientNet-B0 with its dropout and drop-path of 0.2; 5,288,548 parameters with 1000 classes."""
    return EfficientNet(num_classes)


@network(smallest=SMALLEST_IMAGE)
def resnet50(num_classes: int) -> nn.Module:
    """Return ResNet-50; 25,557,032 parameters with 1000 classes."""
    network: nn.Module = torchvision.models.resnet50(weights=None, num_classes=num_classes)
    return network


@network(smallest=SMALLEST_IMAGE)
def resnet101(num_classes: int) -> nn.Module:
    """Return ResNet-101; 44,549,160 parameters with 1000 classes."""
    network: nn.Module = torchvision.models.resnet101(weights=None, num_classes=num_classes)
    return network


@network(smallest=16, step=16)
def vit_b_16(num_classes: int, image_size: int = 224) -> nn.Module:
    """Return ViT-B/16; 86,567,656 parameters with 1000 classes at 224 pixels."""
    network: nn.Module = torchvision.models.vit_b_16(weights=None, num_classes=num_classes, image_size=image_size)
    return network


@network(smallest=16, step=16)
def vit_l_16(num_classes: int, image_size: int = 224) -> nn.Module:
    """Return ViT-L/16; 304,326,632 parameters with 1000 classes at 224 pixels."""
    network: nn.Module = torchvision.models.vit_l_16(weights=None, num_classes=num_classes, image_size=image_size)
    return network


@network(smallest=4)
def swin_t_torchvision(num_classes: int) -> nn.Module:
    """Return torchvision's Swin-T with its drop-path of 0.2; 28,288,354 parameters with 1000 classes."""
    network: nn.Module = torchvision.models.swin_t(weights=None, num_classes=num_classes)
    return network


@network(smallest=4)
def swin_s_torchvision(num_classes: int) -> nn.Module:
    """Return torchvision's Swin-S with its drop-path of 0.3; 49,606,258 parameters with 1000 classes."""
    network: nn.Module = torchvision.models.swin_s(weights=None, num_classes=num_classes)
    return network
