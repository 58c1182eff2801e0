import contextlib
import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from serving.bundle.image_structure import check_structure, glance, is_cheap
from serving.bundle.preprocess import decode_picture
from serving.errors import NotAnImageError, TooLargeError
from tests.unit.serving.image_bombs import all_bombs, chunk, encode, fill, honest_images, progressive, segment

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
PNG = encode(NOISE, "PNG")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_images_of_a_data_set_are_cheap(kind):
    assert is_cheap(glance(encode(NOISE, kind)), 32)


@pytest.mark.slow
def test_no_bomb_is_cheap_unless_it_decodes_at_once():
    cheap = [(name, data) for name, data in all_bombs() if is_cheap(glance(data), 64)]
    assert cheap
    for name, data in cheap:
        start_s = time.thread_time()
        with contextlib.suppress(NotAnImageError, TooLargeError):
            decode_picture(data, 64)
        assert time.thread_time() - start_s < 0.05, name


EMPTY_LENGTHS = [b"\xff\xfe\0\0", b"\xff\xfe\0\1"]


@pytest.mark.parametrize("trick", EMPTY_LENGTHS)
@pytest.mark.parametrize("side", [64, 3500])
def test_a_segment_that_counts_less_than_itself_hides_no_scans(trick, side):
    """Pillow and libjpeg read on behind it."""
    data = progressive(side, 200)
    tricked = data[:2] + trick + data[2:]
    with Image.open(io.BytesIO(tricked)) as image:
        assert image.size == (side, side)
    with pytest.raises(TooLargeError, match="more than 64 JPEG scans"):
        check_structure(tricked)
    assert not is_cheap(glance(tricked), 32)


@pytest.mark.parametrize("trick", EMPTY_LENGTHS)
def test_what_has_a_broken_segment_is_not_cheap(trick):
    data = encode(NOISE, "JPEG")
    assert is_cheap(glance(data), 32)
    assert not is_cheap(glance(data[:2] + trick + data[2:]), 32)
    assert not is_cheap(glance(data[:-2]), 32)


@pytest.mark.parametrize(("marker", "start"), [(0xE1, b"Exif\0\0"), (0xE2, b"MPF\0")])
@pytest.mark.parametrize("parts", [1, 9])
def test_directories_of_thousands_of_tags_are_not_cheap(marker, start, parts):
    """Pillow reads each tag in Python: 64 kB of them took 40 ms."""
    plain = encode(NOISE, "JPEG")

    def add(tags):
        directory = b"MM\0*\0\0\0\x08" + struct.pack(">H", tags) + bytes(12 * tags + 4)
        each = -(-len(directory) // parts)
        pieces = [directory[at : at + each] for at in range(0, len(directory), each)]
        return plain[:2] + b"".join(segment(marker, start + piece) for piece in pieces) + plain[2:]

    assert is_cheap(glance(add(100)), 32)
    assert not is_cheap(glance(add(1_000)), 32)


@pytest.mark.parametrize("marker", [0xC8, *range(0xF0, 0xFE)])
def test_markers_whose_bodies_pillow_reads_as_segments_are_refused(marker):
    jpeg = encode(NOISE, "JPEG")
    inner = segment(0xFE, b"x") * 3000
    hidden = b"".join(segment(marker, inner[start : start + 60_000]) for start in range(0, len(inner), 60_000))
    tricked = jpeg[:2] + hidden + jpeg[2:]
    with pytest.raises(NotAnImageError, match="reserved markers"):
        check_structure(tricked)
    assert not is_cheap(glance(tricked), 32)


@pytest.mark.parametrize("part", [b"\xff\xfe\0\2", b"\xff\xfe\0\0"])
def test_an_end_before_the_first_scan_is_refused(part):
    with pytest.raises(NotAnImageError, match="ends before its first scan"):
        check_structure(b"\xff\xd8\xff\xd9" + part * 300_000)


@pytest.mark.parametrize(
    "data",
    [
        encode(NOISE.resize((300, 300)), "PNG"),
        encode(NOISE.resize((10, 1000)), "PNG"),
        PNG[:33] + chunk(b"zTXt", b"a\0\0") + PNG[33:],
        PNG[:33] + chunk(b"tEXt", b"a\0") * 70 + PNG[33:],
        encode(NOISE, "GIF"),
        progressive(64, 70),
        b"",
        PNG[:20],
    ],
    ids=["pixels", "thin", "compressed text", "chunks", "gif", "scans", "empty", "cut"],
)
def test_what_is_not_proven_cheap_is_not(data):
    assert not is_cheap(glance(data), 32)


def test_a_model_of_large_images_has_no_cheap_ones():
    assert not is_cheap(glance(PNG), 512)


@pytest.mark.parametrize(("scans", "is_refused"), [(63, False), (64, True)])
def test_scans_are_counted(scans, is_refused):
    data = progressive(64, scans)
    if is_refused:
        with pytest.raises(TooLargeError, match="more than 64 JPEG scans"):
            check_structure(data)
    else:
        assert check_structure(data).scans == 64


@pytest.mark.parametrize("stray", [b"\xff", b"\xff\0", b"\0"])
def test_bytes_between_segments_are_counted_before_the_first_scan(stray):
    jpeg = encode(NOISE, "JPEG")
    start, rest, most = jpeg[:20], jpeg[20:], 65_536 // len(stray)
    assert check_structure(start + stray * most + rest).scans == 1
    for data in (start + stray * (most + 1) + rest, start + stray * (most + 1)):
        with pytest.raises(TooLargeError, match="more than 65,536 bytes between JPEG segments"):
            check_structure(data)
    assert check_structure(jpeg[:-2] + stray * (most + 1) + jpeg[-2:]).scans == 1


def test_honest_images_are_accepted():
    for name, data in honest_images():
        assert check_structure(data).format == name.partition(",")[0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(NOISE, "PPM"), "no image of the accepted formats"),
        (encode(NOISE.convert("1"), "TIFF", compression="group4"), "TIFF with an uncommon compression"),
        (encode(NOISE, "TIFF", compression="jpeg"), "TIFF with an uncommon compression"),
    ],
    ids=["ppm", "fax tiff", "jpeg in tiff"],
)
def test_uncommon_formats_are_an_option(data, message):
    with pytest.raises(NotAnImageError, match=message):
        check_structure(data)
    check_structure(data, allows_uncommon=True)
    assert decode_picture(data, 8).shape == (8, 8, 3)


def test_restart_markers_of_a_camera_are_accepted():
    data = encode(NOISE.resize((640, 480)), "JPEG", restart_marker_blocks=1)
    assert data.count(b"\xff\xd0") > 100
    assert check_structure(data).format == "JPEG"


def test_compressed_chunks_are_counted():
    with pytest.raises(TooLargeError, match="compressed PNG chunks"):
        check_structure(PNG[:33] + chunk(b"iCCP", b"a\0\0") * 65 + PNG[33:])


def test_trailing_bytes_after_the_end_are_ignored():
    jpeg = encode(NOISE, "JPEG")
    assert check_structure(jpeg + fill(b"\xff\xda\0\2")).scans == 1
