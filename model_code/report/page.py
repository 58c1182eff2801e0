"""A report as one HTML file that needs nothing else: no script, no font, no image from elsewhere."""

import base64
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from model_code.report.document import Document, Folded, Heading, Image, Paragraph, Table

TEMPLATE = "page.html.j2"
SHORT_ID = 8


def render_page(document: Document) -> str:
    """Return the report as HTML; everything that comes from a run is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"data_uri": _encode, "breakable": _break_names}
    environment.tests |= {
        "heading": lambda block: isinstance(block, Heading),
        "paragraph": lambda block: isinstance(block, Paragraph),
        "table": lambda block: isinstance(block, Table),
        "folded": lambda block: isinstance(block, Folded),
        "grouped": lambda table: any(row[0].height != 1 for row in table.rows),
    }
    return environment.get_template(TEMPLATE).render(document=document, short=SHORT_ID)


def _break_names(text: str) -> Markup:
    """Return escaped text that may break in a narrow column: after `_` and `/`, and in the middle of an id."""
    return Markup("<wbr>").join(re.split(r"(?<=[_/])(?=.)|(?<=[0-9a-f]{16})(?=[0-9a-f]{16})", text))


def _encode(image: Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(image.png).decode()}"
