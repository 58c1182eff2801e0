"""Embedded colour profiles -> sRGB, the colours that a browser shows."""

import io

from PIL import Image, ImageCms

PROFILE_KEY, MODE_KEY = "icc_profile", "mode"
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "F")
_SRGB = ImageCms.createProfile("sRGB")


def convert_to_srgb(image: Image.Image) -> Image.Image:
    """Return an RGB image in the colours of sRGB, by relative colorimetric intent.

    An image without a profile, with one of sRGB or of another colour model than its own, or with a damaged one stays as
    it is.

    Args:
        image: In RGB; in `info` the profile as Pillow reads it, and the mode in which the file was read.
    """
    data = image.info.get(PROFILE_KEY)
    if not isinstance(data, bytes) or not data:
        return image
    is_grey = image.info[MODE_KEY] in _GREY_MODES
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        is_own = profile.profile.xcolor_space == ("GRAY" if is_grey else "RGB ")
        if not is_own or "sRGB" in (profile.profile.profile_description or ""):
            return image
        samples = image.getchannel(0) if is_grey else image
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        converted = ImageCms.profileToProfile(samples, profile, _SRGB, renderingIntent=intent, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    return image if converted is None else converted
