"""Plan of a study: its runs, and about how long each would take."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.printing.lines import print_line
from serving.listing import Form, print_listing

if TYPE_CHECKING:
    from flows.printing.summaries import Plan

PLAN_WIDTH, _NO_BREAK = 80, "\xa0"


def print_plans(plans: "Sequence[Plan]", form: Form = "table", *, is_released: bool) -> None:
    """Print what would become of the runs: data set by data set, with the time of each recipe, and the sum."""
    if form != "table":
        print_listing((), [plan.model_dump() for plan in plans], form)
        return
    from model_code.report.amounts import format_seconds

    _print_groups(plans)
    total_s = sum(plan.seconds or 0 for plan in plans)
    if total_s:
        print_line(f"together about {format_seconds(total_s)} on this machine")
    elif any(plan.state.startswith("skip") for plan in plans):
        print_line("nothing can be trained before what is missing is here")
    else:
        print_line("nothing is left to train")
    if is_released:
        print_line("then the best run of each data set would be released, and the report written")


def print_blocked(plans: "Sequence[Plan]") -> None:
    """Print which runs of a study that begins lack something, as `print_plans` does."""
    if plans:
        print_line("without images or weights to start from; unless these are here at their turn, left out:")
        _print_groups(plans)


def _print_groups(plans: "Sequence[Plan]") -> None:
    from model_code.report.amounts import format_seconds

    groups: dict[tuple[str, str], list[Plan]] = {}
    for plan in plans:
        groups.setdefault((plan.dataset, plan.state), []).append(plan)
    for (dataset, state), group in groups.items():
        total_s = sum(plan.seconds or 0 for plan in group)
        word, _, reason = state.partition(": ")
        time = f"  about {format_seconds(total_s)}" if total_s else ""
        print_line(f"{dataset}  {word}  {len(group)} {'run' if len(group) == 1 else 'runs'}{time}")
        # A data set that is not here stops all of its recipes alike.
        _print_wrapped(reason if word == "skip" else f"{_list_recipes(group)}{': ' if reason else ''}{reason}")


def _list_recipes(plans: "Sequence[Plan]") -> str:
    """Return the recipes of a group, the longest first, each with the time of all its seeds."""
    from model_code.report.amounts import format_seconds

    seconds: dict[str, list[float]] = {}
    for plan in plans:
        seconds.setdefault(plan.recipe, []).append(plan.seconds or 0)
    entries = (
        recipe + (f" x{len(runs)}" if len(runs) > 1 else "") + (f" {format_seconds(sum(runs))}" if any(runs) else "")
        for recipe, runs in sorted(seconds.items(), key=lambda item: -sum(item[1]))
    )
    return ", ".join(entry.replace(" ", _NO_BREAK) for entry in entries)


def _print_wrapped(text: str) -> None:
    for line in textwrap.wrap(
        text,
        PLAN_WIDTH,
        initial_indent="    ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    ):
        print_line(line.replace(_NO_BREAK, " "))
