"""Samples of more than 8 bits are scaled by the range that the file states, or refused by name."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from serving.bundle.preprocess import decode_picture
from serving.errors import NotAnImageError
from tests.unit.serving.tiny_bundle import encode

MIN, MAX, SMIN, SMAX = 280, 281, 340, 341
FLOAT, SIGNED = 3, 2


def write_tiff(samples, bits=None, *, form=1, photometric=1, channels=1, **more):
    """Return a little-endian TIFF of 8x8 equal samples; `more` maps tag names to 32-bit integers."""
    array = np.asarray(samples)
    data = array.tobytes() if bits is None else array
    data = bytes(data) if not isinstance(data, bytes) else data
    bits = bits or array.dtype.itemsize * 8
    tags = {256: 8, 257: 8, 259: 1, 262: photometric, 273: 0, 277: channels, 278: 8, 279: len(data), 339: form}
    tags |= {globals()[name]: value for name, value in more.items()}
    tags = dict(sorted((tags | {258: bits}).items()))
    start = 8 + 2 + 12 * len(tags) + 4
    tags[273] = start
    entries = b"".join(
        struct.pack(
            "<HHI", tag, 11 if isinstance(value, float) else 4 if tag in (257, 273, 279) or value > 65_535 else 3, 1
        )
        + struct.pack("<f" if isinstance(value, float) else "<I", value)
        for tag, value in tags.items()
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def full(value, dtype):
    return np.full((8, 8), value, dtype)


def pack_12_bits(value):
    return (value << 12 | value).to_bytes(3, "big") * 32


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (write_tiff(full(0.5, "<f4"), form=FLOAT), 128),
        (write_tiff(full(1.0, "<f4"), form=FLOAT), 255),
        (write_tiff(full(0.0, "<f4"), form=FLOAT), 0),
        (write_tiff(full(0.25, "<f4"), form=FLOAT, photometric=0), 191),
        (write_tiff(full(50.0, "<f4"), form=FLOAT, SMIN=0.0, SMAX=100.0), 128),
        (write_tiff(pack_12_bits(3000), 12), 187),
        (write_tiff(full(3000, "<u2"), MAX=4095), 187),
        (write_tiff(full(300, "<u2"), MAX=1023), 75),
        (write_tiff(full(48_000, "<u2")), 187),
        (write_tiff(full(48_000, "<u2"), photometric=0), 68),
        (write_tiff(full(48_000, "<u2"), MAX=50_000), 187),
        (write_tiff(full(0, "<u2")), 0),
        (write_tiff(full(200, "<u4"), MAX=255), 200),
        (write_tiff(full(48_000, "<u4"), SMAX=65_535), 187),
        (write_tiff(full(3_000_000_000, "<u4"), SMAX=4_294_967_295), 178),
        (write_tiff(full(4_294_967_295, "<u4"), SMAX=4_294_967_295), 255),
        (b"P5 8 8 4095\n" + full(3000, ">u2").tobytes(), 187),
        (b"P5 8 8 1023\n" + full(300, ">u2").tobytes(), 75),
    ],
)
def test_scaled_by_the_stated_range(data, expected):
    decoded = decode_picture(data, 8)
    assert (decoded == decoded[0, 0, 0]).all()
    assert abs(int(decoded[0, 0, 0]) - expected) <= 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (write_tiff(full(128.0, "<f4"), form=FLOAT), r"32-bit float samples from 128 to 128 and no stated range"),
        (write_tiff(full(-0.5, "<f4"), form=FLOAT), r"from -0\.5 to -0\.5 and no stated range"),
        (write_tiff(full(np.nan, "<f4"), form=FLOAT), r"from nan to nan"),
        (
            write_tiff(full(0.2, "<f4"), form=FLOAT),
            r"32-bit float samples of at most 0\.2, nearly black where 1 is white",
        ),
        (write_tiff(full(200.0, "<f4"), form=FLOAT, SMIN=0.0, SMAX=100.0), r"outside of 0 to 100"),
        (write_tiff(full(3000, "<u2")), r"16-bit samples of at most 3000, nearly black .* tags 280 and 281"),
        (write_tiff(full(12_000, "<u2")), r"16-bit samples of at most 12000"),
        (write_tiff(full(5000, "<u2"), MAX=4095), r"outside of 0 to 4095"),
        (write_tiff(full(3000, "<u4")), r"32-bit samples from 3000 to 3000 and no stated range"),
        (write_tiff(full(-3000, "<i4"), form=SIGNED), r"32-bit signed samples from -3000"),
        (write_tiff(full(3000, "<i2"), form=SIGNED), r"16-bit signed samples from 3000"),
        (write_tiff(full(30, "<i1"), form=SIGNED), r"signed 8-bit samples"),
        (write_tiff(full(0.5, "<f8"), form=FLOAT), r"a TIFF .* whose pixel format is not read"),
        (encode(Image.fromarray(full(3000, "<u2"))), r"16-bit samples of at most 3000"),
    ],
)
def test_refused_by_name(data, message):
    with pytest.raises(NotAnImageError, match=message):
        decode_picture(data, 8)


def write_deep_png(value):
    """A PNG of RGB with 16 bits, which Pillow reads but does not write."""
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + struct.pack(">H", value) * 24
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(row * 8)) + chunk(b"IEND", b"")


def test_deep_colour_is_full_or_refused():
    assert (decode_picture(write_deep_png(48_000), 8) == 187).all()
    for value in (0, 255, 3000):
        with pytest.raises(NotAnImageError, match="nearly black"):
            decode_picture(write_deep_png(value), 8)


@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_a_dark_pnm_is_read_if_it_states_its_maximum_and_refused_if_it_uses_few_of_65536_values(kind):
    def write(maximum, value):
        count = 64 * (3 if kind in ("P3", "P6") else 1)
        plain = " ".join([str(value)] * count).encode()
        return f"{kind}\n8 8\n{maximum}\n".encode() + (
            plain if kind in ("P2", "P3") else np.full(count, value, ">u2").tobytes()
        )

    assert (decode_picture(write(4095, 3000), 8) == 187).all()
    assert set(decode_picture(write(4095, 300), 8).flat) <= {18, 19}
    assert (decode_picture(write(65_535, 48_011), 8) == 187).all()
    with pytest.raises(NotAnImageError, match="nearly black"):
        decode_picture(write(65_535, 3000), 8)


def test_eight_bits_may_be_dark():
    assert (decode_picture(encode(Image.new("RGB", (8, 8), (3, 3, 3))), 8) == 3).all()


def test_orientation_is_kept_in_deep_images():
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF", tiffinfo={0x0112: 3})
    decoded = decode_picture(buffer.getvalue(), 8)
    assert decoded[0, 0, 0] == 255
    assert decoded[7, 7, 0] == 0
