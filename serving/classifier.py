"""One bundle, ready to classify: an onnxruntime session whose shapes are known to fit its manifest.

Shape suffixes: N = pictures in the batch, H = height, W = width, C = colour channels, K = classes.
"""

import ctypes
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from serving.bundle import MODEL_FILE, Manifest, read_bundle
from serving.errors import BundleError
from serving.predictions import ModelIdentity, ServedModel
from serving.preprocess import decode_picture

INPUT_NAME = "images"
OUTPUT_NAME = "probabilities"
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

# onnxruntime has no common base for its exceptions.
_SESSION_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
_LOG_ERRORS_ONLY = 3

logger = logging.getLogger(__name__)


class Classifier:
    """A model that answers pictures with class probabilities; safe to call from several threads.

    Attributes:
        manifest: The bundle's manifest.
        version: Version in the registry, e.g. `3`.
        provider: onnxruntime's execution provider that is really active.
    """

    def __init__(self, folder: Path, version: str, threads: int | None = None) -> None:
        """Load a bundle, check it, and classify two blank pictures with it.

        Args:
            folder: The bundle.
            version: Version in the registry that the bundle was released as.
            threads: CPU threads of one classification; `count_cpus()` when None.

        Raises:
            BundleError: The bundle is damaged, onnxruntime cannot run it, or inputs and outputs do not fit
                the manifest.
        """
        self.manifest: Manifest = read_bundle(folder)
        self.version = version
        self._folder = folder
        self._threads = threads or count_cpus()
        self._session = self._open_session()
        self.provider: str = self._session.get_providers()[0]

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is, as every answer names it."""
        manifest = self.manifest
        return ModelIdentity(
            name=manifest.name, version=self.version, sha256=manifest.sha256, precision=manifest.precision
        )

    def describe(self) -> ServedModel:
        """Return what `GET /v1/models` says about this model."""
        shared = self.manifest.model_dump(include=set(ServedModel.model_fields))
        return ServedModel(**shared, version=self.version, provider=self.provider)

    def decode(self, data: bytes) -> npt.NDArray[np.uint8]:
        """Decode one picture to the size that this model reads.

        Args:
            data: The encoded file.

        Returns:
            uint8 [image_size, image_size, 3].

        Raises:
            NotAPictureError: The bytes are empty, truncated or not a picture.
            TooLargeError: The picture has too many pixels.
        """
        return decode_picture(data, self.manifest.image_size, self.manifest.resize_size)

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
        return _run(self._session, images_NHWC)

    def _open_session(self) -> onnxruntime.InferenceSession:
        if has_cuda():
            try:
                # Without TF32, whose rounding no comparison with the trained network has seen.
                session = self._create_session([(CUDA, {"use_tf32": "0"}), CPU])
                if session.get_providers()[0] == CUDA:
                    self._check(session)
                    return session
                reason = "its CUDA provider did not load"
            except _SESSION_ERRORS as error:
                reason = str(error)
            logger.warning("%s: this machine has a GPU but onnxruntime uses the CPU: %s", self._folder, reason)
        try:
            session = self._create_session([CPU])
            self._check(session)
        except _SESSION_ERRORS as error:
            raise BundleError(f"{self._folder / MODEL_FILE}: onnxruntime cannot run it: {error}") from error
        return session

    def _create_session(self, providers: list[Any]) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _LOG_ERRORS_ONLY
        options.intra_op_num_threads = self._threads
        # Idle threads that spin would take the cores that decode the next pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(self._folder / MODEL_FILE, options, providers=providers)

    def _check(self, session: onnxruntime.InferenceSession) -> None:
        """Compare inputs and outputs with the manifest, then run one batch: some faults show only there."""
        size, classes = self.manifest.image_size, len(self.manifest.classes)
        inputs = [(node.name, node.type) for node in session.get_inputs()]
        outputs = [(node.name, node.type) for node in session.get_outputs()]
        if inputs != [(INPUT_NAME, "tensor(uint8)")] or outputs != [(OUTPUT_NAME, "tensor(float)")]:
            raise BundleError(
                f"{self._folder / MODEL_FILE} maps {inputs} to {outputs}; the service needs uint8 "
                f"`{INPUT_NAME}` to float32 `{OUTPUT_NAME}`; export and release the model again"
            )
        batch, *shape = session.get_inputs()[0].shape
        if isinstance(batch, int) or shape != [size, size, 3]:
            raise BundleError(
                f"{self._folder / MODEL_FILE} reads {[batch, *shape]}; its manifest says "
                f"[batch, {size}, {size}, 3] with any batch size; export and release the model again"
            )
        probabilities_NK = _run(session, np.zeros((2, size, size, 3), dtype=np.uint8))
        if probabilities_NK.shape != (2, classes):
            raise BundleError(
                f"{self._folder / MODEL_FILE} answers {probabilities_NK.shape} for two pictures; its "
                f"manifest names {classes} classes; export and release the model again"
            )
        sums_N = probabilities_NK.sum(axis=1)
        if not (np.allclose(sums_N, 1.0, atol=1e-2) and (probabilities_NK >= 0).all()):
            raise BundleError(
                f"{self._folder / MODEL_FILE} answers no probabilities (rows sum to {sums_N.tolist()}); "
                "softmax belongs inside the graph; export and release the model again"
            )


def count_cpus(cgroup_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many CPUs this process may use: its affinity, and its container's quota if that is lower."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = cgroup_file.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cpus
    if quota == "max":
        return cpus
    return max(1, min(cpus, round(int(quota) / int(period))))


def _run(session: onnxruntime.InferenceSession, images_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    probabilities_NK: npt.NDArray[np.float32] = session.run([OUTPUT_NAME], {INPUT_NAME: images_NHWC})[0]
    return probabilities_NK


def has_cuda() -> bool:
    """Return whether the driver shows a GPU that onnxruntime was built for, and load the CUDA libraries if so.

    The driver is asked because onnxruntime prints errors when it tries CUDA without a GPU. Whether a session really
    runs there is known only from `Classifier.provider`.
    """
    if CUDA not in onnxruntime.get_available_providers():
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return False
    onnxruntime.preload_dlls()
    return True
