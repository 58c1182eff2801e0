"""A report as one HTML file that needs nothing else: no script, no font, no image from elsewhere."""

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from model_code.report.document import Document, Folded, Heading, Image, ImageGroup, Paragraph, Table

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
    environment.filters["data_uri"] = _encode
    environment.tests |= {
        "heading": lambda block: isinstance(block, Heading),
        "paragraph": lambda block: isinstance(block, Paragraph),
        "table": lambda block: isinstance(block, Table),
        "folded": lambda block: isinstance(block, Folded),
        "picture": lambda block: isinstance(block, ImageGroup),
    }
    return environment.get_template(TEMPLATE).render(document=document, short=SHORT_ID)


def _encode(image: Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(image.png).decode()}"
