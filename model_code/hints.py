"""Hints in refusals: the known names that are near a given one, and the rule of a setting that a value breaks."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# Pydantic's kind of error -> the rule; names in braces are in its context.
_RULES = {
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be finite",
    "literal_error": "must be {expected}",
    **dict.fromkeys(("float_parsing", "float_type"), "must be a number"),
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "must be true or false"),
    "string_type": "must be text",
}


def suggest(*names: str, known: Iterable[str], count: int = 1, least_ratio: float = 0.6) -> str:
    """Return `did you mean NAME? `, with up to `count` similar known names for each that was given, or nothing.

    Args:
        names: Names that were given.
        known: Names that are allowed.
        count: Most suggestions for a name.
        least_ratio: Least share of equal characters, as `difflib.SequenceMatcher.ratio` counts them.
    """
    from difflib import get_close_matches

    allowed = list(known)
    near = [match for name in names for match in get_close_matches(name, allowed, n=count, cutoff=least_ratio)]
    return f"did you mean {', '.join(dict.fromkeys(near))}? " if near else ""


def explain_rule(error: "ErrorDetails") -> str:
    """Return which rule a value breaks: `must be at least 1`."""
    rule = _RULES.get(error["type"])
    return error["msg"].removeprefix("Value error, ") if rule is None else rule.format(**error.get("ctx", {}))
