"""Repeated measurements as median and spread."""

import statistics
from typing import Any


def summarise(values: list[float]) -> dict[str, Any]:
    """Return n, median, least, most and every value."""
    return {
        "n": len(values),
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": values,
    }


def format_summary(summary: dict[str, Any], digits: int = 0) -> str:
    """Return `median (least to most)`; the median alone where there is one value."""
    median, least, most = (f"{summary[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({least} to {most})" if summary["n"] > 1 else median
