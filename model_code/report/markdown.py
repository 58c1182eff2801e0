"""A report as Markdown; its figures are PNG files in `figures/` beside it."""

from model_code.markdown_text import escape, join_cells
from model_code.report.document import Block, Cell, Document, Folded, Heading, ImageGroup, Paragraph, Table

FIGURES_FOLDER = "figures"
SHORT_ID = 8
_BAR = r"\|"  # in a table also within code


def render_markdown(document: Document) -> str:
    """Return the report as one Markdown text."""
    parts = [f"# {escape(document.title)}"]
    for section in document.sections:
        parts.append(f"## {escape(section.title)}")
        parts += [_render(block) for block in section.blocks]
    parts.append("\n".join(f"- {what}: {escape(value)}" for what, value in document.facts))
    return "\n\n".join(parts) + "\n"


def _escape_alt(text: str) -> str:
    return escape(text).replace("[", "\\[").replace("]", "\\]")


def _render(block: Block) -> str:
    if isinstance(block, Heading):
        return f"### {escape(block.text)}"
    if isinstance(block, Paragraph):
        return f"**Caution:** {escape(block.text)}" if block.is_caution else escape(block.text)
    if isinstance(block, Folded):
        return f"<details><summary>{escape(block.title)}</summary>\n\n{_render(block.block)}\n\n</details>"
    if isinstance(block, Table):
        return _render_table(block)
    return _render_group(block)


def _render_table(table: Table) -> str:
    lines = [f"*{escape(table.caption)}*", "", join_cells([escape(column) for column in table.columns])]
    lines.append(join_cells(["---"] * len(table.columns)))
    lines += [join_cells([_render_cell(cell) for cell in row]) for row in table.rows]
    return "\n".join(lines)


def _render_cell(cell: Cell) -> str:
    text = (
        f"`{cell.text.replace('|', _BAR)}`"
        if cell.is_code and cell.text and "`" not in cell.text
        else escape(cell.text)
    )
    if cell.address:
        text = f"[{text}]({cell.address})"
    if cell.is_caution and text:
        text = f"*{text}*"
    runs = " ".join(f"`{run_id[:SHORT_ID]}`" for run_id in cell.run_ids)
    detail = f"<br>{escape(cell.detail)}" if cell.detail else ""
    return " ".join(part for part in (text, runs) if part) + detail


def _render_group(group: ImageGroup) -> str:
    images = "\n".join(f"![{_escape_alt(image.alt)}]({FIGURES_FOLDER}/{image.name}.png)" for image in group.images)
    runs = " ".join(f"`{run_id[:SHORT_ID]}`" for run_id in group.run_ids)
    source = f" Runs: {runs}" if runs else ""
    return f"**{escape(group.title)}**\n\n{images}\n\n{escape(group.caption)}{source}"
