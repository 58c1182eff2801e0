"""Image bytes -> uint8 array: the one function that training and serving share.

The evaluation images of training are decoded here too, so what a model is measured on is what it is asked
about later. Normalisation is not done here: it lives inside the ONNX graph.

Shape suffixes: H = height, W = width, C = the three colour channels, red first.
"""

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, Image, UnidentifiedImageError, features

from serving.bundle.colour_profile import MODE_KEY, PROFILE_KEY, convert_to_srgb
from serving.bundle.image_structure import describe_unread, glance, is_cheap
from serving.bundle.mending import decode_mended
from serving.bundle.sample_range import SampleRange, check_colour, read_range, scale_grey
from serving.errors import NotAnImageError, OverloadedError, ServingError, TooLargeError

try:
    import simplejpeg
except ImportError:  # a GPU node that trains on packed images: the pixels are the same without it
    simplejpeg = None

MAX_PIXELS = 50_000_000
# A JPEG of more pixels is decoded at a fraction of its size, but no less than so many times what it is resized to.
LARGE_PIXELS = 1_000_000
DRAFT_FACTOR = 3
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM") + (("AVIF",) if features.check("avif") else ())
# Images are decoded side by side already.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

# libjpeg-turbo's names. It converts CMYK otherwise than Pillow.
_PLAIN_COLOURS = ("YCbCr", "Gray")
_BAND_PIXELS = 1_000_000
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's readers raise over damaged bytes.
_UNDECODABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError),
    *(AttributeError, AssertionError, struct.error),
)
# Pillow's word for malloc's refusal inside a decoder.
_NO_MEMORY = "out of memory"
_SHORTAGE, _RETRY_AFTER_S = "there is not enough memory to decode the image now; try again", 5


def decode_picture(
    data: bytes,
    image_size: int,
    resize_size: int | None = None,
    max_pixels: int = MAX_PIXELS,
    take_pixels: Callable[[int], None] | None = None,
    formats: Sequence[str] = FORMATS,
) -> npt.NDArray[np.uint8]:
    """Decode one image and bring it to the size that the network reads.

    The image is turned upright (EXIF), made RGB (transparent pixels over white, the first frame of an animation), its
    short side resized to `resize_size` with bicubic filtering, its centre cropped, and its colours converted from an
    embedded profile to sRGB. An image of the right size is not resampled.

    A JPEG of over a megapixel is decoded at a half, a quarter or an eighth of its size, never below three times
    `resize_size` (libjpeg's scaled decoding). That is ten times faster for a photograph of 2000x1500 and 32 pixels (2.9
    against 29.5 ms, n = 5 times 60 images), takes a fraction of the memory, and changes the result by one level of 256
    in the mean; of these 60 no label changed.

    Args:
        data: The encoded file: JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, or AVIF where Pillow was built with it.
        image_size: Height and width of the result, pixels.
        resize_size: Short side before the crop, pixels; `image_size` when None.
        max_pixels: Most pixels that are decoded, checked before any pixel is.
        take_pixels: Told how many pixels the image has before they are decoded; it may refuse by raising.
        formats: Pillow's names of the formats that are accepted.

    Returns:
        uint8 [image_size, image_size, 3].

    Raises:
        NotAnImageError: The bytes are empty, truncated, not an image, or of samples whose range is not known.
        TooLargeError: The image has more than `max_pixels` pixels, or would have them once it is resized.
        OverloadedError: There is not enough memory.
    """
    resize_size = resize_size or image_size
    if (size := _measure_plain_jpeg(data, resize_size, max_pixels, formats)) is not None:
        height, width = size
        if take_pixels is not None:
            take_pixels(width * height)
            take_pixels = None
        # What libjpeg-turbo objects to in the least, Pillow decodes, or words the error.
        with suppress(ValueError):
            decoded_HWC: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB")
            if height == width == resize_size == image_size:
                return decoded_HWC
            return np.asarray(_fit(Image.fromarray(decoded_HWC), (width, height), image_size, resize_size))
    with _naming_errors(data, max_pixels, formats):
        try:
            image, whole_size = _decode(data, resize_size, max_pixels, take_pixels, formats)
        except _UNDECODABLE as error:
            sizes: list[tuple[int, int]] = []

            def decode_again(mended: bytes) -> Image.Image:
                again, size = _decode(mended, resize_size, max_pixels, None, formats)
                sizes.append(size)
                return again

            found = None if isinstance(error, ServingError) else decode_mended(data, error, decode_again)
            if found is None:
                raise
            image, whole_size = found, sizes[0]
    # Last, on the fewest pixels.
    return np.asarray(convert_to_srgb(_fit(image, whole_size, image_size, resize_size)))


def _measure_plain_jpeg(
    data: bytes, resize_size: int, max_pixels: int, formats: Sequence[str]
) -> tuple[int, int] | None:
    """Return height and width of a small JPEG without metadata, whose pixels are Pillow's; None for other files."""
    if simplejpeg is None or "JPEG" not in formats or not data.startswith(b"\xff\xd8\xff"):
        return None
    structure = glance(data)
    is_small = is_cheap(structure, resize_size) and structure.width * structure.height <= max_pixels
    if not is_small or structure.has_metadata:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (height, width) if colours in _PLAIN_COLOURS else None


@contextmanager
def _naming_errors(data: bytes, max_pixels: int, formats: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLargeError(f"the image has more than {max_pixels:,} pixels; no more are decoded") from error
    except UnidentifiedImageError as error:
        raise NotAnImageError(f"{describe_unread(data)}; use one of {', '.join(formats)}") from error
    except _UNDECODABLE as error:
        if _NO_MEMORY in str(error):
            raise OverloadedError(_SHORTAGE, _RETRY_AFTER_S) from error
        raise NotAnImageError(f"{len(data)} bytes that do not decode as an image ({error})") from error
    except MemoryError as error:
        raise OverloadedError(_SHORTAGE, _RETRY_AFTER_S) from error


def _decode(
    data: bytes,
    resize_size: int,
    max_pixels: int,
    take_pixels: Callable[[int], None] | None,
    formats: Sequence[str],
) -> tuple[Image.Image, tuple[int, int]]:
    """Return the upright RGB image, perhaps at a fraction of its size, and its size in the file, upright."""
    with Image.open(io.BytesIO(data), formats=tuple(formats)) as opened:
        if opened.width * opened.height > max_pixels:
            raise TooLargeError(
                f"the image has {opened.width}x{opened.height} pixels; at most {max_pixels:,} are decoded"
            )
        if take_pixels is not None:
            take_pixels(opened.width * opened.height)
        # A line of 1 x 60,000 pixels is small as it comes and gigantic once its short side is 256.
        if max(opened.size) * resize_size**2 > max_pixels * min(opened.size):
            raise TooLargeError(
                f"the image of {opened.width}x{opened.height} pixels is too long and thin: with "
                f"its short side at {resize_size} it would have more than {max_pixels:,}"
            )
        whole_size = opened.size
        if opened.format in ("JPEG", "MPO") and opened.width * opened.height > LARGE_PIXELS:
            shrunk = DRAFT_FACTOR * resize_size / min(opened.size)
            opened.draft(None, (round(opened.width * shrunk), round(opened.height * shrunk)))
        decoded_size, mode, samples = opened.size, opened.mode, read_range(opened)
        opened.load()  # a TIFF is turned by this, and has no orientation any more
        turn = _find_turn(opened)
        image = _as_rgb(opened, samples)
        image.info = {PROFILE_KEY: opened.info.get(PROFILE_KEY), MODE_KEY: mode}
        opened.close()  # frees its pixels
    if turn is not None:
        image = image.transpose(turn)
    return image, whole_size if image.size == decoded_size else whole_size[::-1]


def _find_turn(image: Image.Image) -> Image.Transpose | None:
    """Return what undoes the camera's rotation; ImageOps.exif_transpose rewrites all tags, also damaged ones."""
    orientation = image.getexif().get(_ORIENTATION)
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def _as_rgb(image: Image.Image, samples: SampleRange | None) -> Image.Image:
    """Return the image in RGB, converted in bands: the whole at once would take up to 20 bytes a pixel."""
    if samples is not None and samples.is_grey:
        image = scale_grey(image, samples)
    elif samples is not None:
        check_colour(image, samples)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image.copy()
    rows = max(1, _BAND_PIXELS // image.width)
    if image.height <= rows:
        return _convert(image)
    converted = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        converted.paste(_convert(band), (0, top))
    return converted


def _convert(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _fit(image: Image.Image, whole_size: tuple[int, int], image_size: int, resize_size: int) -> Image.Image:
    """Resize and crop an image whose size before it was decoded at a fraction was `whole_size`, upright."""
    if min(image.size) != resize_size:
        scale = resize_size / min(whole_size)
        width, height = (max(resize_size, round(side * scale)) for side in whole_size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (image.width - image_size) // 2, (image.height - image_size) // 2
    if image.size == (image_size, image_size):
        return image
    return image.crop((left, top, left + image_size, top + image_size))
