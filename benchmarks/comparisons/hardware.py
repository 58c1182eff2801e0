"""Shares of the hardware's limits that training and augmentation reach."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.comparison import Comparison
from benchmarks.comparisons.augmentation import IMAGES, our_crops, our_views
from benchmarks.comparisons.several_runs import loss_of
from benchmarks.workload import BATCH, NETWORK, build_sgd, draw_images, time_batches, time_work
from model_code.models.networks import build_network

COPIED_BYTES = 2**28
SIDE = 2048
CHANNELS = 256
PIXELS = 32 * 32 * 3


def compare_arithmetic(device: torch.device, _: Path) -> Comparison:
    """A training step beside the faster of a matrix product and a wide convolution, fp32."""
    network = build_network(NETWORK, 10).to(device).train()
    optimizer = build_sgd(network.parameters())
    images_BCHW = torch.randn((BATCH, 3, 32, 32), device=device)
    labels_B = torch.arange(BATCH, device=device) % 10
    wide_BCHW = torch.randn((BATCH, CHANNELS, 16, 16), device=device)
    weights = torch.randn((CHANNELS, CHANNELS, 3, 3), device=device)
    left, right = torch.randn((2, SIDE, SIDE), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(network, images_BCHW, labels_B).backward()
        optimizer.step()

    def convolve() -> torch.Tensor:
        return torch.nn.functional.conv2d(wide_BCHW, weights, padding=1)

    with FlopCounterMode(display=False) as counter:
        step()
    flops = counter.get_total_flops()
    training, product = f"training step of {NETWORK}, batch {BATCH}", f"matrix product of {SIDE}"
    convolution = f"3x3 convolution of {CHANNELS} channels"
    convolution_flops = 2 * wide_BCHW.numel() * weights[0].numel()
    found = {
        training: lambda: flops / time_work(step, 4, device) / 1e9,
        product: lambda: 2 * SIDE**3 / time_work(lambda: left @ right, 8, device) / 1e9,
        convolution: lambda: convolution_flops / time_work(convolve, 4, device) / 1e9,
    }
    return Comparison("GFLOP/s", found, {training: "convolutions and products counted"}, wholes=(product, convolution))


def compare_traffic(device: torch.device, _: Path) -> Comparison:
    """Our augmentation beside a copy: images read as uint8 and written as float32, nothing between counted."""
    images_NHWC = draw_images(IMAGES).to(device)
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def measure(augment: Callable[[torch.Tensor], object], views: int) -> float:
        return time_batches(images_NHWC, augment) * PIXELS * (1 + 4 * views) / 1e9

    crops, views, copy = our_crops(device), our_views(device), f"copy of {COPIED_BYTES // 2**20} MiB"
    found = {
        "crop, flip, normalise": lambda: measure(crops, 1),
        "two views": lambda: measure(views, 2),
        copy: lambda: 2 * COPIED_BYTES / time_work(lambda: target.copy_(source), 8, device) / 1e9,
    }
    notes = dict.fromkeys(("crop, flip, normalise", "two views"), "uint8 read, float32 written")
    return Comparison("GB/s", found, notes, wholes=(copy,))
