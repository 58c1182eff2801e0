"""Lines of text, and numbers in tables."""

from serving.listing import find_terminal_width, fold_line
from serving.printable import show


def format_accuracy(fraction: float | None) -> str:
    """Return an accuracy as tables and results show it; nothing for None."""
    return "" if fraction is None else f"{fraction:.4f}"


def print_line(line: str) -> None:
    """Print a line of text, whatever names are in it; on a terminal it breaks at words."""
    print(fold_line(show(line), find_terminal_width()), flush=True)
