"""Issues of a data set as one self-contained HTML file, and as a table."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

TEMPLATE = "data_page.html.j2"
THUMBNAIL_PIXELS = 96
COLUMNS = ("file", "kind", "split", "label", "detail", "score", "twin")


@dataclass(frozen=True)
class Issue:
    """An image that somebody should look at.

    Attributes:
        file: Its name, as `data add --exclude` takes it.
        kind: Kind of the issue, the same for all of a section.
        split: Its split.
        label: Its label; empty without one.
        detail: What is wrong, for people.
        score: Rank within its kind, in [0, 1], 1 for the worst.
        pixels_HWC: The image.
        twin: Name of the image that it is a copy of; empty for other kinds.
        twin_HWC: That image.
    """

    file: str
    kind: str
    split: str
    label: str
    detail: str
    score: float
    pixels_HWC: npt.NDArray[np.uint8]
    twin: str = ""
    twin_HWC: npt.NDArray[np.uint8] | None = None

    @property
    def row(self) -> tuple[str, ...]:
        """Values of `COLUMNS`."""
        return (self.file, self.kind, self.split, self.label, self.detail, f"{self.score:.3f}", self.twin)


def render_data_page(title: str, lines: Sequence[str], issues: Sequence[Issue], most_shown: int = 200) -> str:
    """Return the page.

    Args:
        title: Title of the page.
        lines: Paragraphs at its top.
        issues: Those of a kind together, ranked.
        most_shown: Images of a kind; the table has all.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thumbnail"] = _encode
    kinds = {kind: [one for one in issues if one.kind == kind] for kind in dict.fromkeys(one.kind for one in issues)}
    template = environment.get_template(TEMPLATE)
    return template.render(title=title, lines=lines, kinds=kinds, most_shown=most_shown)


def _encode(pixels_HWC: npt.NDArray[np.uint8]) -> str:
    image, content = Image.fromarray(pixels_HWC), io.BytesIO()
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    image.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
