"""Files whose pixels are all there are decoded, however they end and whatever texts they carry."""

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from serving.bundle.preprocess import decode_picture
from serving.errors import NotAnImageError
from tests.unit.serving.tiny_bundle import encode


def make_noise(width=96, height=64):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}])
@pytest.mark.parametrize("lost_bytes", [1, 2, 3])
def test_a_jpeg_without_its_end(options, lost_bytes):
    whole = encode(make_noise(), "JPEG", **options)
    decoded = decode_picture(whole[:-lost_bytes], 32)
    assert np.abs(decoded.astype(int) - decode_picture(whole, 32)).mean() < 0.5


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("kept", [0.5, 0.8, 0.9])
def test_a_jpeg_that_is_cut_is_refused(options, kept):
    whole = encode(make_noise(), "JPEG", **options)
    with pytest.raises(NotAnImageError, match="truncated"):
        decode_picture(whole[: int(len(whole) * kept)], 32)


@pytest.mark.parametrize("is_compressed", [True, False])
def test_a_png_with_long_texts(is_compressed):
    texts = PngImagePlugin.PngInfo()
    for number in range(2 if is_compressed else 70):
        texts.add_text(f"workflow{number}", "x" * 2_000_000 if is_compressed else "x" * 1_000_000, zip=is_compressed)
    image = make_noise()
    decoded = decode_picture(encode(image, "PNG", pnginfo=texts), 32)
    assert np.array_equal(decoded, decode_picture(encode(image), 32))


def test_a_second_image_in_a_jpeg_does_not_matter():
    first = make_noise(1300, 900)
    data = encode(first, "MPO", save_all=True, append_images=[Image.new("RGB", (64, 64), "red")])
    assert np.array_equal(decode_picture(data, 32), decode_picture(encode(first, "JPEG"), 32))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"8BPS\0\1", "Photoshop"),
        (b"<svg xmlns=''/>", "SVG"),
        (b"<!DOCTYPE html>", "HTML"),
    ],
)
def test_formats_that_are_not_read_are_named(data, name):
    with pytest.raises(NotAnImageError, match=f"format {name}, not read"):
        decode_picture(data, 8)


def test_a_transparent_colour_is_white():
    image = Image.new("RGB", (8, 8), (200, 40, 40))
    assert (decode_picture(encode(image, transparency=(200, 40, 40)), 8) == 255).all()
    assert (decode_picture(encode(image, transparency=(1, 2, 3)), 8) == (200, 40, 40)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_is_turned_once(orientation, compression):
    image = make_noise(24, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_picture(encode(image, "TIFF", exif=exif, compression=compression), 16)
    assert np.array_equal(decoded, decode_picture(encode(image, "PNG", exif=exif), 16))
