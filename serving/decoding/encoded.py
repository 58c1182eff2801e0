"""An encoded image, as it arrived."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from serving.bundle.image_structure import Structure, glance


@dataclass(frozen=True)
class EncodedImage:
    """One image as it was sent.

    Attributes:
        data: The encoded file.
        filename: The client's name for it; None for a raw body.
    """

    data: bytes
    filename: str | None

    @cached_property
    def structure(self) -> Structure:
        """Structure of the file, at a glance."""
        return glance(self.data)

    @cached_property
    def sha256(self) -> str:
        """Of the file, lower-case hexadecimal; computed once, at some milliseconds for a large one."""
        return hashlib.sha256(self.data).hexdigest()
