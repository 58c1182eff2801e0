"""One bundle, ready to classify with the fastest of its variants that answers right on this machine.

Shape suffixes: N = images in the batch, K = classes.
"""

import logging
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from serving.bundle.manifest import Manifest, Variant
from serving.bundle.preprocess import decode_picture
from serving.bundle.processors import count_cpus
from serving.bundle.session import (
    CPU,
    CUDA,
    Answerer,
    check_golden,
    check_graph,
    has_cuda,
    measure_speed,
    open_session,
    run_session,
)
from serving.bundle.store import read_bundle, read_golden
from serving.errors import BundleError
from serving.models.bound_session import bind_on_cuda
from serving.models.predictions import ModelIdentity, ServedModel

# How long each variant is timed when a bundle is loaded, and how many images at once.
_TIMING_S = 0.3
_TIMING_BATCH = 8
NO_GPU = "--require-cuda: onnxruntime finds no GPU; `darkroom doctor` says what is missing"

logger = logging.getLogger(__name__)


class Classifier:
    """A model that answers images with class probabilities; safe to call from several threads.

    Attributes:
        manifest: The bundle's manifest.
        version: Version in the registry, e.g. `3`.
        variant: The variant that answers.
        provider: onnxruntime's execution provider that is really active.
        choice: Why this variant answers, for people.
        problems: Of the variants that do not work here.
    """

    def __init__(
        self,
        folder: Path,
        version: str,
        threads: int | None = None,
        *,
        precision: str | None = None,
        requires_cuda: bool = False,
        manifest_sha256: str | None = None,
    ) -> None:
        """Load a bundle, check it, ask it the golden images, and choose its fastest variant.

        Args:
            folder: The bundle.
            version: Version in the registry that the bundle was released as.
            threads: CPU threads of one classification; `count_cpus()` when None.
            precision: The variant that is to answer; the fastest when None.
            requires_cuda: Whether the CPU may not answer instead of a GPU.
            manifest_sha256: What manifest.json must have; not compared when None.

        Raises:
            BundleError: The bundle is damaged, onnxruntime cannot run it, inputs and outputs do not fit the manifest,
                it answers otherwise than at its release, or it does not offer the precision or device asked for.
        """
        self.manifest: Manifest = read_bundle(folder, manifest_sha256)
        self.version = version
        self._folder = folder
        self._manifest_sha256 = manifest_sha256
        self._threads = threads or count_cpus()
        self._golden = read_golden(folder, self.manifest)
        self.provider, sessions, self.problems = self._open_sessions(precision, requires_cuda)
        # On a GPU the first batch of each size is slow, because cuDNN looks for its fastest algorithms: binding runs
        # them all before the model serves. On a CPU the first batch is as fast as the next.
        answerers: dict[str, Answerer] = {}
        for name, session in sessions.items():
            try:
                answerers[name] = self._bind(name, session) if self.provider == CUDA else partial(run_session, session)
            except BundleError as error:
                self.problems = (*self.problems, f"{name}: {error}")
                logger.warning("%s: %s: %s", folder, name, error)
        if not answerers:
            raise BundleError("; ".join(self.problems))
        if len(answerers) > 1:
            # What will answer is what is timed: on a GPU the graph that was recorded.
            speeds = measure_speed(answerers, self._draw_batch(), _TIMING_S)
            chosen = max(speeds, key=lambda name: speeds[name])
            measured = ", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items())
            why = f"fastest here at {_TIMING_BATCH} images (images/s: {measured})"
        else:
            (chosen,) = answerers
            why = "asked for" if precision else f"the only variant that is offered for {self.provider} and works here"
        self.choice = "; ".join([f"{chosen}: {why}", *self.problems])
        self._answer = answerers[chosen]
        self.variant: Variant = self.manifest.get_variant(chosen)

    @cached_property
    def identity(self) -> ModelIdentity:
        """Which model this is, as every answer names it."""
        return ModelIdentity(
            name=self.manifest.name,
            version=self.version,
            sha256=self.variant.sha256,
            precision=self.variant.precision,
        )

    def is_from(self, folder: Path, version: str, manifest_sha256: str) -> bool:
        """Whether this was loaded from that bundle, as that version, and compared with that sha256."""
        return (self._folder, self.version, self._manifest_sha256) == (folder, version, manifest_sha256)

    def describe(self) -> ServedModel:
        """Return what `GET /v1/models` says about this model."""
        manifest = self.manifest
        calibration = manifest.calibration
        return ServedModel(
            **self.identity.model_dump(),
            **manifest.model_dump(
                include={"classes", "image_size", "accuracy_fraction", "recipe", "run_id", "created"}
            ),
            provider=self.provider,
            choice=self.choice,
            target_error=None if calibration is None else calibration.thresholds.target_error,
            thresholds=manifest.thresholds,
        )

    def decode(self, data: bytes, take_pixels: Callable[[int], None] | None = None) -> npt.NDArray[np.uint8]:
        """Decode one image to the size that this model reads.

        Args:
            data: The encoded file.
            take_pixels: Told how many pixels it has before they are decoded; it may refuse by raising.

        Returns:
            uint8 [image_size, image_size, 3].

        Raises:
            NotAnImageError: The bytes are empty, truncated or not an image.
            TooLargeError: The image has too many pixels.
        """
        manifest = self.manifest
        return decode_picture(data, manifest.image_size, manifest.resize_size, take_pixels=take_pixels)

    def classify(self, images_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the class probabilities of a batch.

        Args:
            images_NHWC: uint8 [N, image_size, image_size, 3], red first.

        Returns:
            float32 [N, K], in [0, 1], each row summing to 1.

        Raises:
            ValueError: The shape or type is not what the model reads.
        """
        size = self.manifest.image_size
        if images_NHWC.dtype != np.uint8 or images_NHWC.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images of type {images_NHWC.dtype} and shape {images_NHWC.shape}; "
                f"{self.manifest.name} reads uint8 [N, {size}, {size}, 3]"
            )
        return self._answer(images_NHWC)

    def _open_sessions(
        self, precision: str | None, requires_cuda: bool
    ) -> tuple[str, dict[str, onnxruntime.InferenceSession], tuple[str, ...]]:
        """Return the provider, the checked sessions by precision, and what went wrong with others.

        Where fp32, which the others are measured against, does not work, the others are not trusted either.
        """
        problems: list[str] = []
        is_cuda_here = has_cuda()
        if requires_cuda and not is_cuda_here:
            problems.append(NO_GPU)
        providers = [provider for provider, is_used in ((CUDA, is_cuda_here), (CPU, not requires_cuda)) if is_used]
        for provider in providers:
            sessions: dict[str, onnxruntime.InferenceSession] = {}
            failed = set()
            for variant in self.manifest.offered:
                if variant.is_offered(provider) and precision in (None, variant.precision):
                    try:
                        sessions[variant.precision] = self._open(variant, provider)
                    except BundleError as error:
                        failed.add(variant.precision)
                        problems.append(str(error))
                        logger.warning("%s", error)
            if sessions and "fp32" not in failed:
                return provider, sessions, tuple(problems)
            if provider == CUDA:
                logger.warning("%s: this machine has a GPU but onnxruntime uses the CPU", self._folder)
        if problems:
            raise BundleError("; ".join(problems))
        offers = ", ".join(variant.precision for variant in self.manifest.offered if variant.is_offered(CPU))
        raise BundleError(f"{self._folder} offers no {precision or 'variant'} on {CPU}, only {offers or 'nothing'}")

    def _open(self, variant: Variant, provider: str) -> onnxruntime.InferenceSession:
        file = self._folder / str(variant.file)
        session = open_session(file, provider, self._threads)
        check_graph(session, file, self.manifest)
        check_golden(session, file, variant, self._golden)
        return session

    def _bind(self, precision: str, session: onnxruntime.InferenceSession) -> Answerer:
        variant = self.manifest.get_variant(precision)
        file = self._folder / str(variant.file)
        return bind_on_cuda(file, session, self.manifest, self._threads, self._draw_batch(), variant.tolerance).run

    def _draw_batch(self) -> npt.NDArray[np.uint8]:
        images_NHWC = self._golden.get("images_NHWC")
        if images_NHWC is None:
            size = self.manifest.image_size
            return np.zeros((_TIMING_BATCH, size, size, 3), dtype=np.uint8)
        return np.ascontiguousarray(np.resize(images_NHWC, (_TIMING_BATCH, *images_NHWC.shape[1:])), dtype=np.uint8)
