"""A trained run -> every variant of its ONNX, calibrated, certified, timed, and described by a manifest.

Shape suffixes: N = images, H = height, W = width, C = colour channels, K = classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model_code.data.cache import PackedDataset, open_dataset
from model_code.data.progress import show_progress
from model_code.data.revisions import name_revision
from model_code.errors import ExportError
from model_code.evaluation.calibration import measure_reliability, try_temperature
from model_code.evaluation.metrics import predict_logits
from model_code.evaluation.thresholds import LabelledAnswers, choose_supported_thresholds
from model_code.models.view_average import ViewAverage
from model_code.release.backbone_classifier import Head, build_classifier
from model_code.release.certificate import certify, check_certificate, find_providers
from model_code.release.onnx_export import OPSET, export_onnx
from model_code.release.precisions import CALIBRATION_COUNT, PRECISIONS
from model_code.settings import load_settings
from model_code.tracking.finished_runs import FinishedRun
from model_code.tracking.provenance import read_git_sha, read_versions
from model_code.training.config import TrainingConfig
from model_code.training.images import Images, TrainingImages, load_images
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.run_folder import RunFolder
from model_code.training.supervised import load_model
from serving.bundle.manifest import GOLDEN_FILE, Calibration, Manifest, Precision, Thresholds, Variant
from serving.bundle.processors import count_cpus
from serving.bundle.session import SESSION_ERRORS, open_session, run_session
from serving.bundle.store import hash_file, name_file, write_manifest
from serving.bundle.timing import time_variant
from serving.errors import BundleError

GOLDEN_IMAGES = 16
# How far the test accuracy may be from the one that the training measured: bfloat16 on a GPU, float32 here.
MAX_ACCURACY_SHIFT = 0.01
MAX_IMAGES_SHIFTED = 3
_NOT_POSSIBLE: tuple[type[Exception], ...] = (BundleError, ValueError, RuntimeError, *SESSION_ERRORS)


@dataclass(frozen=True)
class Exported:
    """What is released, before anything is decided.

    Attributes:
        manifest: Manifest of the files that lie in the scratch folder.
        split: Name of the split of the images below.
        images_NHWC: uint8, the images that variants were certified on.
        labels_N: Right labels of them.
    """

    manifest: Manifest
    split: str
    images_NHWC: npt.NDArray[np.uint8]
    labels_N: npt.NDArray[np.int64]


def export(run: FinishedRun, name: str, folder: RunFolder, scratch: Path, head: Head | None = None) -> Exported:
    """Write every variant of a run's best weights into `scratch`, and measure each against PyTorch.

    Args:
        run: A supervised or a SimSiam run.
        name: Registered name.
        folder: The run's folder.
        scratch: Empty folder.
        head: Head behind the backbone of a SimSiam run, which alone can have one; None takes the better one.

    Raises:
        ExportError: The run is not complete, its files or images are not those of the training, or the fp32 variant
            does not answer what the trained network answers.
    """
    config = folder.record.config
    assert isinstance(config, TrainingConfig | SimSiamConfig), "chosen by its kind"
    dataset = open_dataset(config.dataset, load_settings().cache_dir)
    images = load_images(dataset, config.model_copy(update={"limit_test": None}), torch.device("cpu"))
    weights = _find_weights(folder, dataset)
    if isinstance(config, SimSiamConfig):
        model, head = _build_classifier(folder, config, weights, images, head)
    else:
        model = load_model(config, len(dataset.classes), dataset.image_size, weights)
    split, final = images.final
    final = Images(final.read(), final.labels_N)
    final_logits_NK = predict_logits(model, final.images_NHWC, f"{split} images in PyTorch")
    calibration = _calibrate(model, images, split, final_logits_NK)
    if not isinstance(config, SimSiamConfig):
        tested, logits_NK = final, final_logits_NK
        plain = choose_measured(model, split)
        if config.limit_test is not None or plain is not model:
            _, tested = load_images(dataset, config, torch.device("cpu")).final
            logits_NK = predict_logits(plain, tested.images_NHWC, f"{split} images, as training measured them")
        metric = "accuracy" if split == "test" else "best_accuracy"
        accuracy = _measure_accuracy(logits_NK, tested.labels_N)
        _check_accuracy(folder, split, metric, accuracy, len(tested))
        if plain is not model:
            released = _measure_accuracy(final_logits_NK, final.labels_N)
            print(
                f"{name}: {split} accuracy {released:.4f} as it is released, averaged over mirrored and shifted views; "
                f"{accuracy:.4f} without, as training measured it",
                flush=True,
            )
    expected_NK = torch.softmax(final_logits_NK / calibration.temperature, dim=1).numpy()

    export_onnx(model, dataset.image_size, scratch / name_file("fp32"), calibration.temperature)
    certify_variant = partial(_certify, scratch, expected_NK, calibration.thresholds, split, final, dataset)
    variants = [certify_variant("fp32", find_providers())]
    calibration_NHWC = _draw(images.train)
    for precision, limits in PRECISIONS.items():
        providers = [provider for provider in find_providers() if provider in limits.providers]
        if limits.make is not None and providers:
            make = partial(limits.make, scratch / name_file("fp32"), scratch / name_file(precision), calibration_NHWC)
            variants.append(_try_variant(precision, make, partial(certify_variant, precision, providers)))
    _save_golden(scratch, variants, final.read())
    settings = config.model_dump(mode="json", exclude={"recipe", "kind", "dataset"})
    if head is not None:
        settings["head"] = head
    manifest = Manifest(
        name=name,
        classes=dataset.classes,
        image_size=dataset.image_size,
        resize_size=dataset.image_size,
        opset=OPSET,
        variants=tuple(variants),
        calibration=calibration,
        golden_sha256=hash_file(scratch / GOLDEN_FILE),
        recipe=run.recipe,
        run_id=run.run_id,
        settings=settings,
        pictures={"train": len(images.train), "validation": len(images.validation), split: len(final)},
        dataset=dataset.name,
        data_checksum=dataset.checksum,
        git_sha=read_git_sha(),
        accuracy_fraction=_measure_accuracy(final_logits_NK, final.labels_N) if split == "test" else None,
        versions=read_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_manifest(scratch, manifest)
    return Exported(manifest, split, final.read().numpy(), final.labels_N.numpy())


def _find_weights(folder: RunFolder, dataset: PackedDataset) -> Path:
    """Return the file of a run's best weights; it and the images must be those of the training."""
    record, result = folder.record, folder.result
    if result is None or result.best_weights is None:
        raise ExportError(f"run {record.run_id} is not complete; repeat its train command first")
    weights = folder.path / result.best_weights
    if not weights.is_file():
        raise ExportError(
            f"{weights} is missing: the weights were pruned, or the run came from a node without them; pack it there "
            "again with --weights best, or train again"
        )
    if hash_file(weights) != result.weights_sha256:
        raise ExportError(f"{weights} is not the file that was trained (its sha256 differs); train again")
    if dataset.checksum != record.data_checksum:
        raise ExportError(
            f"run {record.run_id} was trained on {name_revision(dataset.name, record.data_checksum)}, packed now is "
            f"{name_revision(dataset.name, dataset.checksum)}; add the images of the run again (`darkroom data diff` "
            "says what differs), or train again"
        )
    return weights


def _build_classifier(
    folder: RunFolder, config: SimSiamConfig, weights: Path, images: TrainingImages, head: Head | None
) -> tuple[nn.Module, Head]:
    """Return a SimSiam run's backbone with a head, which is told."""
    built = build_classifier(config, weights, images, head)
    found = ", ".join(f"{name} {accuracy:.4f}" for name, accuracy in built.accuracies.items())
    count = len(images.validation)
    print(
        f"{config.recipe}: accuracy on {count} validation images: {found}; head: {built.head}; kNN of the training "
        f"{built.knn_accuracy:.4f}",
        flush=True,
    )
    if config.limit_test is None:
        _check_accuracy(folder, "validation", "best_accuracy", built.knn_accuracy, count)
    return built.model, built.head


def choose_measured(model: nn.Module, split: str) -> nn.Module:
    """Return what the training measured on a split: validation during the run does without the average over views."""
    return model.model if split == "validation" and isinstance(model, ViewAverage) else model


def _measure_accuracy(logits_NK: Tensor, labels_N: Tensor) -> float:
    return float((logits_NK.argmax(1) == labels_N).float().mean())


def _check_accuracy(folder: RunFolder, split: str, metric: str, measured: float, count: int) -> None:
    """Refuse a network that is not the one that was measured: other code, other classes, another normalisation."""
    result = folder.result
    known = None if result is None else result.metrics.get(f"{split}/{metric}")
    if known is not None and abs(measured - known) > max(MAX_ACCURACY_SHIFT, MAX_IMAGES_SHIFTED / count):
        raise ExportError(
            f"the network of run {folder.record.run_id} labels {measured:.4f} of the {count} {split} "
            f"images rightly, when it was trained it was {known:.4f} (allowed difference {MAX_ACCURACY_SHIFT}): "
            "network, normalisation or the order of the classes are not those of the training any more; train again"
        )


def _calibrate(model: nn.Module, images: TrainingImages, split: str, final_logits_NK: Tensor) -> Calibration:
    """Choose temperature and thresholds on validation, and measure on test what they are worth."""
    _, final = images.final
    has_test = split == "test"
    validation_NK = final_logits_NK
    if has_test:
        validation_NK = predict_logits(model, images.validation.images_NHWC, "validation images in PyTorch")
    trial = try_temperature(validation_NK, images.validation.labels_N)
    looked_at = [("validation", validation_NK, images.validation.labels_N)]
    if has_test:
        looked_at.append((split, final_logits_NK, final.labels_N))
    answers = [
        LabelledAnswers(name, torch.softmax(logits_NK / trial.temperature, dim=1).numpy(), labels_N.numpy())
        for name, logits_NK, labels_N in looked_at
    ]
    return Calibration(
        temperature=trial.temperature,
        reliability=tuple(measure_reliability(*each, trial.temperature) for each in looked_at),
        thresholds=choose_supported_thresholds(answers[0], answers[1] if has_test else None),
        trial=trial,
    )


def _try_variant(precision: Precision, make: Callable[[], None], measure: Callable[[], Variant]) -> Variant:
    """Make and measure a variant; one that onnxruntime cannot make or run is left out and says why."""
    try:
        make()
        return measure()
    except _NOT_POSSIBLE as error:
        problem = f"it cannot be made or run here: {str(error).splitlines()[0]}"
        return Variant(precision=precision, file=None, sha256="", size_bytes=0, certificates=(), problem=problem)


def _certify(
    scratch: Path,
    expected_NK: npt.NDArray[np.float32],
    thresholds: Thresholds,
    split: str,
    final: Images,
    dataset: PackedDataset,
    precision: Precision,
    providers: Sequence[str],
) -> Variant:
    """Measure one variant; what is outside of its limits stays out of the bundle, fp32 stops the release."""
    file = scratch / name_file(precision)
    print(f"{dataset.name}: certifying {precision} on {len(final)} {split} images", flush=True)
    certificates = tuple(
        certify(
            precision,
            file,
            expected_NK,
            final.read().numpy(),
            final.labels_N.numpy(),
            split,
            provider,
            dataset.classes,
            thresholds,
        )
        for provider in providers
    )
    if precision == "fp32":
        for certificate in certificates:
            check_certificate(certificate)
    is_offered = any(certificate.refusal is None for certificate in certificates)
    timings = []
    with show_progress(f"{dataset.name}: timing {precision}", len(providers), "providers") as advance:
        for provider in providers:
            timings.append(time_variant(file, provider, dataset.image_size))
            advance(1)
    return Variant(
        precision=precision,
        file=file.name if is_offered else None,
        sha256=hash_file(file),
        size_bytes=file.stat().st_size,
        certificates=certificates,
        timings=tuple(timings),
        golden_tolerance=PRECISIONS[precision].golden_tolerance,
    )


def _save_golden(scratch: Path, variants: list[Variant], images_NHWC: Tensor) -> None:
    """Keep some images, evenly spread over the split, with what each offered variant answers on this machine."""
    chosen = np.linspace(0, len(images_NHWC) - 1, min(GOLDEN_IMAGES, len(images_NHWC))).astype(int)
    golden_NHWC = np.ascontiguousarray(images_NHWC.numpy()[chosen])
    answers: dict[str, npt.NDArray[np.float32]] = {
        variant.precision: run_session(
            open_session(scratch / variant.file, variant.certificates[-1].provider, count_cpus()), golden_NHWC
        )
        for variant in variants
        if variant.file is not None
    }
    np.savez(scratch / GOLDEN_FILE, allow_pickle=False, images_NHWC=golden_NHWC, **answers)


def _draw(train: Images) -> npt.NDArray[np.uint8]:
    """Return the training images that variants are calibrated on, the same for the same images."""
    chosen = np.random.default_rng(0).permutation(len(train))[:CALIBRATION_COUNT]
    images_NHWC: npt.NDArray[np.uint8] = train.images_NHWC[torch.from_numpy(np.sort(chosen))].to("cpu").numpy()
    return images_NHWC
