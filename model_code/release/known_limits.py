"""Known limits of a version, each a sentence that follows from its measurements."""

from collections.abc import Iterator

from model_code.evaluation.calibration import measure_interval
from model_code.release.verdict import ClassChange, Verdict
from serving.bundle.manifest import Calibration, Manifest

FEW_IMAGES = 50
_CUDA = "CUDAExecutionProvider"


def list_limits(manifest: Manifest, verdict: Verdict, profile: str = "full") -> list[str]:
    """Return the limits, plain text, most important first.

    Args:
        manifest: Manifest of the bundle.
        verdict: Of the gate on it.
        profile: Profile of the run: `full`, `smoke` or `custom`.
    """
    return [
        *_list_origins(manifest, profile),
        *_list_tests(verdict),
        *_list_classes(verdict),
        *_list_images(manifest),
        *_list_probabilities(manifest.calibration),
        *_list_variants(manifest),
    ]


def _list_origins(manifest: Manifest, profile: str) -> Iterator[str]:
    if profile == "smoke":
        yield "Trained by the smoke profile, on few images for few epochs: it proves the path and is no result."
    elif profile != "full":
        yield f"Trained with settings of its own ({profile} profile): the recipe's published figure does not apply."
    if manifest.git_sha == "unknown":
        yield "The commit that released it is unknown: it cannot be built again from its provenance."
    elif manifest.git_sha.endswith("-dirty"):
        yield "Files differed from the commit that it names: that commit alone does not build it again."


def _list_tests(verdict: Verdict) -> Iterator[str]:
    low, high = verdict.challenger_interval
    if verdict.split != "test":
        yield (
            f"No test images: the accuracy is that of {verdict.split} images, which also served to choose the "
            "weights, so it is too high rather than too low."
        )
    yield (
        f"Measured on {verdict.count} images: the accuracy on all images of their kind is between {low:.4f} and "
        f"{high:.4f} (95 % confidence), and on other kinds of images unknown."
    )
    if verdict.difference is None:
        yield "It was compared with no champion."


def _list_classes(verdict: Verdict) -> Iterator[str]:
    tested = [change for change in verdict.classes if change.count]
    # The first of equals, in the order of the classes.
    worst = min(tested, key=_get_recall)
    low, high = measure_interval(round(_get_recall(worst) * worst.count), worst.count)
    yield (
        f"Weakest class: {worst.label}, of whose {worst.count} images {100 * _get_recall(worst):.1f} % are labelled "
        f"rightly (95 % interval {100 * low:.1f} to {100 * high:.1f} %)."
    )
    few = [change.label for change in tested if change.count < FEW_IMAGES]
    if few:
        yield f"{_name(few)}: fewer than {FEW_IMAGES} images each, so the recall is hardly known."
    never = [change.label for change in verdict.classes if not change.count]
    if never:
        yield f"{_name(never)}: never tested, there is no image of it among the {verdict.count}."


def _list_images(manifest: Manifest) -> Iterator[str]:
    count, side = len(manifest.classes), manifest.image_size
    yield f"It knows {count} classes and nothing else: an image of anything else gets one of these labels too."
    crop = (
        "its middle square is read"
        if manifest.resize_size == side
        else (f"its short side becomes {manifest.resize_size} pixels and the middle {side} x {side} are read")
    )
    yield f"An image is read at {side} x {side} pixels: {crop}; smaller detail and what lies outside is not seen."


def _list_probabilities(calibration: Calibration | None) -> Iterator[str]:
    if calibration is None:
        yield "The probabilities are not calibrated, and no uncertain label is marked as one."
        return
    for one in calibration.reliability:
        worse = "; the temperature made it worse" if one.ece_after > one.ece_before else ""
        before = "" if calibration.temperature == 1 else f"; {100 * one.ece_before:.2f} without the temperature{worse}"
        yield (
            f"On {one.count} {one.split} images the probabilities are off by {100 * one.ece_after:.2f} points on "
            f"average (ECE{before})."
        )
    thresholds = calibration.thresholds
    silent = sum(threshold is None for threshold in thresholds.per_class)
    if silent:
        yield (
            f"{silent} of {len(thresholds.per_class)} classes have no threshold: the validation images do not support "
            f"a target error of {100 * thresholds.target_error:.2f} %, and their predictions are never accepted."
        )
    if thresholds.confidence is None:
        yield "The thresholds have no margin: that they keep the target error is not proven."
    for selection in thresholds.selections:
        if not selection.answered:
            yield f"Of {selection.count} {selection.split} images none has an accepted prediction."
            continue
        low, high = selection.error_interval
        proven = "" if high <= thresholds.target_error else "; that the target is met is not proven"
        if low > thresholds.target_error:
            proven = "; the target is missed"
        below, wrong = selection.count - selection.answered, selection.wrong / selection.answered
        yield (
            f"Of {selection.count} {selection.split} images {below} have no accepted prediction; of the others "
            f"{100 * wrong:.2f} % are wrong (95 % CI {100 * low:.2f} to {100 * high:.2f} %, target "
            f"{100 * thresholds.target_error:.2f} %){proven}."
        )


def _list_variants(manifest: Manifest) -> Iterator[str]:
    others: list[str] = [variant.precision for variant in manifest.offered if variant.precision != "fp32"]
    if others and manifest.calibration is not None:
        yield (
            f"Calibration errors and thresholds were measured with fp32; where {_name(others)} answers, probabilities "
            "differ by what its certificate says."
        )
    for variant in manifest.offered:
        for certificate in variant.certificates:
            if certificate.refusal is None and certificate.top1_agreement < 1:
                other = 100 * (1 - certificate.top1_agreement)
                yield (
                    f"{variant.precision} on {certificate.provider} gives {other:.3f} % of {certificate.count} "
                    f"{certificate.split} images another label than the trained network does."
                )
    if not any(certificate.provider == _CUDA for variant in manifest.variants for certificate in variant.certificates):
        yield "Never compared with the trained network on a CUDA device: none was there at the release."
    machines = dict.fromkeys(timing.machine for variant in manifest.variants for timing in variant.timings)
    if machines:
        yield f"Times and memory hold for {' and '.join(machines)} only."
    else:
        yield "Times and memory were not measured."


def _get_recall(change: ClassChange) -> float:
    assert change.challenger_accuracy is not None, "the class has images"
    return change.challenger_accuracy


def _name(labels: list[str]) -> str:
    """Return the first labels and how many more there are."""
    shown = ", ".join(labels[:10])
    return shown if len(labels) <= 10 else f"{shown} and {len(labels) - 10} more"
