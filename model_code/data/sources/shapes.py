"""Drawn images for trials and tests: ten shapes that no download is needed for.

Every image has one shape at a random place, size, angle and colour over a noisy, uneven background crossed
by lines. Place, angle and the sign of the contrast are random, so single pixels say little and a classifier
has to find the outline.

Shape suffixes: N = images, H = height, W = width, C = the three colour channels, red first, P = outline
points.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from model_code.data.sources.images import ImageSource, PixelSplit
from model_code.data.sources.layout import DATASETS, KnownDataset
from model_code.errors import UsageError

# Raised whenever an image comes out differently, so that packed sets are made anew.
DRAWING_VERSION = 1
TRAIN_PER_CLASS = 300
TEST_PER_CLASS = 100
SEED = 20150
_SUPERSAMPLING = 4
_MIN_CONTRAST = 70.0
_LUMA_C = np.array([0.299, 0.587, 0.114])

Points = npt.NDArray[np.float64]


def generate_shapes(
    image_size: int = 32,
    train_per_class: int = TRAIN_PER_CLASS,
    test_per_class: int = TEST_PER_CLASS,
    seed: int = SEED,
) -> ImageSource:
    """Draw the set; the same arguments give the same pixels.

    Args:
        image_size: Height and width, pixels, 16 to 256.
        train_per_class: Training images per class, at least 1.
        test_per_class: Test images per class, at least 1.
        seed: Start of the random numbers; train and test never share any.

    Returns:
        The source: train and test as uint8 [N, image_size, image_size, 3], classes in turn.

    Raises:
        UsageError: A size or count is out of range.
    """
    if not 16 <= image_size <= 256:
        raise UsageError(f"image size {image_size} of shapes is not allowed; 16 to 256 pixels are")
    if train_per_class < 1 or test_per_class < 1:
        raise UsageError(f"{train_per_class} train and {test_per_class} test images per class; at least 1 is needed")
    splits = {}
    for stream, (split, per_class) in enumerate((("train", train_per_class), ("test", test_per_class))):
        generator = np.random.Generator(np.random.PCG64([seed, stream]))
        labels_N = np.tile(np.arange(len(SHAPE_CLASSES), dtype=np.int64), per_class)
        images_NHWC = np.stack([_draw_image(SHAPE_CLASSES[label], image_size, generator) for label in labels_N])
        splits[split] = PixelSplit(images_NHWC, labels_N)
    return ImageSource("drawn by Darkroom", SHAPE_CLASSES, splits)


def _draw_image(shape: str, image_size: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    size = image_size * _SUPERSAMPLING
    background_C, foreground_C = _choose_colours(generator)
    image = _draw_background(background_C, image_size, generator).resize((size, size), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    _draw_lines(draw, size, generator)
    mask = _draw_mask(shape, size, generator)
    texture_HW = generator.normal(0.0, 10.0, (image_size, image_size, 1))
    surface_HWC = np.clip(foreground_C + texture_HW, 0, 255).astype(np.uint8)
    image.paste(Image.fromarray(surface_HWC).resize((size, size), Image.Resampling.NEAREST), (0, 0), mask)
    small_HWC = np.asarray(image.resize((image_size, image_size), Image.Resampling.BOX), dtype=np.float64)
    noise_HWC = generator.normal(0.0, generator.uniform(4.0, 14.0), small_HWC.shape)
    return np.clip(np.rint(small_HWC + noise_HWC), 0, 255).astype(np.uint8)


def _choose_colours(generator: np.random.Generator) -> tuple[Points, Points]:
    """Return two colours whose brightness differs enough to see the outline; either may be brighter."""
    while True:
        background_C, foreground_C = generator.uniform(15, 240, (2, 3))
        if abs(float((background_C - foreground_C) @ _LUMA_C)) >= _MIN_CONTRAST:
            return background_C, foreground_C


def _draw_background(colour_C: Points, image_size: int, generator: np.random.Generator) -> Image.Image:
    """Return an uneven surface: blotches of a few pixels and a slope of brightness across the image."""
    blotches = Image.fromarray(generator.uniform(0, 255, (5, 5)).astype(np.uint8))
    blotches_HW1 = np.asarray(blotches.resize((image_size, image_size), Image.Resampling.BICUBIC), dtype=np.float64)[
        :, :, None
    ]
    ramp = np.linspace(-1.0, 1.0, image_size)
    slope_x, slope_y = generator.uniform(-18, 18, 2)
    slope_HW1 = (slope_x * ramp[None, :] + slope_y * ramp[:, None])[:, :, None]
    strength = generator.uniform(0.08, 0.24)
    surface_HWC = colour_C + strength * (blotches_HW1 - 127.5) + slope_HW1
    return Image.fromarray(np.clip(surface_HWC, 0, 255).astype(np.uint8))


def _draw_lines(draw: ImageDraw.ImageDraw, size: int, generator: np.random.Generator) -> None:
    for _ in range(int(generator.integers(1, 4))):
        x0, y0, x1, y1 = (int(value) for value in generator.integers(0, size, 4))
        red, green, blue = (int(value) for value in generator.integers(15, 240, 3))
        draw.line((x0, y0, x1, y1), fill=(red, green, blue), width=int(generator.integers(2, 6)) * size // 128)


def _draw_mask(shape: str, size: int, generator: np.random.Generator) -> Image.Image:
    radius = generator.uniform(0.27, 0.42) * size
    angle = generator.uniform(0, 2 * np.pi)
    centre_xy = generator.uniform(0.95 * radius, size - 0.95 * radius, 2)
    cosine, sine = np.cos(angle), np.sin(angle)
    rotation = np.array([[cosine, sine], [-sine, cosine]])
    mask = Image.new("L", (size, size))
    draw = ImageDraw.Draw(mask)
    for fill, outline_P2 in _OUTLINES[shape]():
        points_P2 = np.rint(outline_P2 @ rotation * radius + centre_xy).astype(int)
        draw.polygon([(int(x), int(y)) for x, y in points_P2], fill=fill)
    return mask


def _arc(radius: float = 1.0, x: float = 0.0, y: float = 0.0) -> Points:
    turns = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([x + radius * np.cos(turns), y + radius * np.sin(turns)], axis=1)


def _corners(count: int, radii: tuple[float, ...] = (1.0,)) -> Points:
    turns = np.arange(count) * 2 * np.pi / count
    radius = np.resize(np.array(radii), count)
    return np.stack([radius * np.cos(turns), radius * np.sin(turns)], axis=1)


def _box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _heart() -> Points:
    turns = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(turns) ** 3
    y = 13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns)
    return np.stack([x / 16, (y + 2) / 16], axis=1)


# Layers drawn one over the other, 255 = shape and 0 = hole, in a circle of radius 1.
_OUTLINES: dict[str, Callable[[], list[tuple[int, Points]]]] = {
    "arrow": lambda: [
        (255, _box(-1.0, -0.2, 0.2, 0.2)),
        (255, np.array([(0.1, -0.75), (1.0, 0.0), (0.1, 0.75)])),
    ],
    "circle": lambda: [(255, _arc(0.9))],
    "crescent": lambda: [(255, _arc(1.0)), (0, _arc(0.85, 0.5))],
    "cross": lambda: [(255, _box(-1.0, -0.27, 1.0, 0.27)), (255, _box(-0.27, -1.0, 0.27, 1.0))],
    "heart": lambda: [(255, _heart())],
    "ring": lambda: [(255, _arc(1.0)), (0, _arc(0.55))],
    "square": lambda: [(255, _corners(4))],
    "star": lambda: [(255, _corners(10, (1.05, 0.42)))],
    "stripes": lambda: [(255, _box(-0.9, y - 0.16, 0.9, y + 0.16)) for y in (-0.7, 0.0, 0.7)],
    "triangle": lambda: [(255, _corners(3))],
}
SHAPE_CLASSES = tuple(_OUTLINES)
DATASETS["shapes"] = KnownDataset(
    image_size=32,
    draw=generate_shapes,
    version=DRAWING_VERSION,
    counts={"train": TRAIN_PER_CLASS * len(SHAPE_CLASSES), "test": TEST_PER_CLASS * len(SHAPE_CLASSES)},
)
