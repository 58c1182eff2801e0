"""Listings: the same records as a table that fits the terminal, as tab-separated text, as JSON lines or as CSV."""

import csv
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import click

from serving.printable import show, show_cell

Form = Literal["table", "json", "csv"]
FORM = "table: fits the terminal, tab-separated in a pipe; json: one object per line; csv."
_GAP = 2
_INDENT = "    "
# Narrower sentences stand below their row.
_LEAST_SENTENCE = 40


def _show_plain(value: Any) -> str:  # noqa: ANN401 - a value of any record
    return "" if value is None else str(value)


@dataclass(frozen=True, eq=False)
class Column:
    """One column of a table.

    Attributes:
        name: Heading.
        key: Name of the value in a record.
        show: Returns the text of a value.
        is_prose: True for sentences: where the table would be too wide, they break in the last column or stand below.
        is_first: True for the value that a row is read for: where the table would be too wide, others stand below.
        colours: Colour in a terminal of each text that has one.
    """

    name: str
    key: str
    show: Callable[[Any], str] = _show_plain
    is_prose: bool = False
    is_first: bool = False
    colours: Mapping[str, str] | None = None

    def format(self, record: Mapping[str, Any]) -> str:
        """Return the text of a record's value, on one line."""
        return show(self.show(record.get(self.key)))


def print_listing(columns: Sequence[Column], records: Sequence[Mapping[str, Any]], form: Form = "table") -> None:
    """Print records on standard output.

    Args:
        columns: Columns of the table; JSON and CSV have every value of the records, under its key.
        records: Values that JSON can hold.
        form: `table`, `json` or `csv`.
    """
    if form == "json":
        for record in records:
            click.echo(json.dumps(record))
    elif form == "csv":
        _print_csv(records)
    elif (width := find_width()) is None:
        click.echo("\t".join(column.name for column in columns))
        for record in records:
            click.echo("\t".join(column.format(record) for column in columns))
    else:
        for line in lay_out(columns, records, width):
            click.echo(line)


def print_heading(line: str) -> None:
    """Print the sentence above a table; in a pipe on standard error, so that the table stands alone."""
    click.echo(line, err=find_width() is None)


def find_width() -> int | None:
    """Return the columns of the terminal, or COLUMNS where that is set; None in a pipe or a file."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    if not (os.environ.get("COLUMNS", "").isdecimal() or is_terminal):
        return None
    return shutil.get_terminal_size().columns


def find_terminal_width() -> int | None:
    """Return the columns that sentences fit; None where standard output is no terminal."""
    return find_width() if sys.stdout is not None and sys.stdout.isatty() else None


def fold_line(line: str, width: int | None) -> str:
    """Return a line broken at its words where a terminal of some columns ends; None leaves it as it is."""
    if width is None:
        return line
    # Paths and commands stay whole: people paste them.
    return textwrap.fill(
        line, max(20, width - 3), subsequent_indent="    ", break_on_hyphens=False, break_long_words=False
    )


def lay_out(columns: Sequence[Column], records: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """Return the lines of a table: a row for each record; what does not fit stands below its row. No word is broken.

    A first value that is wider than the terminal stands on a line of its own, above its row.

    Args:
        columns: Columns; empty ones are left out.
        records: Rows.
        width: Cells of a line.
    """
    used = [one for one in columns if one is columns[0] or any(one.format(record) for record in records)]
    if _measure(used, records, width) <= width:
        return _draw_rows(used, (), records, width)
    if used[-1].is_prose and not any(one.is_prose for one in used[:-1]):
        room = width - _measure(used[:-1], records, width) - _GAP
        if room >= _LEAST_SENTENCE:
            return _draw_rows(used, (), records, width, room)
    kept = used[:1]
    for one in sorted(used[1:], key=lambda one: not one.is_first):
        if not one.is_prose and _measure([*kept, one], records, width) <= width:
            kept.append(one)
    kept.sort(key=used.index)
    return _draw_rows(kept, [one for one in used if one not in kept], records, width)


def _find_widths(columns: Sequence[Column], records: Sequence[Mapping[str, Any]], width: int) -> list[int]:
    from rich.cells import cell_len

    first, *others = ([cell_len(text) for text in (one.name, *map(one.format, records))] for one in columns)
    return [max([first[0], *(cells for cells in first if cells <= width)]), *map(max, others)]


def _measure(columns: Sequence[Column], records: Sequence[Mapping[str, Any]], width: int) -> int:
    return sum(_find_widths(columns, records, width)) + _GAP * (len(columns) - 1)


def _draw_rows(
    columns: Sequence[Column],
    below: Sequence[Column],
    records: Sequence[Mapping[str, Any]],
    width: int,
    room: int | None = None,
) -> list[str]:
    """Return the lines of a table whose last column breaks its sentences after `room` cells."""
    from rich.cells import cell_len

    widths = _find_widths(columns, records, width)
    indent = " " * (sum(widths[:-1]) + _GAP * (len(columns) - 1))
    are_numbers = [all(isinstance(record.get(one.key), int | float | None) for record in records) for one in columns]
    heading = [_pad(*one) for one in zip((one.name for one in columns), widths, are_numbers, strict=True)]
    lines = [(" " * _GAP).join(heading).rstrip(), "─" * min(width, _measure(columns, records, width))]
    for record in records:
        texts = [one.format(record) for one in columns]
        broken: list[str] = []
        if cell_len(texts[0]) > width:
            lines.append(_paint(columns[0], texts[0]))
            texts[0] = ""
        if room is not None and cell_len(texts[-1]) > room:
            texts[-1], *broken = _wrap(texts[-1], room)
        cells = [
            _paint(one, _pad(text, cells, is_number))
            for one, text, cells, is_number in zip(columns, texts, widths, are_numbers, strict=True)
        ]
        lines += [row] if (row := (" " * _GAP).join(cells).rstrip()) else []
        lines += [indent + line for line in broken]
        lines += _draw_fields(below, record, width)
    return lines


def _draw_fields(columns: Sequence[Column], record: Mapping[str, Any], width: int) -> list[str]:
    """Return what stands below a row: short values, then each sentence."""
    values = {one: one.format(record) for one in columns}
    texts = {one: f"{one.name}: {text}" if one.name else text for one, text in values.items() if text}
    short = ", ".join(text for one, text in texts.items() if not one.is_prose)
    sentences = (text for one, text in texts.items() if one.is_prose)
    return [_INDENT + line for text in (short, *sentences) for line in _wrap(text, width - len(_INDENT))]


def _wrap(text: str, width: int) -> Iterator[str]:
    """Yield the lines of a text; unlike `textwrap`, by the cells that characters take."""
    from rich.cells import cell_len

    line = ""
    for word in text.split():
        if line and cell_len(f"{line} {word}") > width:
            yield line
            line = word
        else:
            line = f"{line} {word}".lstrip()
    if line:
        yield line


def _pad(text: str, cells: int, is_number: bool) -> str:
    from rich.cells import cell_len

    space = " " * (cells - cell_len(text))
    return space + text if is_number else text + space


def _paint(column: Column, text: str) -> str:
    colour = (column.colours or {}).get(text.strip())
    return click.style(text, fg=colour) if colour else text


def _print_csv(records: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for each record after one with the names; values as JSON writes them, texts as cells."""
    if not records:
        return
    names = dict.fromkeys(key for record in records for key in record)
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for record in records:
        writer.writerow({key: _show_csv(value) for key, value in record.items()})


def _show_csv(value: Any) -> str:  # noqa: ANN401 - a value of any record
    if isinstance(value, str):
        return show_cell(value)
    return "" if value is None else json.dumps(value, ensure_ascii=False)
