"""A session with fixed buffers for each batch size: nothing is allocated for a batch, and a GPU can replay its kernels.

On CUDA each size's kernels are recorded once and replayed as one CUDA graph, where onnxruntime can record them. It
keeps graphs for the thread that recorded them, so each session has a thread of its own that records and answers.

Shape suffixes: N = images in the batch, H = height, W = width, C = colour channels, K = classes.
"""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from serving.bundle.manifest import Manifest
from serving.bundle.session import CUDA, INPUT_NAME, OUTPUT_NAME, SESSION_ERRORS, open_session, run_session
from serving.errors import BundleError

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
_NO_GRAPH = -1
# Held for each batch on a GPU: while one session records, no other may run or allocate there.
_DEVICE = threading.Lock()

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Slot:
    images: onnxruntime.OrtValue
    probabilities: onnxruntime.OrtValue
    binding: onnxruntime.IOBinding
    options: onnxruntime.RunOptions


class BoundSession:
    """Answers batches of any size in the buffers of the next larger of `BATCH_BUCKETS`; safe to call from threads.

    Attributes:
        has_graphs: True if CUDA graphs are replayed.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, manifest: Manifest, device: str, has_graphs: bool = False
    ) -> None:
        """Make the buffers and run each size twice: a graph is recorded in the first run and replayed in the second.

        Args:
            session: Opened with CUDA graphs enabled if `has_graphs`.
            manifest: Says the sizes of input and output.
            device: `cuda` or `cpu`.
            has_graphs: Whether CUDA graphs are replayed.

        Raises:
            BundleError: onnxruntime cannot run or record a size.
        """
        self.has_graphs = has_graphs
        self._session = session
        self._lock = _DEVICE if device == "cuda" else threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="graphs") if has_graphs else None
        size, classes = manifest.image_size, len(manifest.classes)
        self._slots: dict[int, _Slot] = {}
        for number, bucket in enumerate(BATCH_BUCKETS, start=1):
            with self._lock:
                try:
                    self._slots[bucket] = self._make_slot(bucket, size, classes, device, number)
                except SESSION_ERRORS as error:
                    raise BundleError(f"onnxruntime cannot bind buffers on {device}: {error}") from error
            for _ in range(2):
                self.run(np.zeros((bucket, size, size, 3), dtype=np.uint8))

    def run(self, images_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the class probabilities of a batch, float32 [N, K], of uint8 [N, H, W, C].

        Raises:
            BundleError: onnxruntime cannot run the batch.
        """
        return self._run(images_NHWC) if self._thread is None else self._thread.submit(self._run, images_NHWC).result()

    def _run(self, images_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        count = len(images_NHWC)
        bucket = next((bucket for bucket in BATCH_BUCKETS if bucket >= count), None)
        with self._lock:
            if bucket is None:
                return run_session(self._session, images_NHWC, self._make_options(_NO_GRAPH))
            slot = self._slots[bucket]
            try:
                slot.images.update_inplace(np.ascontiguousarray(fill_batch(images_NHWC, bucket)))
                self._session.run_with_iobinding(slot.binding, slot.options)
                return np.array(slot.probabilities.numpy()[:count])
            except SESSION_ERRORS as error:
                raise BundleError(f"onnxruntime cannot run a batch of {count}: {error}") from error

    def _make_slot(self, bucket: int, size: int, classes: int, device: str, graph: int) -> _Slot:
        images = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((bucket, size, size, 3), np.uint8), device, 0)
        probabilities = onnxruntime.OrtValue.ortvalue_from_shape_and_type((bucket, classes), np.float32, device, 0)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(INPUT_NAME, images)
        binding.bind_ortvalue_output(OUTPUT_NAME, probabilities)
        return _Slot(images, probabilities, binding, self._make_options(graph))

    def _make_options(self, graph: int) -> onnxruntime.RunOptions | None:
        if not self.has_graphs:
            return None
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        return options


def bind_on_cuda(
    file: Path,
    plain: onnxruntime.InferenceSession,
    manifest: Manifest,
    threads: int,
    images_NHWC: npt.NDArray[np.uint8],
    tolerance: float,
) -> BoundSession:
    """Return a session on the GPU with fixed buffers, with CUDA graphs if onnxruntime can record this network.

    Args:
        file: The model.
        plain: The same model on the GPU, as it answers without either.
        manifest: Manifest of the bundle.
        threads: Number of CPU threads.
        images_NHWC: Images that both are compared on at every size, repeated where they are fewer, uint8.
        tolerance: Largest difference of a probability between both: each session looks for its own fastest kernels.

    Raises:
        BundleError: Not even fixed buffers work.
    """
    try:
        bound = BoundSession(open_session(file, CUDA, threads, has_graphs=True), manifest, "cuda", has_graphs=True)
        repeated_NHWC = np.resize(images_NHWC, (BATCH_BUCKETS[-1], *images_NHWC.shape[1:]))
        expected_NK = run_session(plain, repeated_NHWC)
        answers = {bucket: bound.run(repeated_NHWC[:bucket]) for bucket in BATCH_BUCKETS}
        difference = float(np.max([np.abs(answers[bucket] - expected_NK[:bucket]).max() for bucket in answers]))
        if difference <= tolerance:
            return bound
        problem = f"replayed graphs give different answers, by up to {difference:.2g}"
    except BundleError as error:
        problem = str(error)
    logger.warning("%s: no CUDA graphs: %s", file, problem)
    return BoundSession(plain, manifest, "cuda")


def fill_batch(images_NHWC: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Return the images with black ones behind them, `size` in all."""
    filling = np.zeros((size - len(images_NHWC), *images_NHWC.shape[1:]), dtype=np.uint8)
    return np.concatenate([images_NHWC, filling]) if len(filling) else images_NHWC
