"""Files that Pillow refuses although every pixel is in them: without the end marker, or with long texts."""

from collections.abc import Callable

import numpy as np
from PIL import Image

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_TEXT_CHUNKS = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}
# Two endings of a JPEG: what differs between the images is not in the file.
_FILLERS = (_JPEG_END, bytes((0x55, 0xAA)) * 64 + _JPEG_END)
_MAX_MISSING_FRACTION = 0.05
_MAX_DIFFERENCE = 8


def decode_mended(data: bytes, error: Exception, decode: Callable[[bytes], Image.Image]) -> Image.Image | None:
    """Decode a file again after a refusal; None where it cannot be mended.

    A PNG is decoded without its texts and colour profile, a JPEG with an end marker, if at most 5 % of its pixels are
    missing.

    Args:
        data: The encoded file.
        error: Error of Pillow.
        decode: Returns the RGB image of a file.

    Raises:
        Exception: Whatever `decode` raises.
    """
    if data.startswith(_PNG_SIGNATURE) and ("too large" in str(error) or "text chunks" in str(error)):
        return decode(_drop_texts(data))
    if data.startswith(_JPEG_SIGNATURE) and "truncated" in str(error):
        ended, other = (decode(data.removesuffix(b"\xff") + filler) for filler in _FILLERS)
        difference_HWC = np.abs(np.asarray(ended, dtype=np.int16) - np.asarray(other, dtype=np.int16))
        is_missing_HW = difference_HWC.max(axis=2) > _MAX_DIFFERENCE
        return ended if is_missing_HW.mean() <= _MAX_MISSING_FRACTION else None
    return None


def _drop_texts(data: bytes) -> bytes:
    kept, position = [data[:8]], 8
    while position + 8 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] not in _TEXT_CHUNKS:
            kept.append(data[position:end])
        position = end
    return b"".join(kept)
