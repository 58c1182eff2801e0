"""Estimated cost of decoding an image, from its structure."""

from enum import IntEnum

from serving.bundle.image_structure import Structure, is_cheap
from serving.bundle.preprocess import MAX_PIXELS
from serving.limits import ORDINARY_JPEG_PIXELS, ORDINARY_PIXELS

# Seconds on one CPU core for each image, byte and pixel (1000x1500 noise and gradients, PNG and TIFF also 7000x7000). A
# JPEG of over a megapixel is decoded at a fraction of its size. Errors of some factor are corrected by measured pace.
IMAGE_S = 500e-6
BYTE_S = 40e-9
PIXEL_S = {"JPEG": 15e-9, "PNG": 80e-9, "WEBP": 50e-9, "GIF": 50e-9, "BMP": 100e-9, "TIFF": 20e-9}


class Cost(IntEnum):
    """Kinds of images that do not wait for those of another kind, by ascending cost.

    Attributes:
        CHEAP: A small JPEG or PNG, proven to decode within milliseconds.
        ORDINARY: An image of at most the size of a photograph.
        LARGE: Any other, also one whose size is not known.
    """

    CHEAP = 0
    ORDINARY = 1
    LARGE = 2


def estimate_cost(structure: Structure, resize_size: int) -> Cost:
    """Return the kind of an image.

    Args:
        structure: Result of `serving.bundle.image_structure.glance`.
        resize_size: Short side that it is resized to, pixels.
    """
    if is_cheap(structure, resize_size):
        return Cost.CHEAP
    is_ordinary = 0 < structure.width * structure.height <= limit_ordinary_pixels(structure)
    return Cost.ORDINARY if is_ordinary else Cost.LARGE


def limit_ordinary_pixels(structure: Structure) -> int:
    """Return the most pixels of an image of that format that is not large."""
    return ORDINARY_JPEG_PIXELS if structure.format == "JPEG" else ORDINARY_PIXELS


def estimate_decode_s(structure: Structure) -> float:
    """Return the seconds that an image probably takes, the most of its format where it does not tell its size.

    Args:
        structure: Result of `serving.bundle.image_structure.glance`.
    """
    pixels = min(structure.width * structure.height or MAX_PIXELS, MAX_PIXELS)
    return IMAGE_S + BYTE_S * structure.size_bytes + PIXEL_S.get(structure.format or "", 0.0) * pixels
