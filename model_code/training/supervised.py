"""The supervised loop: cross-entropy by gradient descent, validation after each epoch, best and last checkpoint.

Shape suffixes: B = images of a batch, H = height, W = width, C = the three colour channels, K = classes.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from model_code.data.augmentation import crop_and_flip, resized_crop
from model_code.data.disk_images import DiskImages
from model_code.data.mixing import cut_out, erase_rectangles, mix_images
from model_code.errors import UsageError
from model_code.evaluation.metrics import Report, measure, predict_logits
from model_code.models.image_input import ImageInput
from model_code.models.initialization import (
    find_whitening,
    freeze_norm_scales,
    start_as_partial_identity,
    whiten_first_convolution,
)
from model_code.models.networks import build_backbone, build_network, check_image_size, list_backbone
from model_code.models.view_average import ViewAverage
from model_code.training import checkpoints
from model_code.training.config import TrainingConfig
from model_code.training.engine import Engine, GradientStep
from model_code.training.epoch_config import check_batch
from model_code.training.epoch_loop import EpochLoop
from model_code.training.images import TrainingImages
from model_code.training.lookahead import Lookahead
from model_code.training.moving_average import MovingAverage
from model_code.training.optimization import Schedule, build_optimizer
from model_code.training.processes import Processes
from model_code.training.results import Callback, EpochMetrics, TrainingResult
from model_code.training.sync_batch_norm import synchronise_batch_norm


def build_model(config: TrainingConfig, num_classes: int, packed_size: int) -> nn.Sequential:
    """Return the untrained model of a config: uint8 images [B, H, W, C] in, logits [B, classes] out.

    Args:
        config: All settings.
        num_classes: Width of the output.
        packed_size: Height and width of the packed images, pixels.

    Raises:
        UsageError: The network cannot take this size.
    """
    network = build_network(config.network, num_classes, config.image_size or packed_size)
    return nn.Sequential(ImageInput(config.mean, config.std, config.image_size), network)


def load_model(config: TrainingConfig, num_classes: int, packed_size: int, weights: Path) -> nn.Module:
    """Return a trained model in evaluation mode, on the CPU; averaging over views where the config says so.

    Raises:
        TrainingError: The weights are missing or belong to another network.
    """
    model = build_model(config, num_classes, packed_size)
    checkpoints.load_weights(model[1], weights)
    if config.has_flip_averaging or config.shift_averaging_pixels:
        return ViewAverage(model, config.has_flip_averaging, config.shift_averaging_pixels).eval()
    return model.eval()


def check_images(config: TrainingConfig, images: TrainingImages) -> None:
    """Refuse a run whose images do not fill one batch, or are of a size that the network cannot take.

    Raises:
        UsageError: There are fewer training images than one batch, or they are too small.
    """
    packed_size = images.image_size
    if config.image_size is not None and config.image_size > packed_size:
        raise UsageError(
            f"{config.dataset} is packed at {packed_size} pixels and image_size={config.image_size} is larger; give "
            f"--set image_size={packed_size}, or add the images anew with --image-size {config.image_size}"
        )
    size = config.image_size or packed_size
    check_image_size(config.network, size)
    for setting, pixels in (
        ("crop_padding_pixels", config.crop_padding_pixels if config.crop_border == "reflect" else 0),
        ("shift_averaging_pixels", config.shift_averaging_pixels),
    ):
        if pixels >= size:
            raise UsageError(f"{setting}={pixels} reflects more than an image of {size} pixels; at most {size - 1}")
    if config.whitening_images:
        find_whitening(build_network(config.network, len(images.classes), size))
    if config.frozen_epochs or config.backbone_rate_factor != 1:
        build_backbone(config.network, size)
    check_batch(len(images.train), config.batch_size)


def fit(
    config: TrainingConfig,
    images: TrainingImages,
    run_dir: Path,
    processes: Processes,
    callbacks: Sequence[Callback] = (),
    pretrained: str | None = None,
    engine: Engine | None = None,
) -> TrainingResult[EpochMetrics]:
    """Train a network, or go on where an interrupted run in `run_dir` stopped.

    Each epoch visits the training images once in a new random order; the images that do not fill the last batch
    wait for the next epoch.

    Args:
        config: All settings.
        images: On the device, or streamed to it.
        run_dir: Folder of checkpoints; created when missing.
        processes: Processes that train together, and the device of this one.
        callbacks: Told about each step and epoch, in order.
        pretrained: Weights file that `config.pretrained_weights` stands for; None takes what is written there.
        engine: Result of `choose_engine`; None chooses it here.

    Raises:
        TrainingError: The loss is not finite (the last good checkpoint stays), or a checkpoint does not fit.
        UsageError: There are fewer training images than one batch, the network cannot take their size, or the
            hardware lacks what `config.engine` wants.
        KeyboardInterrupt: A callback wanted the run to stop; its state is kept.
        DiskFullError: A checkpoint could not be written; the one before stays.
    """
    check_images(config, images)
    return _SupervisedLoop(config, images, run_dir, processes, callbacks, pretrained, engine).train()


class _SupervisedLoop(EpochLoop[EpochMetrics]):
    """Everything that changes while a run trains."""

    epoch_type = EpochMetrics
    rate_setting = "learning_rate"

    def __init__(
        self,
        config: TrainingConfig,
        images: TrainingImages,
        run_dir: Path,
        processes: Processes,
        callbacks: Sequence[Callback],
        pretrained: str | None,
        engine: Engine | None,
    ) -> None:
        super().__init__(config, config.epochs, images.train.images_NHWC, run_dir, callbacks, processes, engine)
        self.config, self.images = config, images
        self.is_last_kept = config.kept_epoch == "last"
        model = build_model(config, len(images.classes), images.image_size)
        pretrained = pretrained or config.pretrained_weights
        _prepare_start(config, model, images.train.images_NHWC)
        if pretrained and self.state is None:
            lines = checkpoints.load_pretrained(model[1], pretrained)
            if processes.rank == 0:
                print(*lines, sep="\n", flush=True)
        if processes.count > 1:
            synchronise_batch_norm(model, self.device)
        self.model = self.engine.lay_out(model)
        self.network = self.model[1]
        self.forward = self.engine.compile_model(self.model)
        self.average = None if config.ema_decay is None else MovingAverage(self.model, config.ema_decay)
        self.lookahead = Lookahead(self.model, self.epochs * self.steps) if config.has_lookahead else None
        self.optimizer = build_optimizer(config, self.model, is_recorded=self.engine.compile == "step")
        self.gradient_step = GradientStep(config, self.engine, self.model, self.optimizer, processes)
        self.schedule = Schedule(config, self.optimizer, self.steps)
        self._thawing = [one for one in list_backbone(self.network) if one.requires_grad]
        self._told_epoch, self._is_even_epoch = 0, torch.zeros((), dtype=torch.bool, device=self.device)
        self._first_mirrored_N = draw_first_mirrored(config, len(images.train)).to(self.device)
        self._weights_K = self._chances_N = None
        if config.class_weights == "balanced":
            self._weights_K = balance_classes(images.train.labels_N, len(images.classes))
        if config.sampling == "balanced":
            self._chances_N = balance_classes(images.train.labels_N, len(images.classes))[images.train.labels_N]

    @property
    def kept_model(self) -> nn.Sequential:
        """The model that is validated and saved: the moving average where there is one."""
        return self.model if self.average is None else cast(nn.Sequential, self.average.module)

    @property
    def kept_network(self) -> nn.Module:
        """The network of that model."""
        return self.kept_model[1]

    def save_more(self) -> dict[str, Any]:
        """Return the states of moving average and schedule."""
        average = self.lookahead if self.average is None else self.average
        state = None if average is None else average.state_dict()
        return {"average": state, "schedule": self.schedule.state_dict()}

    def load_more(self, state: checkpoints.TrainingState) -> None:
        """Take up the states of moving average and schedule."""
        self.schedule.load_state_dict(state.schedule)
        average = self.lookahead if self.average is None else self.average
        if average is not None and state.average is not None:
            average.load_state_dict(state.average)

    def draw_order(self) -> Tensor:
        """Return the images of an epoch in the order of their visits, int64 [N]."""
        if self._chances_N is None:
            return super().draw_order()
        return torch.multinomial(self._chances_N, len(self._chances_N), replacement=True, generator=self.generator)

    def run_epoch(self, epoch: int) -> EpochMetrics:
        """Visit the training images once and validate."""
        start = time.perf_counter()
        if self.config.whitening_images:
            bias = find_whitening(self.network).bias
            assert bias is not None, "whitening starts from a bias of its own"
            bias.requires_grad_(epoch <= self.config.whitening_bias_epochs)
        for parameter in self._thawing if self.config.frozen_epochs else ():
            parameter.requires_grad_(epoch > self.config.frozen_epochs)
        learned, visited = self.learn(epoch)
        trained = time.perf_counter()
        report = self._validate()
        if not math.isfinite(report.loss):
            raise self.diverged(f"the validation loss became {report.loss} after epoch {epoch}")
        self.schedule.end_epoch(learned.mean_loss, report.loss)
        return EpochMetrics(
            epoch=epoch,
            train_loss=learned.mean_loss,
            train_accuracy=float(learned.total) / (self.steps * self.config.batch_size),
            validation_loss=report.loss,
            validation_accuracy=report.accuracy_fraction,
            validation_macro_f1=report.macro_f1,
            learning_rate=learned.learning_rate,
            seconds=learned.seconds + time.perf_counter() - start,
            pictures_per_s=visited / (trained - start),
        )

    def begin_step(self, epoch: int, step: int) -> None:
        """Tell the device whether it is an even epoch, at its first step in this process."""
        if epoch != self._told_epoch:
            self._told_epoch = epoch
            self._is_even_epoch.fill_(epoch % 2 == 0)

    def compute_step(self, images_BHWC: Tensor, chosen_B: Tensor, is_last: bool) -> tuple[Tensor, Tensor]:
        """Learn from a batch; return its mean loss and how many labels of this process's share were right."""
        is_mirrored_B = None
        if self.config.flip == "alternating":
            is_mirrored_B = self._first_mirrored_N[chosen_B] ^ self._is_even_epoch
        images_BHWC, targets = self._augment(images_BHWC, self.images.train.labels_N[chosen_B], is_mirrored_B)
        mine = self.processes.share(len(images_BHWC))
        images_BHWC, targets = images_BHWC[mine], targets.take(mine)

        def compute(part: slice) -> tuple[Tensor, Tensor]:
            logits_BK = self.forward(images_BHWC[part])
            return targets.take(part).compare(logits_BK, self.config.label_smoothing, self._weights_K), logits_BK

        loss, logits_BK = self.gradient_step.take(len(images_BHWC), compute)
        if self.average is not None:
            self.average.update()
        return loss, (logits_BK.argmax(1) == targets.labels_B).sum()

    def end_step(self, epoch: int, step: int) -> None:
        """Move the learning rate, and the slow weights where there are such."""
        self.schedule.end_step()
        if self.lookahead is not None:
            self.lookahead.end_step((epoch - 1) * self.steps + step + 1)

    def _augment(
        self, images_BHWC: Tensor, labels_B: Tensor, is_mirrored_B: Tensor | None
    ) -> tuple[Tensor, "_Targets"]:
        """Change the images of a batch at random; return them and what is to be answered."""
        config, generator = self.config, self.generator
        if config.image_size is not None:
            images_BHWC = resized_crop(images_BHWC, config.image_size, config.crop_area, generator)
        images_BHWC = crop_and_flip(
            images_BHWC,
            config.crop_padding_pixels,
            config.has_flip,
            generator,
            border=config.crop_border,
            is_mirrored_B=is_mirrored_B,
        )
        images_BHWC = cut_out(images_BHWC, config.cutout_pixels, generator)
        images_BHWC = erase_rectangles(images_BHWC, config.erasing_probability, generator)
        if not (config.cutmix_alpha or config.mixup_alpha):
            return images_BHWC, _Targets(labels_B)
        images_BHWC, pasted_labels_B, own_share_B = mix_images(
            images_BHWC, labels_B, config.cutmix_alpha, config.mixup_alpha, generator
        )
        return images_BHWC, _Targets(labels_B, pasted_labels_B, own_share_B)

    def _validate(self) -> Report:
        """Label the validation images, each process its share."""
        validation = self.images.validation
        mine = self.processes.share(len(validation))
        with self.engine.autocast():
            logits_NK = self.processes.gather(predict_logits(self.kept_model, validation.images_NHWC[mine]))
        return measure(logits_NK, validation.labels_N)


def draw_first_mirrored(config: TrainingConfig, count: int) -> Tensor:
    """Return which images are mirrored in the first epoch of `alternating` flips, bool [count], on the CPU."""
    generator = torch.Generator().manual_seed(config.seed)
    return torch.rand(count, generator=generator) < 0.5


def balance_classes(labels_N: Tensor, classes: int) -> Tensor:
    """Return a weight for each class, inverse to its number of images, float32 [K]; the mean over the images is 1.

    Args:
        labels_N: Labels of the training images, int64.
        classes: Number of classes; one without an image has the weight 0.
    """
    counts_K = torch.bincount(labels_N, minlength=classes)
    present = int((counts_K > 0).sum())
    return torch.where(counts_K > 0, len(labels_N) / (present * counts_K.clamp(min=1)), 0.0).float()


def _prepare_start(config: TrainingConfig, model: nn.Sequential, images_NHWC: Tensor | DiskImages) -> None:
    """Give the network the start that the config asks for, and freeze what it freezes."""
    image_input, network = model
    if config.has_partial_identity:
        start_as_partial_identity(network)
    if config.whitening_images:
        generator = torch.Generator().manual_seed(config.seed)
        chosen = torch.randperm(len(images_NHWC), generator=generator)[: config.whitening_images]
        whiten_first_convolution(network, image_input(images_NHWC[chosen.to(images_NHWC.device)].to("cpu")))
    if config.has_frozen_norm_scale:
        freeze_norm_scales(network)


@dataclass(frozen=True)
class _Targets:
    """What the network is to answer for some images.

    Attributes:
        labels_B: int64.
        pasted_labels_B: Labels of the images mixed in; None where nothing is.
        own_share_B: Share of each image that is its own, in [0, 1]; None the same.
    """

    labels_B: Tensor
    pasted_labels_B: Tensor | None = None
    own_share_B: Tensor | None = None

    def take(self, part: slice) -> "_Targets":
        """Return the targets of some of the images."""
        if self.pasted_labels_B is None or self.own_share_B is None:
            return _Targets(self.labels_B[part])
        return _Targets(self.labels_B[part], self.pasted_labels_B[part], self.own_share_B[part])

    def compare(self, logits_BK: Tensor, label_smoothing: float, weights_K: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy, nats, each label's times its weight."""

        def compare_one_by_one(labels_B: Tensor) -> Tensor:
            loss_B = nn.functional.cross_entropy(logits_BK, labels_B, reduction="none", label_smoothing=label_smoothing)
            return loss_B if weights_K is None else weights_K[labels_B] * loss_B

        if self.pasted_labels_B is None or self.own_share_B is None:
            if weights_K is None:
                return nn.functional.cross_entropy(logits_BK, self.labels_B, label_smoothing=label_smoothing)
            return compare_one_by_one(self.labels_B).mean()
        own_loss_B, pasted_loss_B = (compare_one_by_one(labels_B) for labels_B in (self.labels_B, self.pasted_labels_B))
        return (self.own_share_B * own_loss_B + (1 - self.own_share_B) * pasted_loss_B).mean()
