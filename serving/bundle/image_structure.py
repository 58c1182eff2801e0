"""Structure of an encoded image, read without decoding: its format, its size, and the parts that multiply its cost.

A file of kilobytes can hold thousands of JPEG scans, PNG chunks or TIFF tags. Counting them costs microseconds,
decoding them costs minutes. What damages a structure otherwise is left to Pillow, which words it better.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from serving.errors import NotAnImageError, ServingError, TooLargeError

# Endings of file names, in lower case.
_FEW_SUFFIXES = (".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif")
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", *_FEW_SUFFIXES)
)
COMMON_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_SCANS = 64
MAX_SEGMENTS = 2_000
MAX_STRAY_BYTES = 65_536
MAX_CHUNKS = 10_000
MAX_COMPRESSED_CHUNKS = 64
MAX_GIF_BLOCKS = 20_000
MAX_TAGS = 500
MAX_STRIPS = 32_768

# An image within these bounds decodes within milliseconds, whatever its bytes are.
CHEAP_BYTES = 65_536
CHEAP_PIXELS = 65_536
CHEAP_PARTS = 64
CHEAP_ASPECT = 8
# Of EXIF and multi-picture directories in a JPEG, which are read in Python, 12 bytes for each tag.
CHEAP_METADATA_BYTES = 8_192

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)
# Brands of ISO media files, and first bytes of other files that people take for images.
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    b"crx ": "CR3",
}
_UNREAD_SIGNATURES = (
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "Photoshop"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML"),
    (b"<!DOCTYPE", "HTML"),
    (b"<html", "HTML"),
    (b"II+\0", "BigTIFF"),
    (b"MM\0+", "BigTIFF"),
)
# Neither a stuffed byte, nor a fill byte, nor a restart marker, which belongs to the scan around it.
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_RESTARTS = tuple(bytes((0xFF, marker)) for marker in range(0xD0, 0xD8))
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BASELINE_OR_PROGRESSIVE = {0xC0, 0xC1, 0xC2}
_WITHOUT_BODY = {0xC8, *range(0xF0, 0xFE)}
_GLANCE_FILL_BYTES = 1_024
_TEM, _SOI, _EOI, _SOS = 0x01, 0xD8, 0xD9, 0xDA
_APP1, _APP2 = 0xE1, 0xE2
_PROFILE = b"ICC_PROFILE\0"
_CHEAP_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tEXt", b"tIME"}
_COMPRESSED_CHUNKS = {b"zTXt", b"iTXt", b"iCCP"}
_BMP_RUN_LENGTH = {1, 2}
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_COMPRESSION, _STRIP_OFFSETS, _TILE_OFFSETS = 256, 257, 259, 273, 324
_TIFF_LONG = 4
# None, LZW, Deflate (both numbers), PackBits.
_COMMON_COMPRESSIONS = {1, 5, 8, 32_946, 32_773}


@dataclass
class Structure:
    """Parts of an encoded image.

    Attributes:
        format: Pillow's name; None for one that is not common.
        size_bytes: Length of the encoded file.
        width: Pixels; 0 where it was not read.
        height: Pixels; 0 where it was not read.
        parts: Number of segments or chunks.
        scans: Number of scans of a JPEG.
        is_simple: True if nothing in it is known to cost more than its bytes and pixels say.
        has_metadata: True if a JPEG has EXIF, other images behind it, or a colour profile.
    """

    format: str | None
    size_bytes: int
    width: int = 0
    height: int = 0
    parts: int = 0
    scans: int = 0
    is_simple: bool = False
    has_metadata: bool = False


def glance(data: bytes) -> Structure:
    """Return what the first parts of an image tell, in some microseconds and without an error.

    Size and parts are 0 where they are not found. Of JPEG and PNG it is simple only if it has few parts and was read to
    its end; a JPEG that is too large to be cheap is read up to its first scan.
    """
    name = find_format(data)
    if name is None:
        return Structure(None, len(data))
    try:
        return _READERS[name](data, True)
    except (ServingError, struct.error):
        return Structure(name, len(data))


def is_cheap(structure: Structure, resize_size: int) -> bool:
    """Return True if an image's structure proves that it decodes within milliseconds: a small JPEG or PNG.

    Args:
        structure: Result of `glance`.
        resize_size: Short side that it is resized to, pixels.
    """
    width, height = structure.width, structure.height
    return (
        structure.is_simple
        and structure.format in ("JPEG", "PNG")
        and structure.size_bytes <= CHEAP_BYTES
        and structure.parts <= CHEAP_PARTS
        and 0 < width * height <= CHEAP_PIXELS
        and max(width, height) <= CHEAP_ASPECT * min(width, height)
        and resize_size**2 <= CHEAP_PIXELS
    )


def check_structure(data: bytes, allows_uncommon: bool = False) -> Structure:
    """Return an image's structure.

    Args:
        data: The encoded file.
        allows_uncommon: True to accept PPM, run-length BMP and TIFF of uncommon compressions.

    Raises:
        NotAnImageError: The format is not accepted.
        TooLargeError: The structure has more parts than are decoded.
    """
    name = find_format(data)
    structure = Structure(None, len(data)) if name is None else _READERS[name](data, False)
    if name == "JPEG":
        _check_restarts(data, structure)
    if not allows_uncommon:
        check_format(data, structure)
    return structure


def check_format(data: bytes, structure: Structure) -> None:
    """Refuse an image of an uncommon format or compression.

    Args:
        data: The encoded file.
        structure: Structure of `data`.

    Raises:
        NotAnImageError: The format is not accepted.
    """
    if structure.format is None:
        raise NotAnImageError(f"{describe_unread(data)}; use one of {', '.join(COMMON_FORMATS)}")
    if structure.format in ("BMP", "TIFF") and not structure.is_simple:
        raise NotAnImageError(
            f"a {structure.format} with an uncommon compression, which is not accepted; save it uncompressed, or as PNG"
        )


def find_format(data: bytes) -> str | None:
    """Return the common format that a file's first bytes name; None for any other."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for signature, name in _SIGNATURES if data.startswith(signature)), None)


def describe_unread(data: bytes) -> str:
    """Return what a file that is not read seems to be, for a message."""
    known = find_format(data)
    if known is not None:
        return f"a {known} that is damaged, or whose pixel format is not read: save it as PNG with 8 bits per channel"
    brand = _BRANDS.get(data[8:12]) if data[4:8] == b"ftyp" else None
    name = brand or next((name for start, name in _UNREAD_SIGNATURES if data.startswith(start)), None)
    return (
        f"{len(data)} bytes that are no image of the accepted formats"
        if name is None
        else f"a file in the format {name}, not read here"
    )


def _refuse(what: str, limit: int) -> TooLargeError:
    return TooLargeError(f"the image has more than {limit:,} {what}; save it again with an ordinary encoder")


def _read_jpeg(data: bytes, is_glance: bool) -> Structure:
    structure = Structure("JPEG", len(data))
    frames, position, is_broken, is_whole = [], 2, False, False
    metadata_bytes, stray_bytes, has_profile = 0, 0, False
    # A glance is made on the event loop; an image whose size stands behind more fill bytes counts as large.
    most = _GLANCE_FILL_BYTES if is_glance and len(data) > CHEAP_BYTES else len(data)
    while match := _JPEG_MARKER.search(data, position, position + most):
        stray_bytes += 0 if structure.scans else match.start() - position
        marker, position = data[match.start() + 1], match.end()
        if marker == _EOI:
            if not structure.scans:
                # Pillow goes on behind it, through as many segments as there are.
                raise NotAnImageError("a JPEG that ends before its first scan; save it again with an ordinary encoder")
            is_whole = not is_broken
            break
        if marker in _WITHOUT_BODY and not structure.scans:
            # Pillow does not skip what follows these: it looks for segments in it, one byte after the other.
            raise NotAnImageError("a JPEG with reserved markers; save it again with an ordinary encoder")
        structure.parts += 1
        structure.scans += marker == _SOS
        if is_glance and (structure.parts > CHEAP_PARTS or (marker == _SOS and len(data) > CHEAP_BYTES)):
            return structure
        if structure.parts > MAX_SEGMENTS:
            raise _refuse("JPEG segments", MAX_SEGMENTS)
        if structure.scans > MAX_SCANS:
            raise _refuse("JPEG scans", MAX_SCANS)
        if marker in (_TEM, _SOI):
            continue
        if marker in _SOF and len(data) >= position + 7:
            frames.append(marker)
            structure.height, structure.width = struct.unpack_from(">HH", data, position + 3)
        has_profile = has_profile or (marker == _APP2 and data.startswith(_PROFILE, position + 2))
        length = int.from_bytes(data[position : position + 2], "big")
        # Pillow and libjpeg take a length that counts less than itself as an empty segment, and read on.
        is_broken = is_broken or length < 2
        position += max(2, length)
        metadata_bytes += length if marker in (_APP1, _APP2) else 0
    if not (is_glance or structure.scans):
        stray_bytes += len(data) - position
    if stray_bytes > MAX_STRAY_BYTES:  # Pillow reads them one by one
        raise _refuse("bytes between JPEG segments", MAX_STRAY_BYTES)
    structure.has_metadata = metadata_bytes > 0
    # A colour profile is a program for another library.
    is_plain = is_whole and not has_profile and metadata_bytes <= CHEAP_METADATA_BYTES
    structure.is_simple = is_plain and len(frames) == 1 and frames[0] in _BASELINE_OR_PROGRESSIVE
    return structure


def _check_restarts(data: bytes, structure: Structure) -> None:
    """Refuse more restart markers than there are blocks, one after each of four components in each scan."""
    blocks = (structure.width + 7) // 8 * ((structure.height + 7) // 8)
    if sum(data.count(restart) for restart in _RESTARTS) > 4 * blocks * max(1, structure.scans) + MAX_SEGMENTS:
        raise TooLargeError("the JPEG has more restart markers than blocks; save it again with an ordinary encoder")


def _read_png(data: bytes, is_glance: bool) -> Structure:
    structure = Structure("PNG", len(data), is_simple=True)
    compressed = 0
    if len(data) >= 24:
        structure.width, structure.height = struct.unpack_from(">II", data, 16)
    position = 8
    while position + 8 <= len(data):
        kind = data[position + 4 : position + 8]
        structure.parts += 1
        if is_glance and structure.parts > CHEAP_PARTS:
            structure.is_simple = False
            return structure
        if structure.parts > MAX_CHUNKS:
            raise _refuse("PNG chunks", MAX_CHUNKS)
        compressed += kind in _COMPRESSED_CHUNKS
        if compressed > MAX_COMPRESSED_CHUNKS:
            raise _refuse("compressed PNG chunks", MAX_COMPRESSED_CHUNKS)
        if kind not in _CHEAP_CHUNKS or (kind == b"IHDR") != (position == 8):
            structure.is_simple = False
        if kind == b"IEND":
            break
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return structure


def _read_webp(data: bytes, is_glance: bool) -> Structure:
    structure, position = Structure("WEBP", len(data)), 12
    kind = data[12:16]
    if kind == b"VP8X":
        structure.width, structure.height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        structure.width, structure.height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        structure.width, structure.height = (
            size & 0x3FFF for size in struct.unpack_from("<HH", data.ljust(30, b"\0"), 26)
        )
    if is_glance:
        return structure
    while position + 8 <= len(data):
        structure.parts += 1
        if structure.parts > MAX_CHUNKS:
            raise _refuse("WebP chunks", MAX_CHUNKS)
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + size + (size & 1)
    return structure


def _read_gif(data: bytes, is_glance: bool) -> Structure:
    """Count the blocks in front of the first frame, which is the one that is decoded."""
    structure = Structure("GIF", len(data))
    structure.width, structure.height = (int.from_bytes(data[at : at + 2], "little") for at in (6, 8))
    if is_glance:
        return structure
    flags = data[10] if len(data) > 10 else 0
    position = 13 + (3 * (2 << (flags & 7)) if flags & 0x80 else 0)
    while position < len(data) and data[position] not in b",;":
        # An extension has a label, then blocks of up to 255 bytes until an empty one; other bytes are skipped.
        is_extension = data[position] == 0x21
        position += 2 if is_extension else 1
        structure.parts += 1
        while is_extension and position < len(data) and data[position]:
            position += 1 + data[position]
            structure.parts += 1
            if structure.parts > MAX_GIF_BLOCKS:
                break
        position += is_extension
        if structure.parts > MAX_GIF_BLOCKS:
            raise _refuse("GIF blocks", MAX_GIF_BLOCKS)
    return structure


def _read_bmp(data: bytes, _is_glance: bool) -> Structure:
    header = int.from_bytes(data[14:18], "little")
    compression = int.from_bytes(data[30:34], "little") if header >= 40 else 0
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data.ljust(26, b"\0"), 18)
    return Structure("BMP", len(data), abs(width), abs(height), is_simple=compression not in _BMP_RUN_LENGTH)


def _read_tiff(data: bytes, _is_glance: bool) -> Structure:
    """Read the first directory, which is the one that is decoded."""
    structure = Structure("TIFF", len(data), is_simple=True)
    order = "<" if data.startswith(b"II") else ">"
    start = int.from_bytes(data[4:8], "little" if order == "<" else "big")
    if start + 2 > len(data):
        return structure
    (structure.parts,) = struct.unpack_from(f"{order}H", data, start)
    if structure.parts > MAX_TAGS:
        raise _refuse("TIFF tags", MAX_TAGS)
    end = min(start + 2 + 12 * structure.parts, start + 2 + (len(data) - start - 2) // 12 * 12)
    for tag, kind, count, value in struct.iter_unpack(f"{order}HHI4s", data[start + 2 : end]):
        if tag in (_STRIP_OFFSETS, _TILE_OFFSETS) and count > MAX_STRIPS:
            raise _refuse("TIFF strips or tiles", MAX_STRIPS)
        (number,) = struct.unpack_from(f"{order}{'I' if kind == _TIFF_LONG else 'H'}", value)
        if tag == _TIFF_COMPRESSION:
            structure.is_simple = number in _COMMON_COMPRESSIONS
        elif tag == _TIFF_WIDTH:
            structure.width = number
        elif tag == _TIFF_HEIGHT:
            structure.height = number
    return structure


_READERS: dict[str, Callable[[bytes, bool], Structure]] = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "WEBP": _read_webp,
    "GIF": _read_gif,
    "BMP": _read_bmp,
    "TIFF": _read_tiff,
}
