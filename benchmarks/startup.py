"""Start-up of the command: `python -m benchmarks.startup --home HOME [--code before=FOLDER]`.

Each command is a process of its own, timed until its first line and until its end, in turns with `python -c pass`: the
ratio to that says how long a person waits, whatever else the machine does.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from serving.listing import Column, print_listing

EMPTY = "python -c pass"
RUN = "from flows.cli import main; main()"
# Reading commands, then refusals that need no work.
COMMANDS = (
    "--help",
    "data list",
    "recipes",
    "runs list",
    "models",
    "history shapes",
    "train nosuch",
    "data add mine --from /nosuch",
    "release nosuch --as shapes",
)


def main() -> None:
    """Measure every command of each code, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="DARKROOM_HOME with a release called shapes")
    parser.add_argument(
        "--code", action="append", default=[], metavar="LABEL=FOLDER", help="another checkout; repeatable"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="COMMAND", help="commands to measure; repeatable"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    codes = {"here": Path(__file__).parents[1]} | {
        label: Path(folder) for label, _, folder in (one.partition("=") for one in options.code)
    }
    empty: list[float] = []
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(options.repeats):
        empty.append(measure([sys.executable, "-c", "pass"], {})[1])
        for command in options.only or COMMANDS:
            for label, folder in codes.items():
                changes = {"DARKROOM_HOME": str(options.home), "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"}
                words = [sys.executable, "-P", "-c", RUN, *command.split()]
                times.setdefault((command, label), []).append(measure(words, changes))
    records = summarise(empty, times)
    columns = (
        Column("command", "command"),
        Column("code", "code"),
        Column("first line, ms", "first_line_ms"),
        Column("end, ms", "end_ms"),
        Column(f"times {EMPTY}", "ratio"),
    )
    print(f"medians of {options.repeats}; {EMPTY}: {statistics.median(empty) * 1000:.0f} ms")
    print_listing(columns, records)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n")


def measure(words: list[str], changes: dict[str, str]) -> tuple[float, float]:
    """Return the seconds until a command's first line of any output, and until its end."""
    start_s = time.perf_counter()
    with subprocess.Popen(
        words, env=os.environ | changes, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        first_s = time.perf_counter() - start_s
        process.stdout.read()
    return first_s, time.perf_counter() - start_s


def summarise(empty: list[float], times: dict[tuple[str, str], list[tuple[float, float]]]) -> list[dict[str, Any]]:
    """Return a record for each command and code: medians in ms, and the ratio of the end to an empty program's."""
    base = statistics.median(empty)
    return [
        {
            "command": command,
            "code": label,
            "first_line_ms": round(statistics.median(first for first, _ in measured) * 1000),
            "end_ms": round(statistics.median(end for _, end in measured) * 1000),
            "ratio": round(statistics.median(end for _, end in measured) / base, 1),
        }
        for (command, label), measured in times.items()
    ]


if __name__ == "__main__":
    main()
