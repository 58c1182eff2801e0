"""Tables of labels and of file names: read as people, spreadsheets and pandas save them, written as CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from model_code.disk import write_atomically, writing_to
from model_code.errors import DataError

# What pandas and spreadsheets write for a missing label.
NO_LABELS = {"", "nan", "<na>", "n/a", "#n/a", "null"}


def decode_table(data: bytes, where: str) -> str:
    """Return the text of a table in UTF-8 or UTF-16.

    Raises:
        DataError: It is in another encoding.
    """
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
        if "\0" in text:
            raise ValueError("it has zero bytes, as UTF-16 without a byte order mark does")
    except ValueError as error:
        raise DataError(f"{where} is not a table in UTF-8 or UTF-16 ({error}); save it in UTF-8") from error
    return text


def read_rows(data: bytes, where: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header in lower case and the rows with their line numbers, separated by comma, semicolon or tab.

    Raises:
        DataError: It is no such table, or two columns have one name.
    """
    text = decode_table(data, where)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise DataError(
            f"{where} is not a table with commas, semicolons or tabs ({error} in line {reader.line_num})"
        ) from error
    header = [name.strip().casefold() for name in rows[0][1]] if rows else []
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise DataError(f"{where}: the column {' and '.join(twice)} is there twice; remove one of them")
    return header, rows[1:]


def write_table(
    file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], *, keeps_edited: bool = False
) -> bool:
    """Write a CSV table.

    Args:
        file: The table.
        columns: Its header.
        rows: Values of each row.
        keeps_edited: True to leave a file with another content as it is.

    Returns:
        False if there was such a file.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    content = text.getvalue().encode(errors="backslashreplace")
    if keeps_edited and file.exists() and file.read_bytes() != content:
        return False
    with writing_to(file.parent, len(content), f"writing {file.name}"):
        write_atomically(file, content)
    return True
