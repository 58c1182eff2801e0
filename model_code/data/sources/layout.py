"""Layouts that show by their files, and data sets with a name of their own; each registers beside its definition.

A layout is read from one source, but for class folders (`class_folders.py`), which any source without another layout is
taken for. A data set with a name of its own has a size, and may have official classes, a reader or a drawing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from model_code.data.sources.archives import Archive
from model_code.data.sources.images import ImageSource

OTHER_IMAGE_SIZE = 64
ReadArchive = Callable[[Archive, tuple[str, ...] | None], ImageSource]
ReadArchives = Callable[[Sequence[Archive], bool], ImageSource]
Fetch = Callable[[Path, str | None, bool], Path]
Read = TypeVar("Read", bound=ReadArchive)


@dataclass(frozen=True)
class Layout:
    """One arrangement of files.

    Attributes:
        shown: Its visible form, for messages.
        is_found: True for an archive that has it.
        read: Lists the images of an open archive; the second argument is the data set's official classes in their
            order, None to sort them by name (`order_classes`). Raises DataError for what is wrong.
    """

    shown: str
    is_found: Callable[[Archive], bool]
    read: ReadArchive


@dataclass(frozen=True)
class KnownDataset:
    """What the name of a data set says.

    Attributes:
        image_size: Height and width of its packed images unless another size is given, pixels.
        classes: Official order; None to sort by name.
        read: Lists the images of its own layout, from open archives; the second argument is True to leave out what
            can be left out of all that is wrong.
        settles_problems: True if `read` reports the problems of the archives.
        draw: Draws its images at a size; there is no source then.
        version: Raised whenever an image is drawn differently, so that packed sets are made anew.
        fetch: Downloads the published archive into a folder, from an address other than the published one if a second
            argument names one, with progress if the third is True; None where a person has to get the images.
        counts: Images of each split of what is drawn or downloaded; empty for other sources.
        files: Names of the published files, for messages; empty where any path will do.
        origin: Source of the images, for messages; empty for those that are drawn or downloaded, and for other names.
    """

    image_size: int = OTHER_IMAGE_SIZE
    classes: tuple[str, ...] | None = None
    read: ReadArchives | None = None
    settles_problems: bool = False
    draw: Callable[[int], ImageSource] | None = None
    version: int = 0
    fetch: Fetch | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    origin: str = ""

    @property
    def is_fetchable(self) -> bool:
        """Whether its images are drawn or downloaded, and nobody has to bring them."""
        return self.draw is not None or self.fetch is not None


LAYOUTS: list[Layout] = []
DATASETS: dict[str, KnownDataset] = {}


def layout(shown: str, is_found: Callable[[Archive], bool]) -> Callable[[Read], Read]:
    """Register a reader as that of a layout; the arguments are those of `Layout`."""

    def enter(read: Read) -> Read:
        LAYOUTS.append(Layout(shown, is_found, read))
        return read

    return enter
