"""The proof that an ONNX file answers what the trained network answers, and when it is not offered.

Shape suffixes: N = images, H = height, W = width, C = the three colour channels, K = classes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper

from model_code.data.progress import show_progress
from model_code.errors import ExportError
from model_code.evaluation.calibration import measure_interval
from model_code.evaluation.thresholds import LabelledAnswers, select
from model_code.release.precisions import PRECISIONS, Limits
from model_code.tracking.provenance import read_versions
from serving.bundle.manifest import BatchCertificate, Certificate, Precision, Thresholds
from serving.bundle.processors import count_cpus
from serving.bundle.session import CPU, CUDA, SESSION_ERRORS, has_cuda, open_session, run_session
from serving.bundle.store import hash_file
from serving.errors import BundleError

BATCH_SIZES = (1, 7, 64, 256)
_OTHER_GRAPH_FRACTION = 0.5  # of the images answered otherwise, from which on rounding explains nothing
_ORDER_IMAGES = 500
_IMAGES_PER_TIE = 1000  # at most one exchange of equal classes in so many
_NOT_RUNNING: tuple[type[Exception], ...] = (BundleError, *SESSION_ERRORS)

Probabilities = npt.NDArray[np.float32]


def find_providers() -> tuple[str, ...]:
    """Return onnxruntime's execution providers that really run graphs here: the CPU, and CUDA where it loads."""
    if not has_cuda():
        return (CPU,)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", [x], [y])
    probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    try:
        session = open_session(probe.SerializeToString(), CUDA, threads=1)
        session.run(None, {"x": np.ones(1, dtype=np.float32)})
    except _NOT_RUNNING:
        return (CPU,)
    return (CPU, CUDA)


def certify(
    precision: Precision,
    model_file: Path,
    expected_NK: Probabilities,
    images_NHWC: npt.NDArray[np.uint8],
    labels_N: npt.NDArray[np.int64],
    split: str,
    provider: str,
    classes: Sequence[str] | None = None,
    thresholds: Thresholds | None = None,
) -> Certificate:
    """Run a variant over all images at batches 1, 7, 64 and 256, and compare it with the trained network.

    It ends at the first batch size outside the limits.

    Thresholds are chosen with the trained network's probabilities; a less exact variant is refused where more of its
    accepted predictions are wrong than they promise, with 97.5 % confidence.

    Args:
        precision: Says which limits count.
        model_file: The variant.
        expected_NK: float32, the trained network's probabilities in PyTorch, with the graph's temperature.
        images_NHWC: uint8.
        labels_N: In [0, K).
        split: Name of the images, for the record.
        provider: One of `find_providers`.
        classes: Names for the refusal; their numbers when None.
        thresholds: Thresholds of the bundle; None leaves them out.

    Raises:
        BundleError: onnxruntime cannot run the variant on the provider.
        ValueError: There are no images, or the lengths differ.
    """
    if not 0 < len(labels_N) == len(images_NHWC) == len(expected_NK):
        raise ValueError(
            f"{len(images_NHWC)} images, {len(expected_NK)} answers and {len(labels_N)} labels; all three must be "
            "equal and above 0"
        )
    session = open_session(model_file, provider, count_cpus())
    batches = []
    refusal = None
    description = f"certifying {precision} on {provider.removesuffix('ExecutionProvider')}"
    total = len(BATCH_SIZES) * len(labels_N)
    with show_progress(description, total, "answers") as advance:
        for batch_size in BATCH_SIZES:
            answered_NK = _ask(session, images_NHWC, batch_size, advance)
            batch = _compare(batch_size, answered_NK, expected_NK, labels_N)
            batches.append(batch)
            refusal = _judge(precision, provider, batch, answered_NK, expected_NK, labels_N, classes)
            if refusal is not None:
                break
    selection = None
    if thresholds is not None:
        selection = select(LabelledAnswers(split, answered_NK, labels_N), thresholds.per_class)
        if precision != "fp32" and selection.error_interval[0] > thresholds.target_error:
            refusal = refusal or (
                f"{selection.wrong} of its {selection.answered} accepted predictions are wrong "
                f"(allowed {thresholds.target_error:.0%})"
            )
    count = len(labels_N)
    torch_right = int((_label(expected_NK) == labels_N).sum())
    right, agreeing = (
        round(count * min(getattr(batch, share) for batch in batches)) for share in ("accuracy", "top1_agreement")
    )
    return Certificate(
        precision=precision,
        provider=provider,
        sha256=hash_file(model_file),
        split=split,
        count=count,
        torch_accuracy=torch_right / count,
        torch_accuracy_interval=measure_interval(torch_right, count),
        accuracy_interval=measure_interval(right, count),
        agreement_interval=measure_interval(agreeing, count),
        opset=_read_opset(model_file),
        versions=read_versions(),
        batches=tuple(batches),
        refusal=refusal,
        selection=selection,
    )


def check_certificate(certificate: Certificate) -> None:
    """Refuse a release whose variant is outside its limits.

    Raises:
        ExportError: It is; one line that says why.
    """
    if certificate.refusal is not None:
        raise ExportError(
            f"the exported model is not the trained one: on {certificate.provider} {certificate.refusal}; "
            "nothing was released"
        )


def _ask(
    session: onnxruntime.InferenceSession,
    images_NHWC: npt.NDArray[np.uint8],
    batch_size: int,
    advance: Callable[[int], None],
) -> Probabilities:
    answers = []
    for start in range(0, len(images_NHWC), batch_size):
        batch_NHWC = images_NHWC[start : start + batch_size]
        answers.append(run_session(session, batch_NHWC))
        advance(len(batch_NHWC))
    return np.concatenate(answers)


def _label(probabilities_NK: Probabilities) -> npt.NDArray[np.int64]:
    """Return each image's label; -1 where an answer is not a number."""
    return np.where(np.isnan(probabilities_NK).any(axis=1), -1, probabilities_NK.argmax(axis=1))


def _measure_differences(answered_NK: Probabilities, expected_NK: Probabilities) -> npt.NDArray[np.float64]:
    """Return the absolute differences; 1, the largest there is, where an answer is not a number."""
    differences_NK = np.abs(answered_NK.astype(np.float64) - expected_NK)
    return np.nan_to_num(differences_NK, copy=False, nan=1.0, posinf=1.0)


def _compare(
    batch_size: int, answered_NK: Probabilities, expected_NK: Probabilities, labels_N: npt.NDArray[np.int64]
) -> BatchCertificate:
    differences_NK = _measure_differences(answered_NK, expected_NK)
    label_N, expected_N = _label(answered_NK), _label(expected_NK)
    return BatchCertificate(
        batch_size=batch_size,
        max_difference=float(differences_NK.max()),
        mean_difference=float(differences_NK.mean()),
        top1_agreement=float(((label_N == expected_N) & (label_N >= 0)).mean()),
        accuracy=float((label_N == labels_N).mean()),
    )


def _judge(
    precision: Precision,
    provider: str,
    batch: BatchCertificate,
    answered_NK: Probabilities,
    expected_NK: Probabilities,
    labels_N: npt.NDArray[np.int64],
    classes: Sequence[str] | None,
) -> str | None:
    """Return why a variant is not offered, in one line; None within its limits."""
    limits, count = PRECISIONS[precision], len(labels_N)
    broken = _count_broken(answered_NK, expected_NK)
    if broken:
        return f"at batch {batch.batch_size} {broken}"
    torch_accuracy = float((_label(expected_NK) == labels_N).mean())
    has_ties = provider == CUDA and precision == "fp32"
    ties = 0
    if has_ties:
        ties = min(_count_ties(answered_NK, expected_NK, limits.max_difference), max(1, count // _IMAGES_PER_TIE))
    faults = []
    if batch.max_difference > limits.max_difference:
        faults.append(f"probabilities differ by up to {batch.max_difference:.2g} (allowed {limits.max_difference:g})")
    # Counted in images: a difference of two shares is not exact.
    agreeing = round(batch.top1_agreement * count)
    if agreeing + ties < limits.top1_agreement * count:
        faults.append(f"{agreeing} of {count} labels agree (wanted {100 * limits.top1_agreement:g}%)")
    if round((torch_accuracy - batch.accuracy) * count) > limits.accuracy_loss * count + ties:
        faults.append(
            f"accuracy is {batch.accuracy:.4f} and the trained network's {torch_accuracy:.4f} "
            f"(allowed {100 * limits.accuracy_loss:g} points less)"
        )
    if not faults:
        return None
    cause = _find_cause(precision, answered_NK, expected_NK, classes)
    return f"at batch {batch.batch_size} {' and '.join(faults)}{cause}"


def _count_ties(answered_NK: Probabilities, expected_NK: Probabilities, max_difference: float) -> int:
    """Return how many labels differ between two classes that are equal within the allowed difference of each."""
    label_N, expected_N = _label(answered_NK), _label(expected_NK)
    rows = np.nonzero((label_N != expected_N) & (label_N >= 0))[0]
    gaps = expected_NK[rows, expected_N[rows]] - expected_NK[rows, label_N[rows]]
    return int((gaps <= 2 * max_difference).sum())


def _count_broken(answered_NK: Probabilities, expected_NK: Probabilities) -> str | None:
    """Return whose answers are not numbers, and to how many images."""
    for whose, answers_NK in (("the trained network's", expected_NK), ("its", answered_NK)):
        broken = int(np.isnan(answers_NK).any(axis=1).sum())
        if broken:
            return f"{whose} answers to {broken} of {len(answers_NK)} images are NaN, no numbers: weights are broken"
    return None


def _find_cause(
    precision: Precision, answered_NK: Probabilities, expected_NK: Probabilities, classes: Sequence[str] | None
) -> str:
    """Return a guess at what is wrong, to follow the figures; empty without one."""
    limits = PRECISIONS[precision]
    order_K = _find_order(answered_NK, expected_NK, limits)
    if order_K is not None:
        wrong = int(np.nonzero(order_K != np.arange(len(order_K)))[0][0])
        names = [str(index) if classes is None else classes[index] for index in (wrong, int(order_K[wrong]))]
        return f": its classes are in another order, the answers for {names[0]} stand where {names[1]} belongs"
    only_labels_count = limits.max_difference >= 1
    differs_N = (
        _label(answered_NK) != _label(expected_NK)
        if only_labels_count
        else _measure_differences(answered_NK, expected_NK).max(axis=1) > limits.max_difference
    )
    differing = float(differs_N.mean())
    if differing > _OTHER_GRAPH_FRACTION:
        what = (
            "int8 is too coarse for this network, or its normalisation, weights or calibration images differ"
            if only_labels_count
            else "so its normalisation or its weights differ"
        )
        return f": {differing:.0%} of the images are answered otherwise, {what}"
    return ""


def _find_order(answered_NK: Probabilities, expected_NK: Probabilities, limits: Limits) -> npt.NDArray[np.int64] | None:
    """Return at which output each class is answered, if all answers are right but for their order; else None."""
    answered_NK, expected_NK = answered_NK[:_ORDER_IMAGES], expected_NK[:_ORDER_IMAGES]
    order_K = np.array(
        [np.abs(answered_NK - expected_NK[:, [label]]).mean(axis=0).argmin() for label in range(expected_NK.shape[1])]
    )
    if len(set(order_K)) < len(order_K) or (order_K == np.arange(len(order_K))).all():
        return None
    sorted_NK = answered_NK[:, order_K]
    agreement = float((sorted_NK.argmax(axis=1) == expected_NK.argmax(axis=1)).mean())
    is_same = agreement >= limits.top1_agreement and np.abs(sorted_NK - expected_NK).max() <= limits.max_difference
    return order_K if is_same else None


def _read_opset(model_file: Path) -> int:
    opsets = onnx.load(model_file, load_external_data=False).opset_import
    return next(int(entry.version) for entry in opsets if entry.domain in {"", "ai.onnx"})
