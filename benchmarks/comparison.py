"""A comparison: contenders that do the same task, measured in turn, and the table of what came out."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

OURS = "ours"
NOT_MEASURED = "not measured: "
SECONDS = "s"
Pass = Callable[[], float]


@dataclass(frozen=True)
class Comparison:
    """Contenders that do the same task.

    Attributes:
        unit: Unit of every figure; of seconds few are good, of everything else much.
        contenders: Name -> one timed pass.
        notes: Name -> what a contender does differently, or why it is not measured.
        wholes: The largest of these contenders is the whole that the others are given in percent of.
    """

    unit: str
    contenders: dict[str, Pass]
    notes: dict[str, str] = field(default_factory=dict)
    wholes: tuple[str, ...] = ()

    def add_optional(self, name: str, make: Callable[[], Pass]) -> None:
        """Add a contender whose library may be missing; then a note says so."""
        try:
            self.contenders[name] = make()
        except ImportError as error:
            self.notes[name] = f"{NOT_MEASURED}{error}"


def alternate(title: str, comparison: Comparison, repeats: int) -> dict[str, Any]:
    """Run the contenders in turn, so that whatever else the machine does hits all of them; return the record.

    The record has a figure for each contender: n, median, least, most, every value and, where they make sense, how many
    times as fast ours is and the percentage of the whole.
    """
    values: dict[str, list[float]] = {name: [] for name in comparison.contenders}
    for repeat in range(repeats):
        for name, measure in comparison.contenders.items():
            # Our runs switch this on for the whole process; the others are not to pay for it.
            torch.use_deterministic_algorithms(False)
            values[name].append(measure())
            print(f"{title}  {repeat + 1}/{repeats}  {name}: {values[name][-1]:,.4g} {comparison.unit}", flush=True)
    medians = {name: statistics.median(found) for name, found in values.items()}
    whole = max(comparison.wholes, key=medians.__getitem__, default=None)
    figures = []
    for name, found in values.items():
        figure = {"what": name, "n": len(found), "median": medians[name], "min": min(found), "max": max(found)}
        if OURS in medians and name != OURS:
            ratio = medians[OURS] / medians[name]
            figure["ours_times_as_fast"] = 1 / ratio if comparison.unit == SECONDS else ratio
        if whole is not None and name != whole:
            figure["percent_of_whole"] = 100 * medians[name] / medians[whole]
        figures.append(figure | {"values": found})
    return {
        "title": title,
        "unit": comparison.unit,
        "whole": whole,
        "figures": figures,
        "notes": comparison.notes,
        "peak_memory_bytes": _read_peak_memory(),
    }


def build_table(record: dict[str, Any]) -> Table:
    """Return the table of one record for people."""
    has_ours = any("ours_times_as_fast" in figure for figure in record["figures"])
    beside = f"of {record['whole']}" if record["whole"] else "ours is" if has_ours else ""
    table = Table(record["title"], record["unit"], "least to most", "n", beside, box=box.SIMPLE_HEAD)
    notes = record["notes"]
    for figure in record["figures"]:
        note = f" ({notes[figure['what']]})" if figure["what"] in notes else ""
        spread = f"{_format(figure['min'])} to {_format(figure['max'])}"
        table.add_row(figure["what"] + note, _format(figure["median"]), spread, str(figure["n"]), _describe(figure))
    for name, note in notes.items():
        if note.startswith(NOT_MEASURED):
            table.add_row(f"{name} ({note})", "-")
    gibibytes = record["peak_memory_bytes"] / 2**30
    table.caption = f"peak memory of its process, without DataLoader's workers: {gibibytes:.2f} GiB"
    return table


def print_report(report: dict[str, Any]) -> None:
    """Print the machine, the versions and a table for each comparison."""
    console = Console(width=120)
    for group in ("machine", "versions"):
        console.print(", ".join(f"{name} {value}" for name, value in report[group].items()), highlight=False)
    console.print(f"commit {report['git_sha']}", highlight=False)
    for record in report["comparisons"]:
        console.print(build_table(record))


def _read_peak_memory() -> int:
    """Return the most that this process has held, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def _describe(figure: dict[str, Any]) -> str:
    if "percent_of_whole" in figure:
        return f"{figure['percent_of_whole']:.3g} %"
    return f"{figure['ours_times_as_fast']:.2f} times as fast" if "ours_times_as_fast" in figure else ""


def _format(value: float) -> str:
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"
