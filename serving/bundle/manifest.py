"""Manifest of a bundle: its variants, the proof of each, its calibration and where it came from.

The export side fills a `Manifest`, the service reads it; it lies in the bundle as manifest.json.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.errors import BundleError

GOLDEN_FILE = "golden.npz"
# The release side has the table of those that are made; any of them is served.
Precision = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*$")]
# Tolerances of bundles whose manifest has none.
_EARLIER_TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "int8": 5e-2}
Interval = tuple[float, float]
FILE_NAME = r"^[A-Za-z0-9][\w.-]*$"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BatchCertificate(_Frozen):
    """One variant on one provider against the trained network, at one batch size.

    Attributes:
        batch_size: Images given to onnxruntime at once.
        max_difference: Largest absolute difference of a probability.
        mean_difference: Mean absolute difference of the probabilities.
        top1_agreement: Share of images with the same label, in [0, 1].
        accuracy: Share of right labels, in [0, 1].
    """

    batch_size: int
    max_difference: float
    mean_difference: float
    top1_agreement: float
    accuracy: float


class Selection(_Frozen):
    """Accepted predictions among some images.

    Attributes:
        split: `validation` or `test`.
        count: Images.
        answered: Accepted predictions: those with a probability of at least their threshold.
        wrong: Accepted predictions with a wrong label.
        error_interval: 95 % Clopper-Pearson interval of wrong / answered; (0, 1) if none is accepted.
    """

    split: str
    count: int
    answered: int
    wrong: int
    error_interval: Interval


class Certificate(_Frozen):
    """One variant on one onnxruntime provider against the trained network in PyTorch, on all images of a split.

    Attributes:
        precision: Variant.
        provider: onnxruntime's execution provider, e.g. `CPUExecutionProvider`.
        sha256: SHA-256 of the variant's file that was measured.
        split: `test`, or `validation` where the data set has no test images.
        count: Images.
        torch_accuracy: Accuracy of the trained network, in [0, 1].
        torch_accuracy_interval: 95 % Clopper-Pearson interval of it.
        accuracy_interval: The same of the variant, at the batch size with the lowest accuracy.
        agreement_interval: The same of the lowest top-1 agreement.
        opset: ONNX operator set.
        versions: Library versions that measured it.
        batches: By ascending batch size.
        refusal: Why the variant is not offered on this provider; None if it is within its limits.
        selection: The variant's accepted predictions at the bundle's thresholds; None in manifests of earlier releases.
    """

    precision: Precision
    provider: str
    sha256: str
    split: str
    count: int
    torch_accuracy: float
    torch_accuracy_interval: Interval
    accuracy_interval: Interval
    agreement_interval: Interval
    opset: int
    versions: dict[str, str]
    batches: tuple[BatchCertificate, ...]
    refusal: str | None = None
    selection: Selection | None = None

    @property
    def max_difference(self) -> float:
        """The largest over the batch sizes."""
        return max(batch.max_difference for batch in self.batches)

    @property
    def top1_agreement(self) -> float:
        """The lowest over the batch sizes."""
        return min(batch.top1_agreement for batch in self.batches)

    @property
    def accuracy(self) -> float:
        """The lowest over the batch sizes."""
        return min(batch.accuracy for batch in self.batches)


class BatchTiming(_Frozen):
    """How long one batch takes.

    Attributes:
        batch_size: Images.
        runs: Batches that were timed.
        median_ms: Median time of one batch.
        p99_ms: 99th percentile of the time of one batch.
        pictures_per_s: From the median.
    """

    batch_size: int
    runs: int
    median_ms: float
    p99_ms: float
    pictures_per_s: float


class Timing(_Frozen):
    """Speed and memory of one variant on one provider of one machine, in a process of its own.

    Attributes:
        provider: onnxruntime's execution provider.
        machine: Processor or GPU, as its system names it.
        threads: Number of CPU threads.
        batches: By ascending batch size.
        peak_memory_bytes: Largest resident size of the process, interpreter and onnxruntime included.
    """

    provider: str
    machine: str
    threads: int
    batches: tuple[BatchTiming, ...]
    peak_memory_bytes: int


class Variant(_Frozen):
    """The network at one precision.

    Attributes:
        precision: Precision of weights and arithmetic.
        file: Name in the bundle; None for a variant that is not offered, whose figures are kept all the same.
        sha256: SHA-256 of the file, lower-case hexadecimal.
        size_bytes: Size of the file.
        certificates: One per provider that was present at the release.
        timings: One per provider that was present at the release.
        problem: Why it could not be made or measured; None where it was.
        golden_tolerance: Largest difference of a golden image's probability from that of the release; None in manifests
            of earlier releases.
    """

    precision: Precision
    file: str | None = Field(pattern=r"^[A-Za-z0-9][\w.-]*\.onnx$")
    sha256: str
    size_bytes: int
    certificates: tuple[Certificate, ...]
    timings: tuple[Timing, ...] = ()
    problem: str | None = None
    golden_tolerance: float | None = None

    @property
    def tolerance(self) -> float:
        """`golden_tolerance`, also of earlier releases."""
        return (
            _EARLIER_TOLERANCES.get(self.precision, min(_EARLIER_TOLERANCES.values()))
            if self.golden_tolerance is None
            else self.golden_tolerance
        )

    def is_offered(self, provider: str) -> bool:
        """Whether the variant may answer on a provider: fp32 on each, others only where they were certified."""
        if self.file is None:
            return False
        found = [certificate for certificate in self.certificates if certificate.provider == provider]
        if not found:
            return self.precision == "fp32"
        return all(certificate.refusal is None for certificate in found)


class ReliabilityBin(_Frozen):
    """The images whose largest probability lies in (low, high].

    Attributes:
        low: In [0, 1].
        high: In [0, 1].
        count: Images.
        confidence: Mean of their largest probabilities; 0 without images.
        accuracy: Share of right labels among them; 0 without images.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


class Reliability(_Frozen):
    """Calibration error of a model's probabilities, on one split.

    Attributes:
        split: `validation` or `test`.
        count: Images.
        ece_before: Expected calibration error without the temperature, in [0, 1]; 15 bins of equal width.
        ece_after: With it.
        bins_before: Without the temperature.
        bins_after: With it.
        ece_before_interval: 95 % bootstrap interval of `ece_before`; None in manifests of earlier releases.
        ece_after_interval: 95 % bootstrap interval of `ece_after`; None in manifests of earlier releases.
    """

    split: str
    count: int
    ece_before: float
    ece_after: float
    bins_before: tuple[ReliabilityBin, ...]
    bins_after: tuple[ReliabilityBin, ...]
    ece_before_interval: Interval | None = None
    ece_after_interval: Interval | None = None


class TemperatureTrial(_Frozen):
    """Cross-validated evidence for or against a temperature, on validation.

    Attributes:
        fitted: Temperature with the lowest negative log-likelihood on all validation images.
        refusal: Why temperature 1 is used instead; None if `fitted` is used.
        folds: Folds of the cross-validation; 0 if there was none, then the figures below are None.
        nll_gain: Mean decrease of the negative log-likelihood per image, nats; above 0 is better.
        nll_gain_interval: 95 % interval of it, from the paired differences of the images.
        ece_change: Change of the expected calibration error; below 0 is better.
        ece_change_interval: 95 % paired bootstrap interval of it.
    """

    fitted: float
    refusal: str | None
    folds: int
    nll_gain: float | None = None
    nll_gain_interval: Interval | None = None
    ece_change: float | None = None
    ece_change_interval: Interval | None = None

    @property
    def temperature(self) -> float:
        """Temperature to use: the fitted one if the evidence is for it, else 1."""
        return self.fitted if self.refusal is None else 1.0


class Thresholds(_Frozen):
    """Least probability of an accepted prediction, by predicted class.

    Attributes:
        target_error: Target error among accepted predictions, in [0, 1].
        overall: Pooled threshold: that of all classes without one of their own; None where none is supported. In
            manifests of earlier releases: one for all classes.
        per_class: Threshold of each predicted class, in the order of the classes; None where none is supported: no
            prediction of that class is accepted.
        selections: With `per_class`: on validation, which chose them, and on test if there is one.
        selections_overall: Manifests of earlier releases only: with `overall` for all classes.
        confidence: Confidence that the target error holds for every threshold at once; None in manifests of earlier
            releases, whose thresholds have no margin.
        is_own: True for a class whose target error holds for itself; the others share the pooled threshold, whose
            target error holds for them taken together. Empty in manifests of earlier releases.
        by_class: With `per_class`, for each predicted class: on test, or on validation if there is none. Empty in
            manifests of earlier releases.
    """

    target_error: float
    overall: float | None
    per_class: tuple[float | None, ...]
    selections: tuple[Selection, ...]
    selections_overall: tuple[Selection, ...] = ()
    confidence: float | None = None
    is_own: tuple[bool, ...] = ()
    by_class: tuple[Selection, ...] = ()


class Calibration(_Frozen):
    """Temperature inside the graph, what it changed, and which predictions are accepted.

    Attributes:
        temperature: Divisor of the logits before the softmax; 1 without evidence for another.
        reliability: On validation, and on test if there is one.
        thresholds: From the calibrated probabilities.
        trial: Evidence for the temperature; None in manifests of earlier releases.
    """

    temperature: float
    reliability: tuple[Reliability, ...]
    thresholds: Thresholds
    trial: TemperatureTrial | None = None


class Manifest(_Frozen):
    """What a served model is, where it came from, and the proof that it equals what was trained.

    Attributes:
        format: Format of this file; others are refused.
        name: Registered name, e.g. `cifar10`.
        classes: Labels in the order of the network's outputs.
        image_size: Height and width that the network reads, pixels.
        resize_size: Short side before the centre crop, pixels.
        opset: ONNX operator set.
        variants: fp32 first.
        calibration: Calibration of the fp32 variant.
        golden_sha256: SHA-256 of golden.npz (see `serving/bundle/store.py`); None without one.
        recipe: Recipe that trained it.
        run_id: MLflow run that trained it.
        settings: Settings of the training, by name.
        pictures: Number of images of each split that the training used.
        dataset: Packed data set that it was trained on.
        data_checksum: Checksum of that data set.
        git_sha: Commit of the code that released it; `unknown` outside of a repository.
        accuracy_fraction: Test accuracy of the trained network, in [0, 1]; None if it had no test images.
        versions: Library versions that made it.
        created: ISO 8601 time in UTC.
    """

    format: Literal[2] = 2
    name: str = Field(pattern=FILE_NAME)
    classes: tuple[str, ...]
    image_size: int
    resize_size: int
    opset: int
    variants: tuple[Variant, ...]
    calibration: Calibration | None
    golden_sha256: str | None
    recipe: str
    run_id: str = Field(pattern=FILE_NAME)
    settings: dict[str, Any] = {}
    pictures: dict[str, int] = {}
    dataset: str
    data_checksum: str
    git_sha: str
    accuracy_fraction: float | None
    versions: dict[str, str]
    created: str

    @property
    def files(self) -> dict[str, str]:
        """Every file of the bundle but manifest.json itself, with its sha256."""
        files = {variant.file: variant.sha256 for variant in self.variants if variant.file is not None}
        return files if self.golden_sha256 is None else {**files, GOLDEN_FILE: self.golden_sha256}

    @property
    def fp32(self) -> Variant:
        """The variant that all others are measured against."""
        return self.get_variant("fp32")

    @property
    def offered(self) -> tuple[Variant, ...]:
        """The variants whose file is in the bundle."""
        return tuple(variant for variant in self.variants if variant.file is not None)

    @property
    def thresholds(self) -> dict[str, float] | None:
        """Least probability of an accepted prediction, by class; without the classes that have none."""
        if self.calibration is None:
            return None
        found = zip(self.classes, self.calibration.thresholds.per_class, strict=True)
        return {label: threshold for label, threshold in found if threshold is not None}

    def is_confident(self, class_index: int, probability: float) -> bool:
        """Return True if a prediction is accepted: the target error holds for labels of that probability.

        False below the threshold of its class and for a class without one; True for a model without calibration.
        """
        if self.calibration is None:
            return True
        threshold = self.calibration.thresholds.per_class[class_index]
        return threshold is not None and probability >= threshold

    def get_variant(self, precision: str) -> Variant:
        """Return the variant of a precision.

        Raises:
            BundleError: There is none.
        """
        for variant in self.variants:
            if variant.precision == precision:
                return variant
        has = ", ".join(variant.precision for variant in self.variants)
        raise BundleError(f"{self.name} of run {self.run_id} has no {precision} variant, only {has}")
