"""Start-up of the command: `python -m benchmarks.startup --home HOME [--code before=FOLDER]`.

Each command is a process of its own, timed until its first line and until its end, in turns with `python -c pass`: the
ratio to that says how long a person waits, whatever else the machine does. The longest time without a line is measured
too; output is a pipe, so that progress is lines. Lines that tell of the silence itself do not end it.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from serving.listing import Column, print_listing

EMPTY = "python -c pass"
RUN = "from flows.cli import main; main()"
# Reading commands, refusals that need no work, then work; the `ui`, which runs until it is stopped, is stopped.
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
    "train pixels_cifar10_random --profile smoke --data shapes",
    "train fastnet_cifar10 --data shapes --epochs 1 --limit-train 256",
    "release fastnet_cifar10 --as shapes --mode dry_run",
    "report",
    "ui --port 5055",
)
LIMIT_S = 15.0


def main() -> None:
    """Measure every command of each code, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--home", type=Path, required=True, help="DARKROOM_HOME with the images and a release called shapes"
    )
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
    times: dict[tuple[str, str], list[Times]] = {}
    for _ in range(options.repeats):
        empty.append(measure([sys.executable, "-c", "pass"], {}).end_s)
        for command in options.only or COMMANDS:
            for label, folder in codes.items():
                changes = {"DARKROOM_HOME": str(options.home), "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"}
                words = [sys.executable, "-P", "-c", RUN, *command.split()]
                limit_s = LIMIT_S if command.startswith("ui") else None
                times.setdefault((command, label), []).append(measure(words, changes, limit_s))
    records = summarise(empty, times)
    columns = (
        Column("command", "command"),
        Column("code", "code"),
        Column("first line, ms", "first_line_ms"),
        Column("longest silence, ms", "silence_ms"),
        Column("end, ms", "end_ms"),
        Column(f"times {EMPTY}", "ratio"),
    )
    print(f"medians of {options.repeats}; {EMPTY}: {statistics.median(empty) * 1000:.0f} ms")
    print_listing(columns, records)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n")


class Times(NamedTuple):
    """Seconds until a command's first line of any output, without a line at most, and until its end."""

    first_s: float
    silence_s: float
    end_s: float


def measure(words: list[str], changes: dict[str, str], limit_s: float | None = None) -> Times:
    """Time a command; with a limit it is interrupted then."""
    started_s = time.perf_counter()
    at_s = [0.0]
    with subprocess.Popen(
        words, env=os.environ | changes, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        stopper = threading.Timer(limit_s or 0, process.send_signal, (signal.SIGINT,))
        if limit_s is not None:
            stopper.start()
        at_s += (time.perf_counter() - started_s for line in process.stdout if b"s so far" not in line)
        stopper.cancel()
    end_s = time.perf_counter() - started_s
    # What is stopped waits to be: only its silences before its last line count.
    until_s = [*at_s, end_s] if limit_s is None or end_s < limit_s else [one for one in at_s if one < limit_s]
    gaps = [after - before for before, after in itertools.pairwise(until_s)] or [end_s]
    return Times(at_s[1] if len(at_s) > 1 else end_s, max(gaps), end_s)


def summarise(empty: list[float], times: dict[tuple[str, str], list[Times]]) -> list[dict[str, Any]]:
    """Return a record for each command and code: medians in ms, and the ratio of the end to an empty program's."""
    base = statistics.median(empty)
    return [
        {
            "command": command,
            "code": label,
            "first_line_ms": round(statistics.median(one.first_s for one in measured) * 1000),
            "silence_ms": round(statistics.median(one.silence_s for one in measured) * 1000),
            "end_ms": round(statistics.median(one.end_s for one in measured) * 1000),
            "ratio": round(statistics.median(one.end_s for one in measured) / base, 1),
        }
        for (command, label), measured in times.items()
    ]


if __name__ == "__main__":
    main()
