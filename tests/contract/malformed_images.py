"""Bytes that are no image, or not one that the service takes: each with a name that says what is wrong with it."""

import gzip
import io
import json
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image

from tests.unit.serving.tiny_bundle import encode, paint_bomb

Named = Iterator[tuple[str, bytes]]
FORMATS: dict[str, tuple[str, dict[str, object]]] = {
    "jpeg": ("JPEG", {"quality": 90}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "lossy webp": ("WEBP", {"quality": 80}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "lzw tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "deflate tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "ppm": ("PPM", {}),
}


def draw() -> Image.Image:
    """Return an image whose bytes do not compress away: what is cut off or changed matters."""
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (40, 30, 3), dtype=np.uint8))


def cut_images() -> Named:
    """Every format, cut off at places spread over its first three quarters; it cannot decode."""
    for name, (kind, options) in FORMATS.items():
        data = encode(draw(), kind, **options)
        for cut in sorted({1, 2, 3, 7, 11, 16, 26, *(round(len(data) * share / 100) for share in range(10, 76, 13))}):
            yield f"{name} cut after {cut} of {len(data)} bytes", data[:cut]


def odd_ends() -> Named:
    """Every format without its last bytes, and one with too many; some decode."""
    too_many = png_chunk(b"IDAT", compress_zeros(50_000_000))
    yield "png with 50 MB of pixels where it announces 64", paint_bomb(8, 8)[:33] + too_many
    for name, (kind, options) in FORMATS.items():
        data = encode(draw(), kind, **options)
        for missing in (1, 4, 13):
            yield f"{name} without its last {missing} bytes", data[:-missing]


def changed_images() -> Named:
    """Every format with bytes changed, most in its head; some decode."""
    luck = random.Random(11)
    for name, (kind, options) in FORMATS.items():
        data = encode(draw(), kind, **options)
        for end in [64] * 8 + [len(data)] * 4:
            changed = bytearray(data)
            places = sorted({luck.randrange(2, min(end, len(data))) for _ in range(luck.choice((1, 1, 3)))})
            for place in places:
                changed[place] ^= luck.randrange(1, 256)
            yield f"{name} with byte(s) {places} changed", bytes(changed)


def noise() -> Named:
    """The first bytes of a format, then noise."""
    luck = random.Random(13)
    heads = {
        "jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
        "png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR",
        "webp": b"RIFF\xff\xff\xff\x7fWEBPVP8 ",
        "gif": b"GIF89a",
        "bmp": b"BM",
        "tiff": b"II*\x00\x08\x00\x00\x00",
        "big-endian tiff": b"MM\x00*\x00\x00\x00\x08",
        "ppm": b"P6 ",
        "nothing": b"",
    }
    for name, head in heads.items():
        for size in (1, 50, 5000):
            # Zeros end every field of a head: the size in it is then none.
            yield f"{name} and {size} bytes of noise", head + b"\0" * 8 + luck.randbytes(size)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: bytes, width: int = 8, height: int = 8) -> bytes:
    """Return a PNG that has chunks before an image that is cut off."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + png_chunk(b"IDAT", zlib.compress(b"\0")[:-5])


def tiff(width: int, height: int, **tags: int) -> bytes:
    """Return a TIFF of one strip; `tags` are `tNNN=value`."""
    values = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: height, 279: 16}
    values |= {int(name[1:]): value for name, value in tags.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(values.items()))
    head = b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", len(values)) + entries + bytes(4)
    return head.ljust(200, b"\0") + bytes(16)


def webp(width: int, height: int) -> bytes:
    """Return an extended WebP that announces a canvas and holds nothing of it."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + b"VP8 " + struct.pack("<I", 10) + bytes(10)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bombs() -> Named:
    """Small files that announce, or unpack to, something gigantic."""
    sizes = [(10_000, 10_000), (20_000, 20_000), (65_535, 65_535), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1)]
    for width, height in sizes:
        yield f"png of {width}x{height}", paint_bomb(width, height)
        yield f"tiff of {width}x{height}", tiff(width, height)
        yield f"deflate tiff of {width}x{height}", tiff(width, height, t259=8)
        yield f"lzw tiff of {width}x{height}", tiff(width, height, t259=5)
        yield (
            f"bmp of {width}x{height}",
            struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 70, 0, 0, 54, 40, width, height, 1, 24, 0, 16, 0, 0, 0, 0),
        )
        yield (
            f"run-length bmp of {width}x{height}",
            struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 70, 0, 0, 54, 40, width, -height, 1, 8, 1, 16, 0, 0, 256, 0),
        )
        yield f"ppm of {width}x{height}", f"P6 {width} {height} 255 ".encode() + bytes(99)
        yield f"plain ppm of {width}x{height}", f"P3 {width} {height} 255 ".encode() + b"1 2 3 " * 20
        yield f"plain pbm of {width}x{height}", f"P1 {width} {height} ".encode() + b"1 0 " * 20
    for width, height in [(10_000, 10_000), (65_535, 65_535), (1, 65_535), (65_535, 1)]:
        yield (
            f"gif of {width}x{height}",
            b"GIF89a"
            + struct.pack("<HHBBB", width, height, 0x80, 0, 0)
            + bytes(6)
            + b","
            + struct.pack("<HHHHB", 0, 0, width, height, 0)
            + b"\x02\x02\x44\x01\x00;",
        )
        quiet = encode(draw(), "JPEG")
        frame = quiet.index(b"\xff\xc0") + 5
        size = struct.pack(">HH", height, width)
        yield f"jpeg of {width}x{height}", quiet[:frame] + size + quiet[frame + 4 : 700]
    for width, height in [(16_384, 16_384), (2**24, 200), (2**24, 255)]:
        yield f"webp of {width}x{height}", webp(width, height)
    zeros = compress_zeros(200_000_000)
    yield "png with a text bomb", png_with(png_chunk(b"zTXt", b"a\0\0" + zeros))
    yield "png with an international text bomb", png_with(png_chunk(b"iTXt", b"a\0\1\0\0\0" + zeros))
    yield "png with a profile bomb", png_with(png_chunk(b"iCCP", b"a\0\0" + zeros))
    yield (
        "png with 80 texts of 1 MB",
        png_with(*[png_chunk(b"zTXt", b"a\0\0" + compress_zeros(1_000_000))] * 80),
    )
    yield "png with a chunk of 2 GB", png_with() + struct.pack(">I", 2**31 - 1) + b"IDAT"
    yield "png with a profile and no pixels", png_with(png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100))))
    yield "tiff with four billion values", tiff(8, 8)[:10] + struct.pack("<HHII", 256, 4, 2**32 - 1, 8) + bytes(60)
    yield "tiff that is its own next page", b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00"
    yield "tiff whose strip is far away", tiff(8, 8, t273=2**31, t279=2**31)
    yield "tiff of 65535 samples", tiff(8, 8, t277=65_535)


@cache
def compress_zeros(size: int) -> bytes:
    """Return so many zeros as a zlib stream."""
    return zlib.compress(bytes(size), 9)


@cache
def _zip(size: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in (("a.png", encode(draw())), ("zeros", bytes(size))):
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return file.getvalue()


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("__import__('os').system('true')",)


def disguises() -> Named:
    """Files of other kinds."""
    image = draw()
    yield "zip", _zip(100)
    yield "zip bomb", _zip(50_000_000)
    yield "gzip of an image", gzip.compress(encode(image), mtime=0)
    yield "tar", b"a.png".ljust(257, b"\0") + b"ustar\x0000" + bytes(248)
    yield "svg", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1:1/'/></svg>"
    yield (
        "svg that includes a file",
        b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><svg>&b;</svg>",
    )
    yield "xml bomb", b"<!DOCTYPE a [<!ENTITY b 'ccc'><!ENTITY d '&b;&b;&b;&b;'><!ENTITY e '&d;&d;&d;'>]><a>&e;</a>"
    yield "html", b"<!doctype html><img src=http://127.0.0.1:1/a.png><script>1</script>"
    yield "pdf", b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"
    yield "ico", encode(image, "ICO", sizes=[(16, 16)])
    yield "cur", b"\0\0\2\0\1\0" + encode(image, "ICO", sizes=[(16, 16)])[6:]
    yield "icns", encode(image.resize((16, 16)), "ICNS")
    yield "psd", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(14)
    yield "eps", encode(image, "EPS")
    yield "eps that runs a command", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%touch /tmp/a) (w) file\n"
    yield "jpeg 2000", encode(image, "JPEG2000")
    yield "avif", b"\0\0\0\x1cftypavif" + bytes(200)
    yield "heic", b"\0\0\0\x18ftypheic" + bytes(200)
    yield "mp4", b"\0\0\0\x20ftypisom" + bytes(200)
    yield "tga", encode(image, "TGA")
    yield "pcx", encode(image, "PCX")
    yield "sgi", encode(image, "SGI")
    yield "dds", encode(image, "DDS")
    yield "im", encode(image, "IM")
    yield "xbm", encode(image.convert("1"), "XBM")
    yield "spider", encode(image.convert("F"), "SPIDER")
    yield "msp", encode(image.convert("1"), "MSP")
    yield "blp", b"BLP2" + bytes(1200)
    yield "fits", b"SIMPLE  =                    T".ljust(2880)
    yield "wmf", b"\xd7\xcd\xc6\x9a" + bytes(100)
    yield "fli", bytes(4) + b"\x11\xaf" + bytes(122)
    yield "gd2", b"gd2\0" + bytes(100)
    yield "hdf5", b"\x89HDF\r\n\x1a\n" + bytes(100)
    yield "numpy", b"\x93NUMPY\x01\x00" + bytes(120)
    yield "pickle", pickle.dumps(_Trap())
    yield "elf", b"\x7fELF\2\1\1" + bytes(200)
    yield "script", b"#!/bin/sh\ncurl http://127.0.0.1:1/\n"
    yield "json", json.dumps({"image": "http://127.0.0.1:1/a.png"}).encode()
    yield "base64 of an image", b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    yield "data url", b"data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    yield "image after a newline", b"\n" + encode(image)
    yield "image after a mark of UTF-8", b"\xef\xbb\xbf" + encode(image)
    yield "image written as UTF-8", encode(image).decode("latin-1").encode()
    yield "image with line ends changed", encode(image).replace(b"\r\n", b"\n")
    yield "zeros", bytes(1000)
    yield "spaces", b" " * 1000
