import numpy as np
import pytest
from PIL import Image

from serving.bundle import preprocess
from serving.bundle.preprocess import decode_picture
from serving.errors import NotAnImageError, TooLargeError
from tests.unit.serving.tiny_bundle import encode, paint, paint_bomb


def make_gradient(width=8, height=8):
    pixels = np.arange(width * height * 3, dtype=np.uint32).reshape(height, width, 3) % 256
    return Image.fromarray(pixels.astype(np.uint8))


def test_an_image_of_the_right_size_is_not_resampled():
    gradient = make_gradient()
    decoded = decode_picture(encode(gradient), 8)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, np.asarray(gradient))


@pytest.mark.parametrize("kind", list(preprocess.FORMATS))
def test_every_format_decodes_to_its_colour(kind):
    decoded = decode_picture(paint("red", (40, 30), kind), 16, 20)
    assert decoded.shape == (16, 16, 3)
    assert np.abs(decoded.astype(int) - (255, 0, 0)).max() <= 3


def test_the_centre_of_a_wide_image_is_kept():
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste((0, 0, 255), (10, 0, 20, 10))
    assert (decode_picture(encode(wide), 10) == (0, 0, 255)).all()


def test_the_short_side_is_resized_before_the_crop():
    decoded = decode_picture(encode(make_gradient(64, 32)), 8, 16)
    expected = make_gradient(64, 32).resize((32, 16), Image.Resampling.BICUBIC).crop((12, 4, 20, 12))
    assert np.array_equal(decoded, np.asarray(expected))


def test_exif_orientation_turns_the_image_upright():
    image = Image.new("RGB", (8, 8), "red")
    image.paste((0, 0, 255), (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3
    decoded = decode_picture(encode(image, "PNG", exif=exif), 8)
    assert decoded[0, 0].tolist() == [255, 0, 0]
    assert decoded[7, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("LA", (8, 8), (0, 0)), (255, 255, 255)),
        (Image.new("L", (8, 8), 77), (77, 77, 77)),
        (Image.new("1", (8, 8), 1), (255, 255, 255)),
    ],
)
def test_other_modes_become_rgb(image, expected):
    assert (decode_picture(encode(image), 8) == expected).all()


def test_the_first_frame_of_an_animation_is_used():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_picture(data, 8) == (255, 0, 0)).all()


@pytest.mark.parametrize(
    "data",
    [b"", b"GIF89a", b"not an image at all", b"<svg/>", paint(kind="JPEG")[:200], paint()[:50]],
    ids=["empty", "head only", "text", "svg", "cut jpeg", "cut png"],
)
def test_what_is_not_a_picture_is_refused(data):
    with pytest.raises(NotAnImageError):
        decode_picture(data, 8)


@pytest.mark.parametrize("size", [(10_000, 5_001), (12_000, 8_000), (60_000, 60_000)])
def test_too_many_pixels_are_refused_before_decoding(size):
    with pytest.raises(TooLargeError):
        decode_picture(paint_bomb(*size), 8)


def test_a_long_thin_image_is_refused_before_it_grows():
    with pytest.raises(TooLargeError, match="too long and thin"):
        decode_picture(encode(Image.new("L", (1, 60_000))), 224, 256)


def test_a_panorama_is_accepted():
    assert decode_picture(encode(Image.new("L", (20, 2000))), 32, 36).shape == (32, 32, 3)


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "CMYK", "I;16", "1"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_conversion_in_bands_changes_nothing(monkeypatch, mode, orientation):
    generator = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    if mode == "I;16":
        image = Image.fromarray(generator.integers(0, 65_536, (61, 83), dtype=np.uint16))
    else:
        image = Image.fromarray(generator.integers(0, 256, (61, 83, 4), dtype=np.uint8))
        image = image.convert("RGB").quantize(32) if mode == "P" else image.convert(mode)
    options = {"transparency": 3} if mode == "P" else {}
    data = encode(image, "TIFF" if mode == "CMYK" else "PNG", exif=exif, **options)
    whole = decode_picture(data, 32, 36)
    monkeypatch.setattr(preprocess, "_BAND_PIXELS", 1_000)
    assert np.array_equal(decode_picture(data, 32, 36), whole)


def draw_scene(width, height):
    """Smooth colours with some noise, as a photograph has."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(coarse).astype(np.int16) + generator.integers(-8, 9, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(monkeypatch):
    data = encode(draw_scene(2400, 1800), "JPEG", quality=92)
    sizes = []
    as_rgb = preprocess._as_rgb
    monkeypatch.setattr(
        preprocess, "_as_rgb", lambda opened, *rest: (sizes.append(opened.size), as_rgb(opened, *rest))[1]
    )
    small = decode_picture(data, 224, 256)
    monkeypatch.setattr(preprocess, "LARGE_PIXELS", 10**9)
    whole = decode_picture(data, 224, 256)
    assert sizes == [(800, 600), (2400, 1800)] or sizes == [(1200, 900), (2400, 1800)]
    assert np.abs(small.astype(int) - whole).mean() < 1.0


def test_a_large_jpeg_that_is_turned_and_thin_keeps_its_shape(monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(draw_scene(3000, 700), "JPEG", quality=92, exif=exif)
    small = decode_picture(data, 32)
    monkeypatch.setattr(preprocess, "LARGE_PIXELS", 10**9)
    assert np.abs(small.astype(int) - decode_picture(data, 32)).mean() < 1.0


def test_a_jpeg_of_under_a_megapixel_is_decoded_whole(monkeypatch):
    data = encode(draw_scene(900, 800), "JPEG", quality=92)
    decoded = decode_picture(data, 32)
    monkeypatch.setattr(preprocess, "LARGE_PIXELS", 10**9)
    assert np.array_equal(decoded, decode_picture(data, 32))


def test_sixteen_bits_are_shades_and_not_white():
    shades = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    eight = decode_picture(encode(Image.fromarray(shades)), 8)
    sixteen = decode_picture(encode(Image.fromarray(shades.astype(np.uint16) * 257)), 8)
    assert np.array_equal(sixteen, eight)
    assert np.array_equal(eight[:, :, 0], shades)


def test_a_bomb_is_refused_with_our_own_limit():
    with pytest.raises(TooLargeError, match=r"^the image has more than 50,000,000 pixels; no more are decoded"):
        decode_picture(paint_bomb(60_000, 60_000), 8)
