"""Packed crops: what random crops lose that are taken from packed squares instead of the original images.

    python -m benchmarks.packed_crops ZIP

Views of 64 pixels from images packed with 72, beside the same crops of images packed with 144: the ratios of views of
224 pixels from 256 and from photographs of 512. And how much of crops of the whole image lies outside of the square.

Shape suffixes: N = images, C = the three colour channels, H = height, W = width.
"""

import io
import json
import sys
import zipfile
from dataclasses import replace
from pathlib import PurePath

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from model_code.data.resampling import draw_crops, resize_crops, to_float
from model_code.data.view_settings import ViewSettings
from serving.bundle.preprocess import decode_picture

VIEW, PACKED, ORIGINAL = 64, 72, 144
SEEDS = (0, 1, 2)
LEVELS = 255
LAPLACIAN = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]


def measure_sharpness(views_NCHW: Tensor) -> Tensor:
    """Return the variance of the Laplacian of each grey view, [N]."""
    return F.conv2d(views_NCHW.mean(1, keepdim=True), LAPLACIAN).flatten(1).var(1)


def compare_views(images: dict[int, Tensor], seed: int) -> dict[str, float]:
    """Return how views of the same crops differ between the two packed sizes."""
    area = ViewSettings().crop_area
    generator = torch.Generator().manual_seed(seed)
    crops = draw_crops(len(images[PACKED]), PACKED, PACKED, generator, crop_area=area)
    twice = replace(
        crops,
        tops_N=2 * crops.tops_N,
        lefts_N=2 * crops.lefts_N,
        heights_N=2 * crops.heights_N,
        widths_N=2 * crops.widths_N,
    )
    small, large = (
        resize_crops(to_float(images[side]), part, VIEW) for side, part in ((PACKED, crops), (ORIGINAL, twice))
    )
    sharpness = measure_sharpness(small).median() / measure_sharpness(large).median()
    return {"levels": float((small - large).abs().mean()) * LEVELS, "sharpness": float(sharpness)}


def measure_outside(sizes: list[tuple[int, int]], seed: int) -> float:
    """Return the mean share of crops of the whole images that lies outside of the middle square."""
    generator, shares = torch.Generator().manual_seed(seed), []
    for width, height in sizes:
        one = draw_crops(1, height, width, generator, crop_area=ViewSettings().crop_area)
        inside = 1.0
        side = min(width, height)
        for whole, start_N, length_N in ((height, one.tops_N, one.heights_N), (width, one.lefts_N, one.widths_N)):
            first, start, length = (whole - side) // 2, int(start_N), int(length_N)
            inside *= max(0, min(start + length, first + side) - max(start, first)) / length
        shares.append(1 - inside)
    return float(np.mean(shares))


def main(file: str) -> None:
    """Print the figures, mean and standard deviation over the seeds of the crops, as JSON."""
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if PurePath(name).suffix == ".jpg" and name.startswith("test/")]
        data = [archive.read(name) for name in names]
    sizes = [Image.open(io.BytesIO(one)).size for one in data]
    images = {
        side: torch.from_numpy(np.stack([decode_picture(one, side) for one in data])) for side in (PACKED, ORIGINAL)
    }
    runs = [{**compare_views(images, seed), "outside": measure_outside(sizes, seed)} for seed in SEEDS]
    figures = {
        name: [np.mean(values), np.std(values, ddof=1)] for name in runs[0] if (values := [r[name] for r in runs])
    }
    square = float(np.mean([min(size) / max(size) for size in sizes]))
    print(json.dumps({"images": len(data), "seeds": len(SEEDS), "area of the square": square, **figures}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
