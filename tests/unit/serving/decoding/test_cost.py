import io
import random

import pytest
from PIL import Image

from serving.bundle.image_structure import Structure, glance
from serving.decoding.cost import IMAGE_S, Cost, estimate_cost, estimate_decode_s


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
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0MM"}),
    ],
)
def test_sizes_are_those_that_pillow_finds(kind, options):
    structure = glance(encode(kind, **options))
    assert (structure.format, structure.width, structure.height) == (kind, 301, 203)


def test_a_few_bytes_of_many_pixels_cost_what_their_pixels_cost():
    assert estimate_decode_s(glance(encode("PNG", (7000, 7000)))) > 1
    assert estimate_decode_s(glance(encode("PNG", (32, 32)))) < 2 * IMAGE_S
    huge = bytearray(encode("PNG", (8, 8)))
    huge[16:24] = b"\x7f\xff\xff\xff" * 2
    assert estimate_decode_s(glance(bytes(huge))) < 10, "more is refused before it is decoded"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_damaged_headers_raise_nothing(kind):
    data, draw = encode(kind, (9, 9)), random.Random(kind)
    for length in range(60):
        assert estimate_decode_s(glance(data[:length])) >= IMAGE_S
    for _ in range(2000):
        changed = bytearray(data)
        for _ in range(3):
            changed[draw.randrange(min(200, len(data)))] = draw.randrange(256)
        assert estimate_decode_s(glance(bytes(changed))) >= IMAGE_S


@pytest.mark.parametrize("segments", [64, 100_000])
def test_a_jpeg_that_hides_its_size_counts_as_a_large_one(segments):
    jpeg = encode("JPEG", (8, 8))
    hidden = jpeg[:2] + b"\xff\xe0\0\2" * segments + jpeg[2:]
    structure = glance(hidden)
    assert (structure.format, structure.width, structure.height) == ("JPEG", 0, 0)
    assert estimate_decode_s(structure) > 0.5
    assert estimate_decode_s(glance(jpeg)) < 2 * IMAGE_S


@pytest.mark.parametrize(
    ("kind", "width", "height", "cost"),
    [
        ("JPEG", 200, 200, Cost.CHEAP),
        ("JPEG", 2304, 1728, Cost.ORDINARY),
        ("JPEG", 4032, 3024, Cost.ORDINARY),
        ("JPEG", 5000, 3000, Cost.LARGE),
        ("PNG", 2048, 2048, Cost.ORDINARY),
        ("PNG", 4032, 3024, Cost.LARGE),
        ("WEBP", 200, 200, Cost.ORDINARY),
        ("TIFF", 0, 0, Cost.LARGE),
        (None, 0, 0, Cost.LARGE),
    ],
)
def test_photographs_are_ordinary_and_what_hides_its_size_is_large(kind, width, height, cost):
    structure = Structure(kind, 9_000, width, height, parts=3, is_simple=True)
    assert estimate_cost(structure, 32) is cost


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\0", b"\0"])
def test_a_glance_reads_little_of_what_hides_a_size(filling):
    jpeg = encode("JPEG", (8, 8))
    hidden = glance(jpeg[:2] + filling * 9_000_000 + jpeg[2:])
    assert (hidden.width, hidden.height) == (0, 0)
    assert estimate_cost(hidden, 32) is Cost.LARGE
    assert estimate_cost(glance(jpeg[:2] + b"\xff" * 900 + jpeg[2:] + bytes(90_000)), 32) is Cost.ORDINARY
