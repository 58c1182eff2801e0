"""Estimate of the time that a run takes on this machine, from a few steps of its network.

Shape suffixes: B = images, C = the three colour channels, H = height, W = width.
"""

import time
from collections.abc import Mapping
from functools import cache

import torch

from model_code.models.networks import build_network
from model_code.training.device import choose_device
from model_code.training.engine import choose_engine
from model_code.training.epoch_config import EpochConfig
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.processes import Processes
from model_code.training.run_folder import AnyConfig

MEASURED_S = 0.5
# Larger batches are no faster, and take memory: on a CPU, and on a CUDA device.
CPU_BATCH, CUDA_BATCH = 8, 256
VIEWS = 2


def estimate_seconds(config: AnyConfig, counts: Mapping[str, int], image_size: int, finished_epochs: int = 0) -> float:
    """Return about how long a run takes: the passes of its images through its network.

    Left out is what takes little time beside them, as a rule: loading, augmentation, probes of features. Raw pixels
    have nothing else.

    Args:
        config: All settings.
        counts: Images of each split of its data set.
        image_size: Height and width of these images, pixels.
        finished_epochs: Epochs that an interrupted run has behind it.
    """
    train = min(counts.get("train", 0), config.limit_train or counts.get("train", 0))
    final = counts.get("test", counts.get("validation", 0))
    final = min(final, config.limit_test or final)
    if config.network is None:
        return 0.0
    chosen = config.views.image_size if isinstance(config, SimSiamConfig) else config.image_size
    size = chosen or image_size
    batch = min(config.batch_size, CUDA_BATCH if choose_device("auto").type == "cuda" else CPU_BATCH)
    answering = measure_images_per_s(config.network, size, batch, torch.float32, False)
    if not isinstance(config, EpochConfig):
        return (train + final) / answering
    precision = choose_engine(config, Processes(choose_device(config.device))).precision
    learning = measure_images_per_s(config.network, size, batch, precision, True)
    epochs = config.epochs - finished_epochs
    if isinstance(config, SimSiamConfig):
        looks = epochs // config.monitor_every_epochs + 1
        unlabelled = counts.get("unlabelled", train)
        passed = VIEWS * min(unlabelled, config.limit_train or unlabelled)
        looks += config.linear.epochs if config.linear_crop_area else 0
        return epochs * passed / learning + (looks * train + final) / answering
    held_out = round(train * config.validation_fraction)
    if "validation" in counts:
        held_out = min(counts["validation"], config.limit_test or counts["validation"])
    learned = train if "validation" in counts else train - held_out
    if config.pseudo_label_confidence is not None:  # at most
        learned += counts.get("unlabelled", counts.get("train", 0) - train)
    copies = (1 + config.has_flip_averaging) * (3 if config.shift_averaging_pixels else 1)
    return epochs * (learned / learning + held_out / answering) + final * copies / answering


@cache
def measure_images_per_s(
    network_name: str, image_size: int, batch: int, precision: torch.dtype, is_trained: bool
) -> float:
    """Return how many images this machine's device passes through a network in a second.

    Args:
        network_name: Key of `NETWORKS`.
        image_size: Height and width, pixels.
        batch: Images in a step; halved, down to `CPU_BATCH`, while the device's memory is too small.
        precision: Precision of the forward pass.
        is_trained: True for steps of training, False for answers.
    """
    device = choose_device("auto")
    network = build_network(network_name, 10, image_size).to(device)
    network.train(is_trained)
    images_BCHW = torch.randn(batch, 3, image_size, image_size, device=device)
    images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with (
            torch.set_grad_enabled(is_trained),
            torch.autocast(device.type, precision, enabled=precision != torch.float32),
        ):
            logits_BK = network(images_BCHW)
        if is_trained:
            logits_BK.float().logsumexp(1).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    try:
        step()
    except torch.OutOfMemoryError:
        if batch <= CPU_BATCH:
            raise
        return measure_images_per_s(network_name, image_size, batch // 2, precision, is_trained)
    steps, start_s = 0, time.perf_counter()
    while time.perf_counter() - start_s < MEASURED_S:
        step()
        steps += 1
    return steps * batch / (time.perf_counter() - start_s)
