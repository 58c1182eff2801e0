"""Settings of SimSiam's two-view augmentation."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=1)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Aspect = Annotated[float, Field(ge=0.1, le=10)]
MAX_IMAGE_SIZE = 1024


def _check_ascending(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError("give the smaller value first")
    return interval


def _check_share(crop_area: tuple[float, float]) -> tuple[float, float]:
    if crop_area[1] > 1:
        raise ValueError("a crop covers at most 1, the whole image")
    return crop_area


Interval = Annotated[tuple[_Positive, _Positive], AfterValidator(_check_ascending)]
CropArea = Annotated[Interval, AfterValidator(_check_share)]
ImageSize = Annotated[int, Field(ge=8, le=MAX_IMAGE_SIZE)]
LARGEST_SIZE_WITHOUT_BLUR_PIXELS = 32


class ViewSettings(BaseModel):
    """Augmentation of Chen & He 2021, arXiv:2011.10566, Sec. 3; blur is left out at 32 pixels as in its Appendix D.

    Attributes:
        image_size: Height and width of a view, pixels.
        crop_area: Smallest and largest share of the image's area that a crop covers.
        crop_aspect: Smallest and largest width/height of a crop; its logarithm is uniform.
        flip_probability: Probability of mirroring left to right.
        jitter_probability: Probability of changing the colours at all.
        brightness: Largest change; the factor is uniform in 1 - brightness to 1 + brightness.
        contrast: The same for contrast.
        saturation: The same for saturation.
        hue: Largest turn of the colour circle, in full turns.
        grayscale_probability: Probability of losing all colour.
        blur_probability: Probability of a Gaussian blur; views of 32 pixels and less are never blurred.
        blur_sigma_pixels: Smallest and largest standard deviation of the blur; sigma is uniform.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: ImageSize = 32
    crop_area: CropArea = (0.2, 1.0)
    crop_aspect: Annotated[tuple[_Aspect, _Aspect], AfterValidator(_check_ascending)] = (3 / 4, 4 / 3)
    flip_probability: Probability = 0.5
    jitter_probability: Probability = 0.8
    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    grayscale_probability: Probability = 0.2
    blur_probability: Probability = 0.5
    blur_sigma_pixels: Interval = (0.1, 2.0)

    @property
    def has_blur(self) -> bool:
        """Whether any view is blurred."""
        return self.blur_probability > 0 and self.image_size > LARGEST_SIZE_WITHOUT_BLUR_PIXELS
