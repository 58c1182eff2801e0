"""The whole report, section by section."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit, urlunsplit

from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from model_code.report.amounts import format_seconds, format_share
from model_code.report.answers import build_answers
from model_code.report.classes import build_classes
from model_code.report.collection import FULL, Collection, Run
from model_code.report.comparison import build_comparison
from model_code.report.curves import build_learning_curves, build_simsiam_curves
from model_code.report.document import Block, Cell, Document, Folded, Paragraph, Section, Table, compact, list_run_ids
from model_code.report.settings_page import build_departures
from model_code.report.standing import build_standing
from model_code.report.summary import build_summary
from model_code.report.untrained import build_untrained
from model_code.report.verdicts import LEAST_SEEDS
from model_code.settings import Settings
from model_code.tracking.provenance import read_git_sha
from model_code.training.device import choose_device, describe_device

TITLE = "Darkroom report"
# Metrics that a run is known by, the first that it has, with their names in the appendix.
MAIN_ACCURACIES = {
    "test/accuracy": "test",
    "test/linear_accuracy": "test, linear layer",
    "test/knn_accuracy": "test, kNN",
    "validation/linear_accuracy": "validation, linear layer",
    "validation/best_accuracy": "validation",
    "validation/accuracy": "validation",
}


@dataclass(frozen=True)
class Origin:
    """Where and when a report is made.

    Attributes:
        date: For people, UTC.
        git_sha: Commit of the code that makes it.
        machine: Machine that makes it; the runs name their own.
    """

    date: str
    git_sha: str
    machine: str


def describe_origin() -> Origin:
    """Return date, code and machine of this process."""
    machine = (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, {describe_device(choose_device('auto'))}"
    )
    return Origin(datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), read_git_sha(), machine)


def build_document(collection: Collection, client: MlflowClient, settings: Settings, origin: Origin) -> Document:
    """Return the report: what is missing stands in it as "not run"."""
    sections = (
        build_summary(collection, client),
        build_standing(collection),
        build_comparison(collection),
        build_departures(),
        build_answers(collection),
        build_learning_curves(collection),
        build_classes(collection),
        build_simsiam_curves(collection),
        build_untrained(collection),
        _build_legend(),
    )
    used = _add_starts(collection, list_run_ids(sections))
    shown = sum(run.run_id in used for run in collection.runs)
    facts = (
        ("made", origin.date),
        ("code", origin.git_sha),
        ("machine", origin.machine),
        ("runs", f"{shown} shown of {collection.finished_count} finished ones in MLflow; the appendix has all"),
    )
    return Document(TITLE, facts, (*sections, _build_appendix(collection, client, settings, used)))


def _build_legend() -> Section:
    sentences = (
        "Ours is the mean over seeds ± the sample standard deviation; one seed has none. Of several finished runs of "
        "the same recipe, budget and seed the latest counts.",
        "Only full runs, those with every setting and all epochs of the recipe, stand beside published figures. A "
        "custom or smoke run stands in the place of a missing full one, is marked, and gets no difference; smoke runs "
        "are minutes long and never a result.",
        "Verdicts rest on pairs of runs of the same seed, budget and images: the mean difference and its 95 % "
        f"interval (Student's t). Fewer than {LEAST_SEEDS} seeds decide nothing, and an interval that holds 0 shows no "
        "difference, which is no proof that there is none. The intervals are not corrected for how many there are, and "
        "are about these test images: that others might have been drawn is not in them.",
        "Accuracies are shares of images; points are hundredths of them. A run is shown by the first eight digits of "
        "its MLflow id; the appendix has the rest.",
    )
    return Section("How to read this", "legend", tuple(Paragraph(text) for text in sentences))


def _index_runs(collection: Collection) -> dict[str, Run]:
    return {run.run_id: run for groups in collection.groups.values() for group in groups for run in group.runs}


def _add_starts(collection: Collection, used: list[str]) -> list[str]:
    """Return the ids with those of the runs that they started from, and so on back, each once."""
    known = _index_runs(collection)
    found = list(dict.fromkeys(used))
    for run_id in found:
        start = known[run_id].pretrained_run_id if run_id in known else ""
        if start and start not in found:
            found.append(start)
    return found


def _build_appendix(collection: Collection, client: MlflowClient, settings: Settings, used: list[str]) -> Section:
    others = tuple(_describe_run(run, settings) for run in collection.runs if run.run_id not in used)
    if not used and not others:
        return Section("Appendix: every run", "runs", (Paragraph("No finished run yet."),))
    known = _index_runs(collection)
    rows = [_describe_run(known[run_id], settings) for run_id in used if run_id in known]
    # A champion's run, or one that another started from, may have been replaced by a later one of the same seed.
    rows += [_describe_other(client, run_id) for run_id in used if run_id not in known]
    rows.sort(key=lambda row: (row[1].text, row[3].text, row[3].detail, row[2].text, row[0].anchor))
    columns = ("run", "recipe", "seed", "budget", "accuracy", "images", "code", "time", "started from")
    blocks: list[Block] = [compact(Table("Every run that this report shows", columns, tuple(rows)))]
    if others:
        title = f"{len(others)} more finished {'run' if len(others) == 1 else 'runs'} that no table above shows"
        blocks.append(Folded(title, compact(Table("Finished runs that are not shown above", columns, others))))
    return Section("Appendix: every run", "runs", tuple(blocks))


def _describe_run(run: Run, settings: Settings) -> tuple[Cell, ...]:
    return (
        Cell(run.run_id, is_code=True, anchor=run.run_id, address=_address(settings, run)),
        Cell(run.recipe, is_code=True, detail=run.device),
        Cell(str(run.seed)),
        _describe_budget(run.budget),
        _describe_accuracy(run.metrics),
        Cell(run.dataset, detail=run.data_checksum[:16]),
        Cell(_shorten_sha(run.git_sha), is_code=True),
        Cell(format_seconds(run.seconds)),
        _describe_start(run),
    )


def _describe_budget(budget: str) -> Cell:
    kind, _, changed = budget.partition(": ")
    return Cell(kind, detail=changed, is_caution=budget not in (FULL, "-"))


def _describe_accuracy(metrics: Mapping[str, float]) -> Cell:
    """Return the main accuracy of a run, with the images that it was measured on."""
    measured = next((name for name in MAIN_ACCURACIES if name in metrics), None)
    return Cell("-") if measured is None else Cell(format_share(metrics[measured]), detail=MAIN_ACCURACIES[measured])


def _describe_start(run: Run) -> Cell:
    if run.pretrained_run_id:
        return Cell(run_ids=(run.pretrained_run_id,))
    return Cell(f"weights {run.pretrained_sha256[:16]}" if run.pretrained_sha256 else "-")


def _describe_other(client: MlflowClient, run_id: str) -> tuple[Cell, ...]:
    try:
        found: MlflowRun | None = client.get_run(run_id)
    except MlflowException:
        found = None
    tags = found.data.tags if found else {}
    note = "not among the runs compared" if found else "no longer in MLflow"
    return (
        Cell(run_id, is_code=True, anchor=run_id, detail=note),
        Cell(tags.get("recipe", "-"), is_code=True, detail=tags.get("device", "")),
        Cell(tags.get("seed", "-")),
        _describe_budget(tags.get("budget", tags.get("profile", "-"))),
        _describe_accuracy(found.data.metrics if found else {}),
        Cell(tags.get("dataset", "-"), detail=tags.get("data_checksum", "")[:16]),
        Cell(_shorten_sha(tags.get("git_sha", "-")), is_code=True),
        Cell("-"),
        Cell(tags.get("pretrained_run_id", "-"), is_code=True),
    )


def _shorten_sha(sha: str) -> str:
    commit, _, changed = sha.partition("-")
    return f"{commit[:12]}{'-' + changed if changed else ''}"


def _address(settings: Settings, run: Run) -> str:
    """Return the run's page on the MLflow server, without a password that its address may hold; empty without one."""
    if not settings.has_mlflow_server:
        return ""
    parts = urlsplit(settings.tracking_uri)
    server = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
    return f"{server}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
