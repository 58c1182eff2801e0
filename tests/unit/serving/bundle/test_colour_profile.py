"""Embedded colour profiles."""

import io
import random
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageCms

from serving.bundle.image_structure import glance, is_cheap
from serving.bundle.preprocess import decode_picture
from serving.decoding.pool import DecoderPool
from serving.errors import NotAnImageError, TooLargeError
from tests.unit.serving.icc_profiles import SRGB_PRIMARIES, WIDE_PRIMARIES, make_grey_profile, make_rgb_profile

WIDE = make_rgb_profile(WIDE_PRIMARIES, 1.8)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(colour, mode="RGB", kind="PNG", **options):
    """Return the colour that one becomes."""
    return decode_picture(encode(Image.new(mode, (40, 30), colour), kind, **options), 8)[4, 4].tolist()


def to_linear(samples):
    """Return the light of sRGB samples, IEC 61966-2-1."""
    values = np.asarray(samples) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True}), ("TIFF", {})]
)
def test_colours_of_a_wide_gamut_are_those_of_srgb(kind, options):
    """The light is that of the file: primaries times linear samples, the part outside of sRGB cut off."""
    found = decode((120, 140, 110), kind=kind, icc_profile=WIDE, **options)
    light_XYZ = np.array(WIDE_PRIMARIES).T @ (np.array([120, 140, 110]) / 255) ** 1.8
    expected = np.linalg.solve(np.array(SRGB_PRIMARIES).T, light_XYZ)
    assert to_linear(found) == pytest.approx(expected, abs=0.02)
    assert found != [120, 140, 110]


@pytest.mark.parametrize("gamma", [1.0, 1.8])
def test_grey_follows_its_curve(gamma):
    found = decode(100, mode="L", icc_profile=make_grey_profile(gamma))
    assert to_linear(found) == pytest.approx([(100 / 255) ** gamma] * 3, abs=0.01)


def test_palettes_and_transparency_are_converted_too():
    expected = decode((120, 140, 110), icc_profile=WIDE)
    assert decode((120, 140, 110, 255), mode="RGBA", icc_profile=WIDE) == expected
    palette = Image.new("RGB", (40, 30), (120, 140, 110)).quantize(4)
    assert decode_picture(encode(palette, icc_profile=WIDE), 8)[4, 4].tolist() == expected


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        make_rgb_profile(WIDE_PRIMARIES, 1.8, "sRGB IEC61966-2.1"),
        make_grey_profile(1.0),
        b"",
        b"no profile at all",
        WIDE[:200],
    ],
    ids=["sRGB", "named sRGB", "of another model", "empty", "garbage", "cut off"],
)
def test_other_profiles_change_nothing(profile):
    assert decode((120, 140, 110), icc_profile=profile) == [120, 140, 110]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_with_a_profile_is_decoded_in_a_process_of_its_own(kind):
    image = Image.new("RGB", (32, 32), "red")
    assert is_cheap(glance(encode(image, kind)), 32)
    assert not is_cheap(glance(encode(image, kind, icc_profile=WIDE)), 32)


def test_damaged_profiles_never_end_the_process():
    generator = random.Random(0)
    pool = DecoderPool(1)
    try:
        pids = set(pool.pids)
        for _ in range(300):
            profile = bytearray(WIDE)
            for _ in range(generator.randrange(1, 6)):
                profile[generator.randrange(len(profile))] = generator.randrange(256)
            data = encode(Image.new("RGB", (32, 32), (120, 140, 110)), icc_profile=bytes(profile))
            with suppress(NotAnImageError, TooLargeError):
                assert pool.decode(data, 32, 32, lambda _: None).shape == (32, 32, 3)
        assert set(pool.pids) == pids
    finally:
        pool.close()
