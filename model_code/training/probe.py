"""Probes of features: a linear layer or a small MLP learned on the features of a frozen backbone.

The defaults are linear evaluation as in Chen & He 2021, arXiv:2011.10566, Sec. 4 and Appendix D; the published SimSiam
runs learn with SGD at 30 * batch / 256. The features are computed once, unless a caller computes them anew for each
step.

Shape suffixes: N = images, B = images of a batch, D = features, K = classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD

from model_code.errors import TrainingError, UsageError
from model_code.evaluation.features import LabelledFeatures
from model_code.evaluation.metrics import TOP_K, measure_top_k
from model_code.models.probes import Standardise, build_probe
from model_code.training.probe_config import ProbeConfig
from model_code.training.run_config import REFERENCE_BATCH
from model_code.training.schedules import cosine_factor

Look = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ProbeResult:
    """What the probe reaches after its last epoch.

    Attributes:
        train_accuracy: Share of right labels of the features learned from, in [0, 1].
        test_accuracy: The same of the others.
        test_top5_accuracy: Share of the others whose label is among the five highest logits.
        probe: Features as they were given in, logits out, on their device: the linear layer or the MLP, in a Sequential
            behind `Standardise` where features are standardised.
    """

    train_accuracy: float
    test_accuracy: float
    test_top5_accuracy: float
    probe: nn.Module


def train_probe(
    train: LabelledFeatures,
    test: LabelledFeatures,
    config: ProbeConfig | None = None,
    seed: int = 0,
    look: Look | None = None,
) -> ProbeResult:
    """Learn a probe on frozen features and measure it on others; every image counts once.

    Args:
        train: Features to learn from; where the config has candidates, a fifth of them chooses.
        test: Features to measure on, on the same device; they choose nothing.
        config: Settings; None takes the published ones.
        seed: Seed of initial weights, order and the held-out fifth.
        look: Returns the features [B, D] to learn from in a step, for the indices [B] of its images in `train`; None
            takes those of `train`, as the choice among candidates and both accuracies do in any case.

    Raises:
        UsageError: The two have different classes, or one of them is empty.
        TrainingError: The loss is not finite.
    """
    config = config or ProbeConfig()
    if train.classes != test.classes or not len(train) or not len(test):
        raise UsageError(
            f"{len(train)} features of {', '.join(train.classes)} cannot be probed on {len(test)} of "
            f"{', '.join(test.classes)}; give two splits of one data set, neither empty"
        )
    if config.candidates:
        config = _choose(train, config, seed)
    probe = _learn(train, config, seed, look)
    return ProbeResult(_accuracy(probe, train), _accuracy(probe, test), _accuracy(probe, test, TOP_K), probe)


def _choose(train: LabelledFeatures, config: ProbeConfig, seed: int) -> ProbeConfig:
    """Return the config with the learning rate and weight decay that label a held-out fifth best."""
    order_N = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).to(train.labels_N.device)
    held_out, kept = (
        LabelledFeatures(train.features_ND[chosen], train.labels_N[chosen], train.classes)
        for chosen in order_N.tensor_split([max(1, len(train) // 5)])
    )
    configs = [
        config.model_copy(update={"base_learning_rate": rate, "weight_decay": decay, "candidates": ()})
        for rate, decay in config.candidates
    ]
    return max(configs, key=lambda one: _accuracy(_learn(kept, one, seed), held_out))


def _learn(train: LabelledFeatures, config: ProbeConfig, seed: int, look: Look | None = None) -> nn.Module:
    """Return the probe after its last epoch."""
    device = train.features_ND.device
    generator = torch.Generator(device=device).manual_seed(seed)
    probe: nn.Module = build_probe(train.features_ND.shape[1], len(train.classes), config.hidden_width, generator)
    if config.is_standardised:
        probe = nn.Sequential(Standardise(train.features_ND), probe)
    learning_rate = config.base_learning_rate * config.batch_size / REFERENCE_BATCH
    optimizer = SGD(probe.parameters(), lr=learning_rate, momentum=config.momentum, weight_decay=config.weight_decay)
    steps_per_epoch = -(-len(train) // config.batch_size)
    steps, warmup_steps = config.epochs * steps_per_epoch, config.warmup_epochs * steps_per_epoch
    step = 0
    for epoch in range(1, config.epochs + 1):
        loss = torch.zeros((), device=device)
        for chosen in torch.randperm(len(train), generator=generator, device=device).split(config.batch_size):
            optimizer.param_groups[0]["lr"] = learning_rate * cosine_factor(step, steps, warmup_steps)
            features_BD = train.features_ND[chosen] if look is None else look(chosen)
            loss = nn.functional.cross_entropy(probe(features_BD), train.labels_N[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
        if not loss.isfinite():
            raise TrainingError(
                f"the probe's loss became {float(loss.detach())} in epoch {epoch}; lower base_learning_rate "
                f"(now {config.base_learning_rate:g})"
            )
    return probe


@torch.no_grad()
def _accuracy(probe: nn.Module, images: LabelledFeatures, top_k: int = 1) -> float:
    return measure_top_k(probe(images.features_ND), images.labels_N, top_k)
