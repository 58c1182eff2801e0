"""The report of the service's benchmark for people."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.services.figures import format_summary


def print_report(report: dict[str, Any]) -> None:
    """Print machine and versions, and a table of each subject that was measured."""
    console = Console(width=160)
    facts = report["machine"] | report["versions"]
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()), highlight=False)
    title = f"{report['model']}, commit {report['git_sha']}, n = {report['repeats']}, medians (least to most)"
    console.print(title, highlight=False)
    console.print(build_load_table(report))
    console.print(build_start_table(report))
    if report["batches"]:
        console.print(build_batch_table(report))
    if report["endurance"]:
        print_endurance(console, report["endurance"])


def build_load_table(report: dict[str, Any]) -> Table:
    """Return requests/s and latency by connections and contender."""
    columns = ("connections", "contender", "2xx/s", "times FastAPI", "p50 ms, all answers", "p99 ms", "not 2xx")
    table = Table(*columns, box=box.SIMPLE_HEAD, title="one image in a request")
    for row in report["loads"]:
        table.add_row(
            str(row["connections"]),
            row["contender"],
            format_summary(row["requests_per_s"]),
            f"{row['times_fastapi']:.2f}" if "times_fastapi" in row else "-",
            format_summary(row["p50_ms"], 1),
            format_summary(row["p99_ms"], 1),
            f"{row['refused']:,}",
        )
    return table


def build_start_table(report: dict[str, Any]) -> Table:
    """Return the seconds to readiness by contender."""
    table = Table("contender", "s", box=box.SIMPLE_HEAD, title="from the start of the process until it is ready")
    for title, summary in report["starts_s"].items():
        table.add_row(title, format_summary(summary, 2))
    return table


def build_batch_table(report: dict[str, Any]) -> Table:
    """Return images/s of ours and of onnxruntime alone by precision."""
    first = report["batches"][0]
    title = f"{first['images']} images in a request, {first['connections']} connections, images/s"
    columns = ("precision", "ours", "onnxruntime alone, batch 64", "share %", "onnxruntime alone, batch 1", "not 2xx")
    table = Table(*columns, box=box.SIMPLE_HEAD, title=title)
    for row in report["batches"]:
        table.add_row(
            row["precision"],
            format_summary(row["pictures_per_s"]),
            format_summary(row["alone_64_per_s"]),
            format_summary(row["share_percent"], 1),
            format_summary(row["alone_1_per_s"]),
            str(row["refused"]),
        )
    return table


def print_endurance(console: Console, found: dict[str, Any]) -> None:
    """Print what many requests and many connections did."""
    memory, crowd = found["memory_mb"], found["crowd"]
    console.print(
        f"{found['contender']}, {found['connections']} connections, {found['seconds']:,.0f} s: {_count(found)}; "
        f"memory {memory['before']:,.0f} MB before, {memory['after']:,.0f} MB after, "
        f"{memory['after_crowd']:,.0f} MB after the crowd",
        highlight=False,
    )
    state = f"{'lives' if crowd['is_alive'] else 'is dead'}, {'predicts' if crowd['answers'] else 'does not predict'}"
    console.print(
        f"{crowd['connections']} connections: {_count(crowd)}, {crowd['requests_per_s']:,.0f} 2xx/s; "
        f"afterwards the process {state}",
        highlight=False,
    )
    for status, latency in crowd["probes"].items():
        figures = f"p50 {latency['p50_ms']:,.1f} ms, p99 {latency['p99_ms']:,.1f} ms, n = {latency['n']:,}"
        console.print(f"  latency beside them, {status}: {figures}", highlight=False)


def _count(found: dict[str, Any]) -> str:
    statuses = [f"{count:,} times {status}" for status, count in sorted(found["statuses"].items())]
    return ", ".join([*statuses, f"{found['failures']:,} without an answer"])
