"""Recompression: what JPEG copies of CIFAR-10 cost in test accuracy, extrapolated from further copies of lower quality.

    python -m benchmarks.recompression --photographs ZIP [--seeds N] [--images N] [--epochs N] [--out FILE]

Trains and tests FastNet, at a short budget, on the data set cifar10 under DARKROOM_HOME as it is (copies of quality
75) and on copies of these copies. How far each copy is from an original is measured on photographs scaled down to 32
pixels, which went through the same encodings. A line through (distortion, logarithm of the error rate) gives the error
rate without distortion; it is extrapolated, not measured.

Shape suffixes: N = images, H = height, W = width, C = the three colour channels.
"""

import argparse
import dataclasses
import io
import json
import math
import statistics
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.stats import linregress
from scipy.stats import t as student
from torch import Tensor

from benchmarks.ablation import add_budget_options, configure, load_tested, read_budget, train_once
from model_code.training.images import Images

SIDE = 32
COPY_QUALITY = 75
# None is the data set as it is.
QUALITIES = (None, 60, 30, 15)


def encode_again(image_HWC: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    """Return an image after JPEG encoding with halved colour resolution, as the copies have it."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(buffer).convert("RGB"))


def recompress(images: Images, quality: int | None) -> Images:
    """Return labelled images with each encoded again."""
    if quality is None:
        return images
    images_NHWC: Tensor = torch.from_numpy(
        np.stack([encode_again(image_HWC, quality) for image_HWC in images.read().numpy()])
    )
    return Images(images_NHWC, images.labels_N)


def read_photographs(file: Path) -> list[npt.NDArray[np.uint8]]:
    """Return the photographs of a zip, their middle squares scaled down to SIDE pixels."""
    images = []
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name.lower().endswith((".jpg", ".jpeg")):
                image = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
                side = min(image.size)
                left, top = (image.width - side) // 2, (image.height - side) // 2
                box = (left, top, left + side, top + side)
                images.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box)))
    return images


def measure_distortion(photographs: list[npt.NDArray[np.uint8]], quality: int | None) -> float:
    """Return the root of the mean squared difference to the original of a copy, or of a copy of it, in grey levels."""
    squares = []
    for original_HWC in photographs:
        copy_HWC = encode_again(original_HWC, COPY_QUALITY)
        if quality is not None:
            copy_HWC = encode_again(copy_HWC, quality)
        squares.append(float(np.mean((copy_HWC.astype(float) - original_HWC) ** 2)))
    return math.sqrt(statistics.mean(squares))


def extrapolate(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float, tuple[float, float]]:
    """Return the accuracy without distortion, the first row's error rate over that one's, and the 95 % interval of it.

    Args:
        rows: `distortion` and `accuracies` of each quality, the data set as it is first.
    """
    # A quality is one point: its seeds share one deviation from the line.
    errors = [math.log(1 - statistics.mean(row["accuracies"])) for row in rows]
    line = linregress([row["distortion"] for row in rows], errors)
    half = student.ppf(0.975, len(rows) - 2) * line.stderr
    ratio, low, high = (
        math.exp(slope * rows[0]["distortion"]) for slope in (line.slope, line.slope - half, line.slope + half)
    )
    return 1 - math.exp(line.intercept), ratio, (low, high)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photographs", type=Path, required=True, help="zip of JPEG photographs")
    add_budget_options(parser)
    options = parser.parse_args()
    photographs = read_photographs(options.photographs)
    changes = read_budget(options)
    rows: list[dict[str, Any]] = []
    for quality in QUALITIES:
        accuracies = []
        for seed in range(options.seeds):
            config = configure({**changes, "seed": seed})
            images = load_tested(config)
            assert images.test is not None, "load_tested asks for them"
            images = dataclasses.replace(
                images,
                train=recompress(images.train, quality),
                validation=recompress(images.validation, quality),
                test=recompress(images.test, quality),
            )
            accuracies.append(train_once(config, images)[0])
        distortion = measure_distortion(photographs, quality)
        rows.append({"quality": quality, "distortion": distortion, "accuracies": accuracies})
        mean = statistics.mean(accuracies)
        print(f"quality {quality or 'as it is'}: distortion {distortion:.2f}, test accuracy {mean:.4f}", flush=True)
    accuracy, ratio, (low, high) = extrapolate(rows)
    print(
        f"without distortion: {accuracy:.4f}; the copies' error rate is {ratio:.2f} times that "
        f"(95 % CI {low:.2f} to {high:.2f})"
    )
    if options.out:
        result = {"budget": changes, "rows": rows, "error_ratio": ratio, "interval": (low, high)}
        options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
