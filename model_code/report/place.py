"""Place of the report: what the system says about it in one line, before and while it is written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_code.errors import DataError


@contextmanager
def writing_report(folder: Path) -> Iterator[None]:
    """Say in one line that the report cannot be written to a folder.

    Raises:
        DataError: It cannot.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"the report cannot be written to {folder} ({error.__cause__}); name another --out") from error
