"""One ONNX file on one onnxruntime provider, known to fit its manifest and to answer as it did at its release.

Shape suffixes: N = images in the batch, H = height, W = width, C = colour channels, K = classes.
"""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from serving.bundle.manifest import Manifest, Variant
from serving.errors import BundleError

INPUT_NAME = "images"
OUTPUT_NAME = "probabilities"
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

# onnxruntime has no common base for its exceptions.
SESSION_ERRORS: tuple[type[Exception], ...] = tuple(
    one for one in vars(ort_errors).values() if isinstance(one, type) and issubclass(one, Exception)
)
_LOG_ERRORS_ONLY = 3
Answerer = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


def open_session(
    model: Path | bytes, provider: str, threads: int, has_graphs: bool = False
) -> onnxruntime.InferenceSession:
    """Load a model.

    Args:
        model: ONNX file, or its bytes.
        provider: Execution provider that is to run it.
        threads: Number of CPU threads.
        has_graphs: True if CUDA records graphs (`serving/models/bound_session.py`).

    Raises:
        BundleError: The provider does not become active, or cannot run the graph.
    """
    what = model if isinstance(model, Path) else "the model"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.intra_op_num_threads = threads
    # Long enough to be awake for a client's next request; longer would take the cores that decode photographs.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "400")
    # Without TF32, whose rounding no comparison with the trained network has seen.
    of_cuda = {"use_tf32": "0", "enable_cuda_graph": str(int(has_graphs))}
    providers: list[Any] = [(CUDA, of_cuda), CPU] if provider == CUDA else [provider]
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except SESSION_ERRORS as error:
        raise BundleError(f"{what}: onnxruntime cannot run it on {provider}: {error}") from error
    if session.get_providers()[0] != provider:
        raise BundleError(f"{what}: onnxruntime's {provider} did not load")
    return session


def run_session(
    session: onnxruntime.InferenceSession,
    images_NHWC: npt.NDArray[np.uint8],
    options: onnxruntime.RunOptions | None = None,
) -> npt.NDArray[np.float32]:
    """Return the class probabilities of a batch, float32 [N, K], of uint8 [N, H, W, C].

    Raises:
        BundleError: onnxruntime cannot run the batch.
    """
    try:
        probabilities_NK: npt.NDArray[np.float32] = session.run([OUTPUT_NAME], {INPUT_NAME: images_NHWC}, options)[0]
    except SESSION_ERRORS as error:
        raise BundleError(f"onnxruntime cannot run a batch of {len(images_NHWC)}: {error}") from error
    return probabilities_NK


def check_graph(session: onnxruntime.InferenceSession, file: Path, manifest: Manifest) -> None:
    """Compare inputs and outputs with the manifest, then run one batch: some faults show only there.

    Raises:
        BundleError: They do not fit.
    """
    size, classes = manifest.image_size, len(manifest.classes)
    inputs = [(node.name, node.type) for node in session.get_inputs()]
    outputs = [(node.name, node.type) for node in session.get_outputs()]
    if inputs != [(INPUT_NAME, "tensor(uint8)")] or outputs != [(OUTPUT_NAME, "tensor(float)")]:
        raise BundleError(
            f"{file} maps {inputs} to {outputs}; the service needs uint8 "
            f"`{INPUT_NAME}` to float32 `{OUTPUT_NAME}`; export and release the model again"
        )
    batch, *shape = session.get_inputs()[0].shape
    if isinstance(batch, int) or shape != [size, size, 3]:
        raise BundleError(
            f"{file} reads {[batch, *shape]}; its manifest says "
            f"[batch, {size}, {size}, 3] with any batch size; export and release the model again"
        )
    probabilities_NK = run_session(session, np.zeros((2, size, size, 3), dtype=np.uint8))
    if probabilities_NK.shape != (2, classes):
        raise BundleError(
            f"{file} answers {probabilities_NK.shape} for two images; its "
            f"manifest names {classes} classes; export and release the model again"
        )
    sums_N = probabilities_NK.sum(axis=1)
    if not (np.allclose(sums_N, 1.0, atol=1e-2) and (probabilities_NK >= 0).all()):
        raise BundleError(
            f"{file} answers no probabilities (rows sum to {sums_N.tolist()}); "
            "softmax belongs inside the graph; export and release the model again"
        )


def check_golden(
    session: onnxruntime.InferenceSession, file: Path, variant: Variant, golden: dict[str, npt.NDArray[Any]]
) -> None:
    """Compare the answers to the golden images with those at the release.

    Args:
        session: Session of the variant.
        file: Path of the variant, for the message.
        variant: Its entry in the manifest.
        golden: From `serving.bundle.store.read_golden`; nothing to compare where it is empty.

    Raises:
        BundleError: They differ by more than the variant's tolerance.
    """
    if not golden:
        return
    expected_NK = golden[variant.precision]
    answered_NK = run_session(session, golden["images_NHWC"])
    difference = float(np.abs(answered_NK - expected_NK).max())
    if not difference <= variant.tolerance:
        raise BundleError(
            f"{file}: on this machine {len(expected_NK)} golden images are answered otherwise than at the release, "
            f"by up to {difference:.2g} (allowed {variant.tolerance:g}) on {session.get_providers()[0]}; "
            "release the model on a machine like this one"
        )


def measure_speed(
    answerers: dict[str, Answerer], images_NHWC: npt.NDArray[np.uint8], seconds: float
) -> dict[str, float]:
    """Return the images per second of several ways to answer, which take turns; from the median of their batches.

    Args:
        answerers: By a name: uint8 [N, H, W, C] -> probabilities; each has run before.
        images_NHWC: The batch, uint8.
        seconds: Measured time of each; at least three batches are run.
    """
    times_s: dict[str, list[float]] = {name: [] for name in answerers}
    end_s = time.perf_counter() + seconds * len(answerers)
    rounds = 0
    while rounds < 3 or time.perf_counter() < end_s:
        for name, answer in answerers.items():
            start_s = time.perf_counter()
            answer(images_NHWC)
            times_s[name].append(time.perf_counter() - start_s)
        rounds += 1
    return {name: len(images_NHWC) / float(np.median(taken_s)) for name, taken_s in times_s.items()}


def has_cuda() -> bool:
    """Return whether the driver shows a GPU that onnxruntime was built for, and load the CUDA libraries if so.

    The driver is asked because onnxruntime prints errors when it tries CUDA without a GPU. Whether a session really
    runs there is known only from the session.
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
