"""Samples of more than 8 bits -> 8 bits, by the range that the file states.

Pillow hands grey samples of 12, 16 and 32 bits over as they are stored, whatever black and white are, and of deep
colour only the upper byte. An image that would turn out nearly black for want of a stated range is refused.

Shape suffixes: H = height, W = width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from serving.errors import NotAnImageError

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
# (lowest, highest) value: SMinSampleValue and SMaxSampleValue, then MinSampleValue and MaxSampleValue.
_RANGE_TAGS = ((340, 341), (280, 281))
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_FULL_16_BITS = (0, 65_535)
# What uses less of 16 bits than this, less than a quarter, has 14, 12 or 10 bits and does not say so.
_LEAST_MAXIMUM = 2**14
_REMEDY = "scale it to all of 8 or 16 bits, or state the range (TIFF tags 280 and 281, or 340 and 341)"


@dataclass(frozen=True)
class SampleRange:
    """Samples of an image before they are decoded.

    Attributes:
        kind: For messages: "16-bit", "32-bit float".
        stated: Values of black and white; None where the file does not state them.
        is_grey: True for one channel in its own units; False for colour of which Pillow keeps the upper byte.
        is_unsigned_32: True if Pillow's signed numbers are unsigned ones.
        is_inverted: True if the lowest value is white.
    """

    kind: str
    stated: tuple[float, float] | None
    is_grey: bool
    is_unsigned_32: bool = False
    is_inverted: bool = False


def read_range(opened: Image.Image) -> SampleRange | None:
    """Return what an opened image states of its samples; None for ordinary 8 bits.

    Raises:
        NotAnImageError: Its samples are signed and have 8 bits, which Pillow takes for unsigned ones.
    """
    tags: Mapping[int, Any] = getattr(opened, "tag_v2", {})
    bits, form = int(_first(tags, _BITS) or 16), int(_first(tags, _SAMPLE_FORMAT) or _UNSIGNED)
    if opened.mode != "F" and not opened.mode.startswith("I"):
        if form == _SIGNED:
            raise NotAnImageError("a TIFF of signed 8-bit samples, which are not read; save it with unsigned ones")
        is_deep = any(
            ";16" in str(tile[3]) or _read_maximum(tile) == _FULL_16_BITS[1] for tile in getattr(opened, "tile", ())
        )
        return SampleRange("16-bit", None, is_grey=False) if is_deep else None
    if not tags:
        if opened.mode == "F":
            return SampleRange("32-bit float", None, is_grey=True)
        # A PGM of fewer values than 65,536 is scaled to all of them by Pillow.
        is_scaled = any((_read_maximum(tile) or 65_535) < 65_535 for tile in getattr(opened, "tile", ()))
        return SampleRange("16-bit", _FULL_16_BITS if is_scaled else None, is_grey=True)
    kind = f"{bits}-bit" + {_SIGNED: " signed", _FLOAT: " float"}.get(form, "")
    stated = _find_stated(tags, form)
    if stated is None and form == _UNSIGNED and bits < 16:
        stated = (0, 2**bits - 1)
    is_unsigned_32 = form == _UNSIGNED and bits == 32
    return SampleRange(kind, stated, True, is_unsigned_32, is_inverted=tags.get(_PHOTOMETRIC) == 0)


def scale_grey(image: Image.Image, samples: SampleRange) -> Image.Image:
    """Return a grey image of 8 bits: black and white are the ends of the range.

    Raises:
        NotAnImageError: The range is not stated and cannot be told from the kind, or there are values outside of it.
    """
    values_HW: npt.NDArray[np.generic] = np.asarray(image)
    if samples.is_unsigned_32:
        values_HW = values_HW.view(np.uint32)
    lowest, highest = float(values_HW.min()), float(values_HW.max())
    low, high = samples.stated or _assume_range(samples.kind, lowest, highest)
    if not (low <= lowest and highest <= high):
        raise NotAnImageError(
            f"a grey image with {samples.kind} samples from {lowest:g} to {highest:g}, outside of {low:g} to {high:g}, "
            f"its range; {_REMEDY}"
        )
    if (low, high) == _FULL_16_BITS:
        grey_HW = (values_HW.astype(np.uint16) >> 8).astype(np.uint8)
    else:
        # In place: an image may have 50 million pixels.
        scaled_HW = values_HW.astype(np.float32)
        scaled_HW -= low
        if np.issubdtype(values_HW.dtype, np.floating):
            scaled_HW *= 255 / (high - low)
            np.rint(scaled_HW, out=scaled_HW)
        else:
            scaled_HW *= 256 / (high - low + 1)
        grey_HW = scaled_HW.clip(0, 255, out=scaled_HW).astype(np.uint8)
    return Image.fromarray(255 - grey_HW if samples.is_inverted else grey_HW)


def check_colour(image: Image.Image, samples: SampleRange) -> None:
    """Refuse colour of 16 bits that uses less than a quarter of them, or none: its lower bytes are gone by now.

    Raises:
        NotAnImageError: It does.
    """
    bands = np.atleast_2d(image.getextrema())
    brightest = max(int(band[1]) for band, name in zip(bands, image.getbands(), strict=True) if name != "A")
    if image.mode in ("RGB", "RGBA", "LA", "CMYK") and brightest < _LEAST_MAXIMUM >> 8:
        raise NotAnImageError(_say_dark(samples.kind, (brightest << 8) + 255, _FULL_16_BITS[1]))


def _assume_range(kind: str, lowest: float, highest: float) -> tuple[float, float]:
    if kind.endswith("float") and 0 <= lowest <= highest <= 1:
        if 0 < highest < 0.25:
            raise NotAnImageError(_say_dark(kind, highest, 1))
        return 0.0, 1.0
    if kind == "16-bit":
        if 0 < highest < _LEAST_MAXIMUM:
            raise NotAnImageError(_say_dark(kind, highest, _FULL_16_BITS[1]))
        return _FULL_16_BITS
    raise NotAnImageError(
        f"a grey image with {kind} samples from {lowest:g} to {highest:g} and no stated range; {_REMEDY}"
    )


def _say_dark(kind: str, highest: float, white: int) -> str:
    return (
        f"an image with {kind} samples of at most {highest:g}, nearly black where {white} is white, or nearly white in "
        f"CMYK: less than a quarter of the range is in use; {_REMEDY}"
    )


def _find_stated(tags: Mapping[int, Any], form: int) -> tuple[float, float] | None:
    """Return the range of the tags. A highest integer that is no power of two less one is a statistic."""
    for low_tag, high_tag in _RANGE_TAGS:
        low, high = _first(tags, low_tag), _first(tags, high_tag)
        if high is None:
            continue
        if form == _UNSIGNED and high > 0 and (int(high) & (int(high) + 1)) == 0:
            return 0, int(high)
        if form != _UNSIGNED and low is not None and low < high:
            return float(low), float(high)
    return None


def _read_maximum(tile: tuple[Any, ...]) -> int | None:
    """Return the maximum that a PPM or PGM states, as Pillow's decoder of scaled samples gets it."""
    return int(tile[3][1]) if tile[0] in ("ppm", "ppm_plain") else None


def _first(tags: Mapping[int, Any], tag: int) -> float | None:
    value = tags.get(tag)
    return value[0] if isinstance(value, tuple) else value
