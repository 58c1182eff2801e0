import io
import random

import pytest
from PIL import Image

from serving.decode_cost import IMAGE_S, estimate_decode_s, read_size


def encode(kind, size=(301, 203), **options):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0", "comment": b"x" * 60_000}),
        ("GIF", {}),
        ("BMP", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0MM"}),
    ],
)
def test_sizes_are_those_that_pillow_finds(kind, options):
    assert read_size(encode(kind, **options)) == (kind, 301, 203)


def test_a_few_bytes_of_many_pixels_cost_what_their_pixels_cost():
    assert estimate_decode_s(encode("PNG", (7000, 7000))) > 1
    assert estimate_decode_s(encode("PNG", (32, 32))) < 2 * IMAGE_S
    huge = bytearray(encode("PNG", (8, 8)))
    huge[16:24] = b"\x7f\xff\xff\xff" * 2
    assert estimate_decode_s(bytes(huge)) < 10, "more is refused before it is decoded"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_damaged_headers_raise_nothing(kind):
    data, draw = encode(kind, (9, 9)), random.Random(kind)
    for length in range(60):
        assert estimate_decode_s(data[:length]) >= IMAGE_S
    for _ in range(2000):
        changed = bytearray(data)
        for _ in range(3):
            changed[draw.randrange(min(200, len(data)))] = draw.randrange(256)
        assert estimate_decode_s(bytes(changed)) >= IMAGE_S


def test_a_jpeg_of_endless_segments_is_given_up():
    assert read_size(b"\xff\xd8" + b"\xff\xe0\0\2" * 100_000) == ("JPEG", 0, 0)
