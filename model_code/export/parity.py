"""The proof that an ONNX file answers what the trained network answers.

Shape suffixes: N = pictures, K = classes.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor, nn
from tqdm import tqdm

from model_code.errors import ReleaseError
from model_code.evaluation.metrics import predict_logits
from model_code.export.onnx_export import INPUT_NAME, OUTPUT_NAME

BATCH_SIZES = (1, 7, 64)
MAX_PROBABILITY_DIFFERENCE = 1e-4
MIN_TOP1_AGREEMENT = 1.0


@dataclass(frozen=True)
class BatchParity:
    """onnxruntime against PyTorch at one batch size.

    Attributes:
        max_difference: Largest absolute difference of a probability.
        top1_agreement: Share of pictures with the same label, in [0, 1].
    """

    max_difference: float
    top1_agreement: float


@dataclass(frozen=True)
class Parity:
    """onnxruntime against PyTorch on all pictures of a split.

    Attributes:
        split: `test`, or `validation` where the data set has no test pictures.
        count: Pictures.
        provider: onnxruntime execution provider.
        torch_accuracy: Of PyTorch, in [0, 1].
        onnx_accuracy: Of onnxruntime at the largest batch, in [0, 1].
        batches: By batch size.
    """

    split: str
    count: int
    provider: str
    torch_accuracy: float
    onnx_accuracy: float
    batches: dict[int, BatchParity]

    def to_dict(self) -> dict[str, object]:
        """Return plain values for a manifest."""
        return asdict(self) | {"batches": {str(size): asdict(parity) for size, parity in self.batches.items()}}

    def check(self) -> None:
        """Refuse a model that answers differently after export.

        Raises:
            ReleaseError: A difference is above 1e-4 or a label differs, at any batch size.
        """
        for batch_size, parity in self.batches.items():
            if (
                not parity.max_difference <= MAX_PROBABILITY_DIFFERENCE  # also refuses NaN
                or parity.top1_agreement < MIN_TOP1_AGREEMENT
            ):
                raise ReleaseError(
                    f"the exported model is not the trained one: at batch {batch_size} probabilities differ by up to "
                    f"{parity.max_difference:.2g} (allowed {MAX_PROBABILITY_DIFFERENCE:g}) and "
                    f"{parity.top1_agreement:.4%} of {self.count} labels agree (wanted {MIN_TOP1_AGREEMENT:.0%}); "
                    "nothing was released"
                )


def measure_parity(model: nn.Module, model_file: Path, split: str, images_NHWC: Tensor, labels_N: Tensor) -> Parity:
    """Run PyTorch and onnxruntime over the same pictures, on the CPU, at batches 1, 7 and 64.

    Args:
        model: The trained model, logits out, on the CPU.
        model_file: What `export_onnx` wrote from it.
        split: Name of the pictures, for the record.
        images_NHWC: uint8, on the CPU.
        labels_N: int64.
    """
    expected_NK = torch.softmax(predict_logits(model, images_NHWC), dim=1).numpy()
    session = onnxruntime.InferenceSession(str(model_file), providers=["CPUExecutionProvider"])
    batches = {}
    answered_NK = expected_NK
    progress = tqdm(total=len(BATCH_SIZES) * len(labels_N), desc="parity", unit="picture", disable=None, leave=False)
    with progress:
        for batch_size in BATCH_SIZES:
            answered_NK = np.concatenate(
                [_run(session, images, progress) for images in _split(images_NHWC.numpy(), batch_size)]
            )
            batches[batch_size] = BatchParity(
                max_difference=float(np.abs(answered_NK - expected_NK).max()),
                top1_agreement=float((answered_NK.argmax(1) == expected_NK.argmax(1)).mean()),
            )
    labels = labels_N.numpy()
    return Parity(
        split=split,
        count=len(labels),
        provider="CPUExecutionProvider",
        torch_accuracy=float((expected_NK.argmax(1) == labels).mean()),
        onnx_accuracy=float((answered_NK.argmax(1) == labels).mean()),
        batches=batches,
    )


def _split(images_NHWC: npt.NDArray[np.uint8], batch_size: int) -> Iterator[npt.NDArray[np.uint8]]:
    for start in range(0, len(images_NHWC), batch_size):
        yield images_NHWC[start : start + batch_size]


def _run(
    session: onnxruntime.InferenceSession, images: npt.NDArray[np.uint8], progress: "tqdm[None]"
) -> npt.NDArray[np.float32]:
    progress.update(len(images))
    (probabilities_BK,) = session.run([OUTPUT_NAME], {INPUT_NAME: images})
    return np.asarray(probabilities_BK)
