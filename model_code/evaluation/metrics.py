"""Classification metrics of one set of images.

Shape suffixes: N = images, B = images of one batch, K = classes, T = classes with the highest scores.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model_code.data.disk_images import DiskImages
from model_code.data.progress import show_progress

TOP_K = 5
LARGEST_BATCH = 500
_BATCH_PIXELS = LARGEST_BATCH * 64**2


@dataclass(frozen=True)
class Report:
    """How well a network labels some images.

    Attributes:
        count: Images.
        loss: Mean cross-entropy, nats.
        accuracy_fraction: Share of right labels, in [0, 1].
        top5_accuracy: Share of images whose label is among the five highest logits, in [0, 1].
        macro_f1: Mean F1 of the classes that have images, in [0, 1].
        per_class_accuracy: Recall of each class; NaN where the class has no image.
        confusion_KK: Counts, rows the true class, columns the predicted one.
    """

    count: int
    loss: float
    accuracy_fraction: float
    top5_accuracy: float
    macro_f1: float
    per_class_accuracy: tuple[float, ...]
    confusion_KK: npt.NDArray[np.int64]


def choose_batch(image_size: int) -> int:
    """Return how many images of this height and width are evaluated at once: fewer large ones, for their memory."""
    return max(1, min(LARGEST_BATCH, _BATCH_PIXELS // image_size**2))


def find_device(model: nn.Module, images_NHWC: Tensor | DiskImages) -> torch.device:
    """Return where a model computes: its weights' device, or that of the images if it has none."""
    weights = next(model.parameters(), None)
    return images_NHWC.device if weights is None else weights.device


def compute_in_batches(
    compute: Callable[[Tensor], Tensor], images_NHWC: Tensor | DiskImages, batch_size: int
) -> Tensor:
    """Return the rows that a function computes of all images, float32 [N, ...], on its device.

    Where the device's memory does not hold a batch, smaller ones are computed from then on, which a line says.

    Args:
        compute: Some of the images -> a row for each.
        images_NHWC: uint8.
        batch_size: Images at once, at least 1.

    Raises:
        torch.OutOfMemoryError: The memory does not hold a single image.
    """
    rows: list[Tensor] = []
    first = 0
    while first < len(images_NHWC) or not rows:  # a process may have a share of none
        try:
            batch_NHWC = images_NHWC[first : first + batch_size].to(images_NHWC.device)  # read, where it is on disk
            rows.append(compute(batch_NHWC).float())
            first += batch_size
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            print(f"the device's memory is full: from now on {batch_size} images are evaluated at once", flush=True)
    return torch.cat(rows)


@torch.inference_mode()
def predict_logits(model: nn.Module, images_NHWC: Tensor | DiskImages, title: str | None = None) -> Tensor:
    """Return logits float32 [N, K] on the CPU; the model is left in evaluation mode.

    Args:
        model: Images [B, H, W, C] in, logits out.
        images_NHWC: uint8; each batch is moved to the model's device.
        title: Progress is shown under it; None shows none.
    """
    model.eval()
    device = find_device(model, images_NHWC)
    batch_size = choose_batch(images_NHWC.shape[1])
    with show_progress(title or "", len(images_NHWC), "images", is_shown=title is not None) as advance:

        def answer(batch_NHWC: Tensor) -> Tensor:
            logits_NK: Tensor = model(batch_NHWC.to(device))
            advance(len(batch_NHWC))
            return logits_NK

        return compute_in_batches(answer, images_NHWC, batch_size).cpu()


def measure_top_k(scores_NK: Tensor, labels_N: Tensor, top_k: int = 1) -> float:
    """Return the share of images whose label is among the `top_k` highest scores, in [0, 1].

    Args:
        scores_NK: Float, any scale; of equal scores the one of the smaller class is higher.
        labels_N: int64 in [0, K), on the scores' device; N above 0.
        top_k: With K classes or more every image counts as right.
    """
    best_NT = scores_NK.argsort(dim=1, descending=True, stable=True)[:, :top_k]
    return int((best_NT == labels_N[:, None]).sum()) / len(labels_N)


def average_f1(
    counts_K: npt.NDArray[np.number], predicted_K: npt.NDArray[np.number], right_K: npt.NDArray[np.number]
) -> npt.NDArray[np.floating]:
    """Return macro-F1 in [0, 1]: the mean F1 of the classes that have images.

    Args:
        counts_K: Images of each class, [..., K]; of at least one class there are some.
        predicted_K: Images that each class is predicted for.
        right_K: Images of each class that are labelled rightly.
    """
    has_images_K = counts_K > 0
    f1_K = 2 * right_K / np.maximum(counts_K + predicted_K, 1)
    average: npt.NDArray[np.floating] = (f1_K * has_images_K).sum(-1) / has_images_K.sum(-1)
    return average


def measure(logits_NK: Tensor, labels_N: Tensor) -> Report:
    """Compare predictions with labels.

    Args:
        logits_NK: Float, any scale; the largest is the prediction.
        labels_N: int64 in [0, K).

    Raises:
        ValueError: There are no images, or the lengths differ.
    """
    if len(labels_N) == 0 or len(labels_N) != len(logits_NK):
        raise ValueError(f"{len(logits_NK)} predictions for {len(labels_N)} labels; both must be equal and above 0")
    labels_N = labels_N.cpu()
    classes = logits_NK.shape[1]
    # By hand: to import scikit-learn takes longer than all that a command does with it.
    pairs_N = classes * labels_N.numpy() + logits_NK.argmax(1).numpy()
    confusion_KK = np.bincount(pairs_N, minlength=classes**2).reshape(classes, classes)
    counts_K, predicted_K = confusion_KK.sum(1), confusion_KK.sum(0)
    right_K = confusion_KK.diagonal()
    return Report(
        count=len(labels_N),
        loss=float(nn.functional.cross_entropy(logits_NK, labels_N)),
        accuracy_fraction=float(right_K.sum() / len(labels_N)),
        top5_accuracy=measure_top_k(logits_NK, labels_N, TOP_K),
        macro_f1=float(average_f1(counts_K, predicted_K, right_K)),
        per_class_accuracy=tuple(
            float(right / count) if count else float("nan") for right, count in zip(right_K, counts_K, strict=True)
        ),
        confusion_KK=confusion_KK,
    )
