"""Estimated time to decode an image, from its structure."""

from serving.image_structure import Structure
from serving.preprocess import MAX_PIXELS

# Seconds on one CPU core for each image, byte and pixel (1000x1500 noise and gradients, PNG and TIFF also 7000x7000). A
# JPEG of over a megapixel is decoded at a fraction of its size. Errors of some factor are corrected by measured pace.
IMAGE_S = 500e-6
BYTE_S = 40e-9
PIXEL_S = {"JPEG": 15e-9, "PNG": 80e-9, "WEBP": 50e-9, "GIF": 50e-9, "BMP": 100e-9, "TIFF": 20e-9}


def estimate_decode_s(structure: Structure) -> float:
    """Return the seconds that an image probably takes, the most of its format where it does not tell its size.

    Args:
        structure: As `serving.image_structure.glance` returns it.
    """
    pixels = min(structure.width * structure.height or MAX_PIXELS, MAX_PIXELS)
    return IMAGE_S + BYTE_S * structure.size_bytes + PIXEL_S.get(structure.format or "", 0.0) * pixels
