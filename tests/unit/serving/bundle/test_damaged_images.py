"""Damaged images never end in anything but the two errors that the service answers."""

import io
import random
import struct

import numpy as np
import pytest
from PIL import Image

from serving.bundle.preprocess import decode_picture
from serving.errors import NotAnImageError, TooLargeError


def encode(kind, orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "maker"
    exif[0x829A] = (1, 3)
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
def test_flipped_bytes(kind):
    content, rng = encode(kind) if kind not in {"GIF", "BMP", "PPM"} else encode_plain(kind), random.Random(0)
    outcomes = set()
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(rng.randrange(1, 6)):
            # Mostly near the start, where headers and tags are.
            place = rng.randrange(min(len(damaged), 200) if rng.random() < 0.7 else len(damaged))
            damaged[place] = rng.randrange(256)
        try:
            assert decode_picture(bytes(damaged), 8).shape == (8, 8, 3)
            outcomes.add("picture")
        except (NotAnImageError, TooLargeError) as error:
            outcomes.add(type(error).__name__)
    assert "NotAnImageError" in outcomes


def encode_plain(kind):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def test_damaged_tags_do_not_matter():
    content = encode("JPEG")
    tag = struct.pack(">H", 0x829A) if b"MM\x00*" in content else struct.pack("<H", 0x829A)
    assert tag in content
    damaged = content.replace(tag, tag[:1] + b"\xff", 1)
    assert decode_picture(damaged, 8).shape == (8, 8, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation):
    from PIL import ImageOps

    content = encode("PNG", orientation)
    with Image.open(io.BytesIO(content)) as opened:
        expected = np.asarray(ImageOps.fit(ImageOps.exif_transpose(opened), (24, 24)))
    ours = decode_picture(content, 24)
    assert np.array_equal(ours, expected)


def test_pixels_are_told_before_they_are_decoded():
    told = []
    decode_picture(encode("JPEG"), 8, take_pixels=told.append)
    assert told == [24 * 32]

    def refuse(pixels):
        raise TooLargeError(f"{pixels} pixels")

    with pytest.raises(TooLargeError, match="768 pixels"):
        decode_picture(encode("JPEG"), 8, take_pixels=refuse)
