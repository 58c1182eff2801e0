"""Drift scores and estimated accuracies of real images: `python -m benchmarks.drift --home HOME --zip FILE`.

HOME holds a release with calibration, FILE class folders `test/<class>/<image>` of what it was tested on. Several
samples of each kind are scored, as the service would score its last 1,000 predictions.

Shape suffixes: N = images, H = height, W = width, C = colour channels.
"""

import argparse
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table

from serving.bundle.store import read_champion
from serving.models.classifier import Classifier
from serving.models.model_set import find_bundles_dir
from serving.observation.drift import WINDOW_PREDICTIONS, DriftWindow

BATCH = 64

Spoil = Callable[[Image.Image, np.random.Generator], Image.Image]


def add_noise(image: Image.Image, draw: np.random.Generator, sigma: float) -> Image.Image:
    """Return the image with Gaussian noise of `sigma` grey levels of 256."""
    pixels_HWC = np.asarray(image, dtype=np.float32)
    noisy_HWC = pixels_HWC + draw.normal(0, sigma, pixels_HWC.shape)
    return Image.fromarray(noisy_HWC.clip(0, 255).astype(np.uint8))


def darken(image: Image.Image, factor: float) -> Image.Image:
    """Return the image with every level multiplied."""
    return image.point(lambda level: int(level * factor))


SPOILT: dict[str, Spoil] = {
    "as they are": lambda image, _: image,
    "blurred, radius 0.5 pixels": lambda image, _: image.filter(ImageFilter.GaussianBlur(0.5)),
    "blurred, radius 1 pixel": lambda image, _: image.filter(ImageFilter.GaussianBlur(1)),
    "blurred, radius 2 pixels": lambda image, _: image.filter(ImageFilter.GaussianBlur(2)),
    "noise, sigma 10 of 256": lambda image, draw: add_noise(image, draw, 10),
    "noise, sigma 20 of 256": lambda image, draw: add_noise(image, draw, 20),
    "noise, sigma 40 of 256": lambda image, draw: add_noise(image, draw, 40),
    "darkened to 0.5": lambda image, _: darken(image, 0.5),
    "darkened to 0.25": lambda image, _: darken(image, 0.25),
    "grey": lambda image, _: image.convert("L").convert("RGB"),
    "upside down": lambda image, _: image.transpose(Image.Transpose.ROTATE_180),
}


def main() -> None:
    """Measure every kind, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="DARKROOM_HOME with the release")
    parser.add_argument("--zip", type=Path, required=True, help="test images in class folders")
    parser.add_argument("--name", default="cifar10")
    parser.add_argument("--samples", type=int, default=20, help=f"of {WINDOW_PREDICTIONS} images each; default 20")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    bundles_dir = find_bundles_dir(options.home)
    pointer, folder, manifest = read_champion(bundles_dir, options.name)
    classifier = Classifier(folder, pointer.version)
    if manifest.calibration is None:
        parser.error(f"{options.name} has no calibration")
    reference = manifest.calibration.reliability[-1]
    records = []
    for kind, spoil in SPOILT.items():
        probabilities_N, accuracy = classify(options.zip, classifier, spoil)
        scores, estimates = [], []
        for seed in range(options.samples):
            window = DriftWindow(reference)
            for probability in np.random.default_rng(seed).choice(probabilities_N, WINDOW_PREDICTIONS, replace=False):
                window.add(float(probability))
            scores.append(window.score)
            assert window.accuracy is not None, "the window is full"
            estimates.append(window.accuracy.accuracy_fraction)
        records.append({"images": kind, "accuracy": accuracy, "estimated_accuracies": estimates, "scores": scores})
    table = Table("images", "accuracy", "estimated", "mean score", "lowest", "highest")
    for record in records:
        scores_S = np.array(record["scores"], dtype=float)
        figures = (f"{value:.3f}" for value in (scores_S.mean(), scores_S.min(), scores_S.max()))
        estimated = np.mean(np.array(record["estimated_accuracies"], dtype=float))
        table.add_row(str(record["images"]), f"{record['accuracy']:.3f}", f"{estimated:.3f}", *figures)
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


def classify(file: Path, classifier: Classifier, spoil: Spoil) -> tuple[npt.NDArray[np.float32], float]:
    """Return the largest probability of each image of a zip, float32 [N], and the share of right labels."""
    draw = np.random.default_rng(0)
    images, labels = [], []
    with zipfile.ZipFile(file) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith("/"):
                continue
            image = Image.open(archive.open(name)).convert("RGB")
            images.append(np.asarray(spoil(image, draw)))
            labels.append(classifier.manifest.classes.index(Path(name).parent.name))
    images_NHWC = np.stack(images)
    parts = [classifier.classify(images_NHWC[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    probabilities_NK = np.concatenate(parts)
    return probabilities_NK.max(axis=1), float((probabilities_NK.argmax(axis=1) == labels).mean())


if __name__ == "__main__":
    main()
