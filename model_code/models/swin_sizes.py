"""The sizes of Swin Transformer that have a name.

`image_size` is the height and width of the images, pixels; the number of parameters does not depend on it. A
Swin pads maps to whole windows and, where it halves them, to even sizes, so a single patch is enough.

Shape suffixes: B = images, C = channels, H = height, W = width, K = classes.
"""

import torch.nn.functional as F
from torch import Tensor

from model_code.models.networks import network
from model_code.models.swin import SwinTransformer


class EnlargedSwin(SwinTransformer):
    """A Swin Transformer that enlarges its images to its own size, bilinearly."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits [B, K] of normalised float images [B, 3, H, W] of any square size."""
        enlarged_BCHW = F.interpolate(images_BCHW, (self.image_size, self.image_size), mode="bilinear")
        return super().forward(enlarged_BCHW)


@network(smallest=2)
def swin_cifar(num_classes: int, image_size: int = 32) -> SwinTransformer:
    """Return the small network for CIFAR-10; 14,373,340 parameters with 10 classes.

    1.35 GMAC an image, since its maps of 16, 8 and 4 tokens are padded to 21, 14 and 7. In the last stage one window
    covers the map, so windows are not shifted there: so do the paper's authors and torchvision, while the article that
    published this network shifts them.
    """
    return SwinTransformer(
        num_classes,
        image_size=image_size,
        patch_size=2,
        channels=192,
        depths=(2, 6, 2),
        heads=(3, 6, 12),
        window=7,
        mlp_ratio=1,
    )


@network(smallest=2)
def swin_cifar_window4(num_classes: int, image_size: int = 32) -> SwinTransformer:
    """Return `swin_cifar` with windows of 4, which need no padding at 32 pixels, MLP ratio 2 and drop-path 0.1.

    18,645,868 parameters with 10 classes, 0.80 GMAC an image. The three settings are those of Lee et al. 2021,
    arXiv:2112.13492 (code: aanna0701/SPT_LSA_ViT), whose network is another one: 96 channels, depths 2/6/4 and a
    learned absolute position embedding.
    """
    return SwinTransformer(
        num_classes,
        image_size=image_size,
        patch_size=2,
        channels=192,
        depths=(2, 6, 2),
        heads=(3, 6, 12),
        window=4,
        mlp_ratio=2,
        drop_path=0.1,
    )


@network(smallest=4)
def swin_t(num_classes: int, image_size: int = 224) -> SwinTransformer:
    """Return Swin-T with the paper's drop-path; 28,288,354 parameters with 1000 classes."""
    return _paper_size(num_classes, image_size, channels=96, depth=6, heads=(3, 6, 12, 24), drop_path=0.2)


@network(smallest=8)
def swin_t_enlarged(num_classes: int) -> SwinTransformer:
    """Return Swin-T on images that are enlarged to 224 pixels; 28,288,354 parameters with 1000 classes."""
    heads = (3, 6, 12, 24)
    return _paper_size(num_classes, 224, channels=96, depth=6, heads=heads, drop_path=0.2, kind=EnlargedSwin)


@network(smallest=4)
def swin_s(num_classes: int, image_size: int = 224) -> SwinTransformer:
    """Return Swin-S with the paper's drop-path; 49,606,258 parameters with 1000 classes."""
    return _paper_size(num_classes, image_size, channels=96, depth=18, heads=(3, 6, 12, 24), drop_path=0.3)


@network(smallest=4)
def swin_b(num_classes: int, image_size: int = 224) -> SwinTransformer:
    """Return Swin-B with the paper's drop-path; 87,768,224 parameters with 1000 classes."""
    return _paper_size(num_classes, image_size, channels=128, depth=18, heads=(4, 8, 16, 32), drop_path=0.5)


@network(smallest=4)
def swin_l(num_classes: int, image_size: int = 224) -> SwinTransformer:
    """Return Swin-L with the drop-path of its ImageNet-22K training; 196,532,476 parameters with 1000 classes."""
    return _paper_size(num_classes, image_size, channels=192, depth=18, heads=(6, 12, 24, 48), drop_path=0.2)


def _paper_size(
    num_classes: int,
    image_size: int,
    *,
    channels: int,
    depth: int,
    heads: tuple[int, ...],
    drop_path: float,
    kind: type[SwinTransformer] = SwinTransformer,
) -> SwinTransformer:
    """Return what the four sizes of the paper's Sec. 3.3 share; `depth` is that of the third stage."""
    return kind(
        num_classes,
        image_size=image_size,
        patch_size=4,
        channels=channels,
        depths=(2, 2, depth, 2),
        heads=heads,
        window=7,
        drop_path=drop_path,
    )
