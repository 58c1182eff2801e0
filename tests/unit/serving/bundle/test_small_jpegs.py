"""Small JPEGs from libjpeg-turbo itself have the pixels of Pillow, and what it does not decode the errors of Pillow."""

import random
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFilter

from serving.bundle import preprocess
from serving.bundle.preprocess import FORMATS, MAX_PIXELS, decode_picture
from serving.errors import NotAnImageError, ServingError, TooLargeError
from tests.unit.serving.tiny_bundle import encode

SIZES = [(1, 1), (8, 8), (33, 47), (64, 17), (250, 100)]


def draw(size=(33, 47), mode="RGB"):
    width, height = size
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1)).convert(mode)


def turn(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def add_second_image(size):
    return encode(draw(size), "MPO", save_all=True, append_images=[draw((8, 8))])


FAST = {
    **{f"4:{name}": {"subsampling": name} for name in ("4:4:4", "4:2:2", "4:2:0")},
    "progressive": {"progressive": True},
    "progressive and subsampled": {"progressive": True, "subsampling": "4:2:0"},
    "coarse": {"quality": 5},
    "finest": {"quality": 100},
    "restarts": {"restart_marker_rows": 1},
    "comment": {"comment": b"a comment"},
}
SLOW = {
    "rotated": {"exif": turn(6)},
    "upright": {"exif": turn(1)},
    "profile": {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()},
    "RGB": {"keep_rgb": True},
}


def is_fast(data):
    return preprocess._measure_plain_jpeg(data, 32, MAX_PIXELS, FORMATS) is not None


def decode(data, size=24, resize_size=32):
    try:
        return decode_picture(data, size, resize_size)
    except ServingError as error:
        return type(error), str(error)


def check(data, monkeypatch):
    """Compare with Pillow, with and without resizing."""
    for sizes in ((24, 32), (8, 8), (17, 17)):
        found = decode(data, *sizes)
        with monkeypatch.context() as patch:
            patch.setattr(preprocess, "simplejpeg", None)
            expected = decode(data, *sizes)
        assert isinstance(found, tuple) == isinstance(expected, tuple)
        assert found == expected if isinstance(found, tuple) else np.array_equal(found, expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_pixels_are_those_of_pillow(size, kind, mode, monkeypatch):
    data = encode(draw(size, mode), "JPEG", **FAST[kind])
    assert is_fast(data) == (max(size) <= 8 * min(size))
    check(data, monkeypatch)


@pytest.mark.parametrize("kind", SLOW)
def test_pillow_decodes_what_has_metadata_or_other_colours(kind, monkeypatch):
    data = encode(draw(), "JPEG", **SLOW[kind])
    assert not is_fast(data)
    check(data, monkeypatch)


@pytest.mark.parametrize(
    "data",
    [
        encode(draw(mode="CMYK"), "JPEG"),
        add_second_image((33, 47)),
        encode(draw(), "PNG"),
        encode(draw((300, 300)), "JPEG"),
        encode(draw(), "JPEG")[:-2],
        encode(draw(), "JPEG")[:-200],
        b"\xff\xd8\xff",
    ],
    ids=["CMYK", "MPO", "PNG", "large", "without its end", "truncated", "start"],
)
def test_pillow_decodes_all_else(data, monkeypatch):
    assert not is_fast(data)
    check(data, monkeypatch)


def test_damaged_files_have_the_answer_of_pillow(monkeypatch):
    chance, fast = random.Random(0), 0
    whole = [encode(draw(), "JPEG", **options) for options in FAST.values()]
    for _ in range(600):
        data = bytearray(chance.choice(whole))
        for _ in range(chance.choice((1, 1, 3))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        fast += is_fast(bytes(data))
        check(bytes(data), monkeypatch)
    assert fast > 60


def test_limits_come_first(monkeypatch):
    data = encode(draw(), "JPEG")
    assert is_fast(data)
    with pytest.raises(TooLargeError):
        decode_picture(data, 24, max_pixels=1000)
    with pytest.raises(NotAnImageError):
        decode_picture(data, 24, formats=("PNG",))
    taken = []
    decode_picture(data, 24, take_pixels=taken.append)
    assert taken == [33 * 47]
    taken.clear()
    with suppress(NotAnImageError):
        decode_picture(data[:-300] + bytes(298) + data[-2:], 24, take_pixels=taken.append)
    assert taken == [33 * 47]

    def refuse(_):
        raise TooLargeError("too many together")

    monkeypatch.setattr(preprocess.simplejpeg, "decode_jpeg", lambda *_: pytest.fail("decoded before it was allowed"))
    with pytest.raises(TooLargeError, match="together"):
        decode_picture(data, 24, take_pixels=refuse)
