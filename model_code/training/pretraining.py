"""The SimSiam loop: two views of every image, symmetric loss, and nearest neighbours that watch the backbone.

Shape suffixes: B = images of a batch, H = height, W = width, C = the three colour channels, D = embedding width.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD

from model_code.data.augmentation import crop_and_flip, resized_crop
from model_code.data.views import plain_view, two_views
from model_code.evaluation.features import LabelledFeatures, compute_features, feature_std
from model_code.evaluation.knn import knn_accuracy, knn_predict
from model_code.evaluation.metrics import TOP_K, choose_batch
from model_code.models.image_input import ImageInput
from model_code.models.networks import build_backbone, check_image_size
from model_code.models.simsiam import SimSiam
from model_code.training import checkpoints
from model_code.training.engine import Engine, GradientStep
from model_code.training.epoch_config import check_batch
from model_code.training.epoch_loop import EpochLoop
from model_code.training.images import Images, PretrainingImages
from model_code.training.losses import simsiam_loss
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.probe import Look, ProbeResult, train_probe
from model_code.training.processes import Processes
from model_code.training.results import Callback, PretrainingEpoch, TrainingResult
from model_code.training.schedules import cosine_factor
from model_code.training.sync_batch_norm import synchronise_batch_norm


@dataclass(frozen=True)
class PretrainingResult(TrainingResult[PretrainingEpoch]):
    """A complete run; its weights are the backbone's, without a last layer.

    Attributes:
        untrained_knn_accuracy: Of the validation images, by the backbone before the first step of this run, in [0, 1].
    """

    untrained_knn_accuracy: float


@dataclass(frozen=True)
class BackboneReport:
    """What frozen features are worth on images that chose nothing, where there are such.

    Attributes:
        split: `test`, or `validation` where there are no labelled test images.
        count: Images.
        knn_accuracy: By the weighted votes of all labelled training images, in [0, 1].
        knn_top5_accuracy: Share of images whose label is among the five classes with the most votes.
        linear: Accuracies of a linear layer learned on the same features.
        augmented_linear: Those of one learned on random crops (`linear_crop_area`); None without it.
    """

    split: str
    count: int
    knn_accuracy: float
    knn_top5_accuracy: float
    linear: ProbeResult
    augmented_linear: ProbeResult | None

    def list_metrics(self) -> dict[str, float]:
        """Return the figures by their name in MLflow, `<split>/<metric>`."""
        metrics = {
            f"{self.split}/knn_accuracy": self.knn_accuracy,
            f"{self.split}/knn_top5_accuracy": self.knn_top5_accuracy,
            f"{self.split}/pictures": self.count,
        }
        for name, probe in (("linear", self.linear), ("augmented_linear", self.augmented_linear)):
            if probe is not None:
                metrics |= {
                    f"{self.split}/{name}_accuracy": probe.test_accuracy,
                    f"{self.split}/{name}_top5_accuracy": probe.test_top5_accuracy,
                    f"train/{name}_accuracy": probe.train_accuracy,
                }
        return metrics


def build_simsiam(config: SimSiamConfig) -> SimSiam:
    """Return the untrained network of a config.

    Raises:
        UsageError: The network is no backbone, or cannot take views of this size.
    """
    backbone, feature_width = build_backbone(config.network, config.views.image_size)
    return SimSiam(backbone, feature_width, config.projector_layers, config.embedding_width, config.bottleneck_width)


def load_backbone(config: SimSiamConfig, weights: Path) -> nn.Sequential:
    """Return a pretrained backbone in evaluation mode, on the CPU: uint8 images [B, H, W, C] in, features out.

    Raises:
        TrainingError: The weights are missing or belong to another network.
    """
    backbone, _ = build_backbone(config.network, config.views.image_size)
    checkpoints.load_weights(backbone, weights)
    return nn.Sequential(ImageInput(config.mean, config.std), backbone).eval()


def evaluation_features(
    config: SimSiamConfig, model: nn.Module, images: Images, classes: tuple[str, ...]
) -> LabelledFeatures:
    """Return what a backbone sees in the plain view of labelled images, in full precision.

    Args:
        config: Config of the run that trained the backbone.
        model: Result of `load_backbone`, on the images' device; is left in evaluation mode.
        images: uint8.
        classes: Names in label order.
    """
    show = partial(plain_view, image_size=config.views.image_size, enlargement=config.evaluation_enlargement)
    batch_size = choose_batch(config.views.image_size)
    features_ND = compute_features(model, images.images_NHWC, show, batch_size)
    return LabelledFeatures(features_ND, images.labels_N, classes)


def evaluate_backbone(
    config: SimSiamConfig, weights: Path, images: PretrainingImages, device: torch.device
) -> BackboneReport:
    """Measure a pretrained backbone by kNN and linear evaluation; every image counts once.

    Args:
        config: Config of the run that trained it.
        weights: Its file.
        images: Images of that run, on `device`.
        device: Device that computes.

    Raises:
        TrainingError: The weights do not fit, or the linear layer's loss is not finite.
    """
    backbone = load_backbone(config, weights).to(device)
    split, final = ("validation", images.validation) if images.test is None else ("test", images.test)
    labelled = images.memory if split == "validation" else images.labelled
    bank, queries = (evaluation_features(config, backbone, chosen, images.classes) for chosen in (labelled, final))
    learn = partial(train_probe, bank, queries, config.linear, config.seed)
    measure_knn = partial(knn_accuracy, bank, queries, config.knn_neighbours, config.knn_temperature)
    return BackboneReport(
        split=split,
        count=len(queries),
        knn_accuracy=measure_knn(),
        knn_top5_accuracy=measure_knn(TOP_K),
        linear=learn(),
        augmented_linear=learn(look_anew(config, backbone, labelled, device)) if config.linear_crop_area else None,
    )


def look_anew(config: SimSiamConfig, backbone: nn.Module, images: Images, device: torch.device) -> Look:
    """Return what computes the features of some of the images, each cropped and mirrored anew.

    Args:
        config: Config of the run that trained the backbone; `linear_crop_area` is set.
        backbone: Result of `load_backbone`, on the device.
        images: Images to choose from.
        device: Device that computes.
    """
    crop_area, image_size = config.linear_crop_area, config.views.image_size
    assert crop_area is not None, "called only where it is set"
    generator = torch.Generator(device=device).manual_seed(config.seed)

    def look(chosen_B: Tensor) -> Tensor:
        images_BHWC = images.images_NHWC[chosen_B.to(images.images_NHWC.device)].to(device)
        crops_BHWC = resized_crop(images_BHWC, image_size, crop_area, generator)
        crops_BHWC = crop_and_flip(crops_BHWC, 0, True, generator)
        return compute_features(backbone, crops_BHWC, batch_size=choose_batch(image_size))

    return look


def check_pretraining_images(config: SimSiamConfig, images: PretrainingImages) -> None:
    """Refuse a run whose images do not fill one batch, or whose views are too small for the network.

    Raises:
        UsageError: There are too few images, or the network cannot take views of this size.
    """
    check_image_size(config.network, config.views.image_size)
    check_batch(len(images.images_NHWC), config.batch_size)


def pretrain(
    config: SimSiamConfig,
    images: PretrainingImages,
    run_dir: Path,
    processes: Processes,
    callbacks: Sequence[Callback] = (),
    engine: Engine | None = None,
    pretrained: str | None = None,
) -> PretrainingResult:
    """Train a backbone without labels, or go on where an interrupted run in `run_dir` stopped.

    Each epoch visits the images once in a new random order; those that do not fill the last batch wait for the next
    epoch. Labels are used only to watch.

    Args:
        config: All settings.
        images: On the device, or streamed to it.
        run_dir: Folder of checkpoints; created when missing.
        processes: Processes that train together, and the device of this one.
        callbacks: Told about each step and epoch, in order.
        engine: Result of `choose_engine`; None chooses it here.
        pretrained: Weights file that `config.pretrained_weights` stands for; None takes what is written there.

    Raises:
        TrainingError: The loss is not finite (the last good checkpoint stays), or a checkpoint does not fit.
        UsageError: There are fewer images than one batch, or the hardware lacks what `config.engine` wants.
        KeyboardInterrupt: A callback wanted the run to stop; its state is kept.
        DiskFullError: A checkpoint could not be written; the one before stays.
    """
    check_pretraining_images(config, images)
    loop = _SimSiamLoop(config, images, run_dir, processes, callbacks, engine, pretrained)
    untrained_knn_accuracy = loop.measure_knn()
    return PretrainingResult(**vars(loop.train()), untrained_knn_accuracy=untrained_knn_accuracy)


class _SimSiamLoop(EpochLoop[PretrainingEpoch]):
    """Everything that changes while a run trains."""

    epoch_type = PretrainingEpoch
    rate_setting = "base_learning_rate"
    network: SimSiam

    def __init__(
        self,
        config: SimSiamConfig,
        images: PretrainingImages,
        run_dir: Path,
        processes: Processes,
        callbacks: Sequence[Callback],
        engine: Engine | None,
        pretrained: str | None,
    ) -> None:
        super().__init__(config, config.epochs, images.images_NHWC, run_dir, callbacks, processes, engine)
        self.config, self.images = config, images
        network = build_simsiam(config)
        if start := pretrained or config.pretrained_weights:
            checkpoints.load_pretrained(network.backbone, start)
        if processes.count > 1:
            synchronise_batch_norm(network, self.device)
        model = self.engine.lay_out(nn.Sequential(ImageInput(config.mean, config.std), network))
        self.image_input, self.network = model[0], network
        self.forward = self.engine.compile_model(model)
        encoder = [*network.backbone.parameters(), *network.projector.parameters()]
        self.optimizer = SGD(
            [{"params": encoder}, {"params": list(network.predictor.parameters())}],
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=self.device.type == "cuda" or None,
        )
        self.gradient_step = GradientStep(config, self.engine, network, self.optimizer, processes)

    @property
    def kept_network(self) -> nn.Module:
        """The backbone: what comes after it only serves the loss."""
        return self.network.backbone

    def is_saved(self, epoch: int) -> bool:
        """Whether this epoch's state is kept to go on from."""
        return self._is_due(epoch, self.config.checkpoint_every_epochs)

    def run_epoch(self, epoch: int) -> PretrainingEpoch:
        """Visit the images once and ask the nearest neighbours, where that is due."""
        start = time.perf_counter()
        learned, visited = self.learn(epoch)
        trained = time.perf_counter()
        accuracy = self.measure_knn() if self._is_due(epoch, self.config.monitor_every_epochs) else None
        return PretrainingEpoch(
            epoch=epoch,
            loss=learned.mean_loss,
            feature_std=float(learned.total),
            knn_accuracy=accuracy,
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
            seconds=learned.seconds + time.perf_counter() - start,
            pictures_per_s=visited / (trained - start),
        )

    def begin_step(self, epoch: int, step: int) -> None:
        """Move backbone and projector along the cosine; the predictor stays (the paper's Sec. 4.2)."""
        config, done = self.config, (epoch - 1) * self.steps + step
        encoder, _ = self.optimizer.param_groups
        factor = cosine_factor(done, config.epochs * self.steps, config.warmup_epochs * self.steps)
        encoder["lr"] = config.learning_rate * factor

    def compute_step(self, images_BHWC: Tensor, _chosen_B: Tensor, is_last: bool) -> tuple[Tensor, Tensor]:
        """Learn from a batch; return its loss and, in an epoch's last step, the spread of the projections.

        The spread is divided by the processes, which all know it: added up over steps and processes it is itself.
        """
        mine = self.processes.share(len(images_BHWC))
        first_BHWC, second_BHWC = (view[mine] for view in two_views(images_BHWC, self.generator, self.config.views))

        def compute(part: slice) -> tuple[Tensor, Tensor]:
            first, second = self.forward(first_BHWC[part]), self.forward(second_BHWC[part])
            return simsiam_loss(first, second), first.projections_BD

        loss, projections_BD = self.gradient_step.take(len(first_BHWC), compute)
        if not is_last:
            return loss, torch.zeros_like(loss)
        spread = feature_std(self.processes.gather(projections_BD)) / self.processes.count
        return loss, torch.full_like(loss, spread)

    def measure_knn(self) -> float:
        """Return the share of the validation images that their neighbours in the memory label right, in [0, 1].

        Each process computes the features of its share of the memory, and classifies its share of the images.
        """
        config, processes, memory = self.config, self.processes, self.images.memory
        validation = self.images.validation.take(processes.share(len(self.images.validation)))
        with self.engine.autocast():
            bank_ND = processes.gather(self._evaluate(memory.take(processes.share(len(memory)))).features_ND)
            queries_ND = self._evaluate(validation).features_ND
        bank = LabelledFeatures(bank_ND, memory.labels_N, self.images.classes)
        predicted_N = knn_predict(bank, queries_ND, config.knn_neighbours, config.knn_temperature)
        right = processes.add((predicted_N == validation.labels_N).sum())
        return int(right) / len(self.images.validation)

    def _evaluate(self, images: Images) -> LabelledFeatures:
        model = nn.Sequential(self.image_input, self.network.backbone)
        return evaluation_features(self.config, model, images, self.images.classes)

    def _is_due(self, epoch: int, interval: int) -> bool:
        return epoch % interval == 0 or epoch == self.config.epochs
