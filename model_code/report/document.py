"""Blocks of a report, before they become Markdown or HTML."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: Its text.
        detail: Small print under it.
        run_ids: Full MLflow ids, shown short after the text.
        is_caution: Marked as something that must not be taken for a result.
        is_code: A name of the code.
        anchor: Target of links to a run; empty for none.
        height: Rows that the cell spans; 0 where one above spans this place.
        address: Target of the text's link; empty for none.
    """

    text: str = ""
    detail: str = ""
    run_ids: tuple[str, ...] = ()
    is_caution: bool = False
    is_code: bool = False
    anchor: str = ""
    address: str = ""
    height: int = 1


@dataclass(frozen=True)
class Table:
    """A table; every row has one cell for each column."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Paragraph:
    """Some sentences."""

    text: str
    is_caution: bool = False


@dataclass(frozen=True)
class Heading:
    """A title inside a section; `anchor` is unique in the report."""

    text: str
    anchor: str


@dataclass(frozen=True)
class Image:
    """A drawn figure.

    Attributes:
        name: File name without its ending, unique in the report.
        png: The file.
        width_pixels: Width to show it at.
        alt: Description for those who do not see it.
    """

    name: str
    png: bytes
    width_pixels: int
    alt: str


@dataclass(frozen=True)
class ImageGroup:
    """Images with one title above, one caption below and the runs that they come from."""

    title: str
    images: tuple[Image, ...]
    caption: str
    run_ids: tuple[str, ...]


@dataclass(frozen=True)
class Folded:
    """A block behind a title that opens it: what was not run, and what few readers need."""

    title: str
    block: Table | ImageGroup


Block = Folded | Table | Paragraph | Heading | ImageGroup


@dataclass(frozen=True)
class Section:
    """A numbered part of the report."""

    title: str
    anchor: str
    blocks: tuple[Block, ...]

    @property
    def headings(self) -> tuple[Heading, ...]:
        """The titles inside it."""
        return tuple(block for block in self.blocks if isinstance(block, Heading))


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title: Title of the page.
        facts: (what, value): when and where it was made; they stand at the end.
        sections: In order.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]

    @property
    def images(self) -> tuple[Image, ...]:
        """Every image, in order."""
        blocks = [_unfold(block) for section in self.sections for block in section.blocks]
        return tuple(image for block in blocks if isinstance(block, ImageGroup) for image in block.images)


def list_run_ids(sections: tuple[Section, ...]) -> list[str]:
    """Return the id of every run that some cell or image comes from, each once, in order."""
    found: dict[str, None] = {}
    for section in sections:
        for block in map(_unfold, section.blocks):
            if isinstance(block, ImageGroup):
                found |= dict.fromkeys(block.run_ids)
            elif isinstance(block, Table):
                for row in block.rows:
                    for cell in row:
                        found |= dict.fromkeys(cell.run_ids)
    return list(found)


def _unfold(block: Block) -> Block:
    return block.block if isinstance(block, Folded) else block


def compact(table: Table) -> Table:
    """Return a table without the columns, its first apart, in which no row says anything."""

    def says_something(cell: Cell) -> bool:
        return cell.text not in ("", "-") or bool(cell.detail or cell.run_ids)

    indices = range(len(table.columns))
    kept = [index for index in indices if index == 0 or any(says_something(row[index]) for row in table.rows)]
    rows = tuple(tuple(row[index] for index in kept) for row in table.rows)
    return replace(table, columns=tuple(table.columns[index] for index in kept), rows=rows)
