"""Formats of amounts: fractions as percent, differences in points, counts, seconds."""

from model_code.report.published import PublishedFigure, Unit


def format_published(figure: PublishedFigure) -> str:
    """Return a published figure with the digits that it was published with: `82.7 %`, `at most 60 %`."""
    if figure.unit == "fraction":
        text = f"{round(figure.value * 100, 6):g} %"
    elif figure.unit == "count":
        text = f"{figure.value:.0f} of {figure.images:,}"
    else:
        text = f"{figure.value:g} s"
    return f"{figure.qualifier} {text}".lstrip()


def format_mean(mean: float, spread: float | None, unit: Unit, images: int | None = None) -> str:
    """Return `83.10 ± 0.21 %`, `50 of 50,000` or `35.5 ± 0.2 s`; no spread for one run.

    Args:
        mean: In the unit.
        spread: Sample standard deviation in the unit; None for one run.
        unit: Unit of both.
        images: Number of images that a count is of.
    """
    scale, decimals = {"fraction": (100, 2), "count": (1, 0 if spread is None else 1), "seconds": (1, 2)}[unit]
    if unit == "fraction" and 0 < mean < 0.01:
        decimals = 3
    text = f"{mean * scale:,.{decimals}f}"
    if spread is not None:
        text += f" ± {spread * scale:,.{decimals}f}"
    suffix = {"fraction": " %", "count": "" if images is None else f" of {images:,}", "seconds": " s"}[unit]
    return text + suffix


def format_share(fraction: float) -> str:
    """Return one accuracy or share: `83.10 %`."""
    return format_mean(fraction, None, "fraction")


def format_difference(difference: float, unit: Unit) -> str:
    """Return a difference with its sign: `+0.40 points`, `+3 images` or `-1.20 s`."""
    return {
        "fraction": f"{difference * 100:+.2f} points",
        "count": f"{difference:+.0f} images",
        "seconds": f"{difference:+.2f} s",
    }[unit]


def format_points(fractions: tuple[float, ...], has_sign: bool = False) -> list[str]:
    """Return differences of fractions in points, all with as many decimals as the smallest needs not to look zero."""
    points = [fraction * 100 for fraction in fractions]
    decimals = next((d for d in (1, 2, 3) if all(abs(p) < 1e-9 or round(p, d) for p in points)), 4)
    return [f"{round(point, decimals) + 0.0:{'+' if has_sign else ''}.{decimals}f}" for point in points]


def format_seconds(seconds: float | None) -> str:
    """Return `42.1 s`, `3 min 20 s`, `2 h 5 min` from two days on `3 days 4 h`, from ten on `40 days`; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 2 * 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    if whole < 10 * 86400:
        return f"{whole // 86400} days {whole % 86400 // 3600} h"
    return f"{whole / 86400:,.0f} days"
