"""The GPU part of docs/benchmarks.md, written from the JSON files of the stages."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.proof import format_figure

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- gpu-proof: begin -->", "<!-- gpu-proof: end -->"


def write_page(records: Iterable[Mapping[str, Any]], stages: Iterable[str], page: Path = PAGE) -> None:
    """Replace the part between the marks; a stage without figures of a GPU is "not measured"."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{build_part(records, stages)}{END}{after}", encoding="utf-8")


def build_part(records: Iterable[Mapping[str, Any]], stages: Iterable[str]) -> str:
    """Return the part as Markdown."""
    measured = {
        record["stage"]: record
        for record in records
        if record["machine"]["device"].startswith("cuda") and not record["is_dry"]
    }
    parts = []
    for stage in stages:
        record = measured.get(stage)
        if record is None:
            parts.append(f"`{stage}`: not measured.\n")
            continue
        machine = record["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        parts.append(
            f"`{stage}`: {machine['device']}, CUDA {machine['cuda']}, Python {machine['python']}, {versions}, commit "
            f"`{machine['git_sha'][:12]}`; n = 1.\n\n{_build_table(record['entries'])}"
        )
    return "\n".join(parts)


def _build_table(entries: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for figures in entries.values() for name in figures if name != "not_measured"))
    lines = ["| what | " + " | ".join(name.replace("_", " ") for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for entry, figures in entries.items():
        if "not_measured" in figures:
            cells = [f"not measured: {figures['not_measured']}", *[""] * (len(names) - 1)]
        else:
            cells = [format_figure(figures[name]) if name in figures else "" for name in names]
        lines.append(f"| {entry} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def read_records(folder: Path, stages: Iterable[str]) -> list[dict[str, Any]]:
    """Return the records that stages have written into a folder."""
    files = [folder / f"{stage}.json" for stage in stages]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
