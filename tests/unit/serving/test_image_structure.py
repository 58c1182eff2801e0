import io

import numpy as np
import pytest
from PIL import Image

from serving.errors import NotAPictureError, TooLargeError
from serving.image_structure import check_structure, is_cheap
from serving.preprocess import decode_picture
from tests.unit.serving.image_bombs import all_bombs, chunk, encode, fill, honest_images, progressive

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
PNG = encode(NOISE, "PNG")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_images_of_a_data_set_are_cheap(kind):
    assert is_cheap(encode(NOISE, kind), 32)


def test_no_bomb_is_cheap_unless_it_decodes_at_once():
    for name, data in all_bombs():
        if is_cheap(data, 64):
            image = Image.open(io.BytesIO(data))
            assert image.width * image.height <= 65_536, name


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
    assert not is_cheap(data, 32)


def test_a_model_of_large_images_has_no_cheap_ones():
    assert not is_cheap(PNG, 512)


@pytest.mark.parametrize(("scans", "is_refused"), [(63, False), (64, True)])
def test_scans_are_counted(scans, is_refused):
    data = progressive(64, scans)
    if is_refused:
        with pytest.raises(TooLargeError, match="more than 64 JPEG scans"):
            check_structure(data)
    else:
        assert check_structure(data).scans == 64


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
    with pytest.raises(NotAPictureError, match=message):
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
