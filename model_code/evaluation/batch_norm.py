"""BatchNorm statistics of a frozen network, estimated on images that it was not trained on.

Shape suffixes: N = images, H = height, W = width, C = colour channels.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model_code.data.disk_images import DiskImages
from model_code.errors import UsageError
from model_code.evaluation.metrics import LARGEST_BATCH, find_device

_ORDER_SEED = 0


@torch.no_grad()
def calibrate_batch_norm(
    model: nn.Module,
    images_NHWC: Tensor | DiskImages,
    prepare: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = LARGEST_BATCH,
) -> None:
    """Replace every BatchNorm's running statistics by the mean of its batches' statistics, in place.

    The images are visited once in a fixed random order, in batches that differ by one image at most: so none
    counts more than another, and a batch holds all classes even where images lie class by class. Weights stay, other
    layers are in evaluation mode, and the model is left in evaluation mode. A model without BatchNorm stays as it is.

    Args:
        model: Images [B, H, W, C] in.
        images_NHWC: uint8 images, at least 2; each batch is moved to the model's device.
        prepare: Brings each batch to the size that the model reads; None leaves it.
        batch_size: Most images at once, at least 2 (3 are taken where 2 would leave a single one).

    Raises:
        UsageError: There are too few images, or the batches are too small.
    """
    if len(images_NHWC) < 2 or batch_size < 2:
        raise UsageError(
            f"BatchNorm cannot be calibrated on {len(images_NHWC)} images in batches of {batch_size}; "
            "give at least 2 images and batches of at least 2"
        )
    model.eval()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average
        layer.train()
    device = find_device(model, images_NHWC)
    order_N = torch.randperm(len(images_NHWC), generator=torch.Generator().manual_seed(_ORDER_SEED))
    try:
        for chosen in order_N.to(images_NHWC.device).tensor_split(_count_batches(len(images_NHWC), batch_size)):
            batch = images_NHWC[chosen].to(device)
            model(prepare(batch) if prepare else batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.eval()


def _count_batches(images: int, batch_size: int) -> int:
    """Return how few batches hold all images, each 2 or more: BatchNorm has no variance of a single value."""
    return min(-(-images // batch_size), images // 2)
