"""Text from files, folders and other machines, made fit for terminals, logs and spreadsheets."""

import logging
import re

from serving.request_record import REQUEST_ID

# What Excel, LibreOffice and Google Sheets take for the start of a formula, also behind spaces, and in full width.
_FORMULA = re.compile(r"\s*[=+\-@\t\r|%\uff1d\uff0b\uff0d\uff20]")


def show(text: object) -> str:
    r"""Return text on one line that moves no cursor and hides nothing: what is not printable becomes `\x1b`, `\n`."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in str(text))


def show_cell(text: str) -> str:
    """Return text for a cell of a CSV file, which no spreadsheet calculates: a quote stands before a formula."""
    return f"'{show(text)}" if _FORMULA.match(text) else show(text)


class PrintableFormatter(logging.Formatter):
    """Writes each record as one line, with the id of its request; a traceback follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the record's line, whatever names are in its message."""
        record.message = show(record.message)
        request_id = REQUEST_ID.get()
        return super().formatMessage(record) + (f" [request {request_id}]" if request_id else "")
