"""Text that Markdown shows as it is, and rows of tables."""

from collections.abc import Iterable

_ESCAPES = str.maketrans(
    {
        "\\": "\\\\",
        "|": "\\|",
        "*": "\\*",
        "`": "\\`",
        "<": "&lt;",
        "\n": " ",
        "\r": " ",
    }
)


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return text.translate(_ESCAPES).replace("](", "]\\(")


def join_cells(cells: Iterable[str]) -> str:
    """Return one row of a table; the cells are Markdown already."""
    return f"| {' | '.join(cells)} |"
