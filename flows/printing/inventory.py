"""Listings: registered versions, moves of a champion, runs on this machine, findings of `doctor`."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flows.operations.removal import explain_need, is_in_use, list_registered, measure
from flows.printing.lines import format_accuracy, print_line
from model_code.disk import format_size
from model_code.errors import TrainingError, UsageError
from model_code.recipes.catalog import describe_budget
from model_code.settings import Settings
from model_code.training.run_config import RunConfig
from model_code.training.run_folder import RunFolder, list_damaged, list_finished, list_interrupted
from serving.bundle.store import BUNDLE_TAG, Change
from serving.listing import Column, Form, print_heading, print_listing
from serving.printable import show

if TYPE_CHECKING:
    from flows.operations.canary import CanaryComparison
    from flows.operations.doctor import Finding

# Versions of older homes have the whole verdict in a tag.
ACCURACY_TAG, VERDICT_TAG = "accuracy", "verdict.json"


def print_versions(settings: Settings, name: str | None, form: Form) -> None:
    """Print the registered versions of one name or of all: those with an alias first, then the newest."""
    columns = (
        Column("model", "name"),
        Column("version", "version"),
        Column(
            "is", "is", lambda aliases: aliases or "registered", colours={"champion": "green", "challenger": "yellow"}
        ),
        Column("accuracy", "accuracy", format_accuracy),
        Column("released", "at", _minutes),
        Column("run", "run_id", lambda run_id: run_id[:8]),
        Column("recipe", "recipe", is_first=True),
        Column("precisions", "precisions", is_prose=True),
        Column("verdict", "verdict", _show_first_reason, is_prose=True),
    )
    newest = list_registered(settings, name)[::-1]
    records = [
        {
            "name": one.name,
            "version": one.version,
            "is": " ".join(one.aliases),
            "accuracy": _read_accuracy(one.tags),
            "at": one.at,
            "run_id": one.run_id,
            "recipe": one.tags.get("recipe"),
            "precisions": one.tags.get("precisions"),
            "verdict": one.tags.get("verdict"),
            "bundle": one.tags.get(BUNDLE_TAG),
        }
        for one in sorted(newest, key=lambda one: not one.aliases)
    ]
    if not records and form == "table":
        print("nothing is registered; release a run: darkroom release RECIPE --as NAME")
        return
    print_listing(columns, records, form)


def print_canary(comparison: "CanaryComparison", form: Form = "table", *, is_decided: bool = False) -> None:
    """Print how many answers of champion and canary were corrected, and what follows from it."""
    columns = (
        Column("version", "version"),
        Column("role", "role", colours={"champion": "green", "canary": "yellow"}),
        Column("requests", "requests"),
        Column("images", "images"),
        Column("labelled", "labelled"),
        Column("corrected", "corrected"),
        Column("fraction", "corrected_fraction", format_accuracy),
    )
    sides = (("champion", comparison.champion), ("canary", comparison.canary))
    records = [
        {"name": comparison.name, "role": role, **asdict(one), "corrected_fraction": one.corrected_fraction}
        for role, one in sides
    ]
    if form != "table":
        shared = {key: getattr(comparison, key) for key in ("share", "since", "p_value", "decision")}
        print_listing((), [{**record, **shared} for record in records], form)
        return
    canary, share = comparison.canary, f"{100 * comparison.share:g} % of the requests"
    print_heading(
        f"{comparison.name}: version {canary.version} answers {share} since {_minutes(comparison.since)} (UTC)"
    )
    print_listing(columns, records)
    if not canary.images:
        print_line(
            "no answer of the canary is logged: does the service run with --log-requests 1 --feedback, and does "
            "/v1/models show the canary?"
        )
        return
    said = {
        "promote": "is corrected significantly less often",
        "withdraw": "is corrected significantly more often",
        "wait": "shows no significant difference",
    }
    line = f"the canary {said[comparison.decision]} (permutation test over requests, p = {comparison.p_value:.3g})"
    if is_decided:
        done = {"promote": "it is champion now", "withdraw": "it is withdrawn", "wait": "it goes on"}
        line += f": {done[comparison.decision]}"
    elif comparison.decision != "wait":
        line += f"; next: darkroom canary {comparison.name} --decide"
    print_line(line)


def _show_first_reason(verdict: str | None) -> str:
    """Return a verdict with the first reason of a refusal; JSON, CSV and the card have all."""
    measured, refused, reasons = (verdict or "").partition("not promoted: ")
    first, *others = reasons.split("; ")
    more = f"; {len(others)} more reason{'s' * (len(others) > 1)}: --format json" if others else ""
    return f"{measured}{refused}{first}{more}"


def print_history(name: str, changes: Sequence[Change], form: Form = "table") -> None:
    """Print every move of the champion, the newest first."""
    columns = (
        Column("when", "at", _minutes),
        Column("what", "action"),
        Column("from", "from_version", lambda version: version or "-"),
        Column("to", "to_version"),
        Column("by", "by"),
        Column("why", "why", is_prose=True),
        Column("verdict", "verdict", _show_first_reason, is_prose=True),
    )
    if form == "table":
        print_heading(f"{name}: version {changes[-1].to_version} is champion")
    print_listing(columns, [change.model_dump() for change in reversed(changes)], form)


def print_runs(settings: Settings, form: Form) -> None:
    """Print the runs of the home, the newest first; on standard error, how many cannot be read."""
    needed = explain_need(settings, list_registered(settings))
    folders = [*list_interrupted(settings.checkpoints_dir), *list_finished(settings.checkpoints_dir)]
    folders.sort(key=lambda folder: folder.begun_s, reverse=True)
    columns = (
        Column("run", "run_id", lambda run_id: run_id[:8]),
        Column("recipe", "recipe"),
        Column("data", "dataset"),
        Column("budget", "profile"),
        Column("seed", "seed"),
        Column(
            "state",
            "state",
            colours={"interrupted": "yellow", "damaged": "red", "diverged": "red", "trained now": "cyan"},
        ),
        Column("recorded", "is_offline", lambda is_offline: "offline" if is_offline else ""),
        Column("validation", "validation_accuracy", format_accuracy),
        Column("test", "test_accuracy", format_accuracy, is_first=True),
        Column("on disk", "size_bytes", format_size),
        Column("begun", "at", _minutes),
        Column("settings", "changes", is_prose=True),
        Column("needed by", "needed_by", is_prose=True),
    )
    records = [_describe_run(settings, folder, needed) for folder in folders]
    if damaged := list_damaged(settings.checkpoints_dir):
        runs = f"{len(damaged)} run{'' if len(damaged) == 1 else 's'}"
        print(
            show(
                f"darkroom: {runs} left out, the first {damaged[0]}: run.json is damaged or was written by another "
                f"version; remove with: darkroom runs remove {damaged[0]}"
            ),
            file=sys.stderr,
        )
    if not records and form == "table":
        print(f"no runs in {settings.checkpoints_dir}; start with: darkroom train RECIPE, see `darkroom recipes`")
        return
    print_listing(columns, records, form)


def print_findings(findings: "Sequence[Finding]", form: Form = "table") -> None:
    """Print what the machine can do."""
    columns = (
        Column("", "level", colours={"ok": "green", "note": "yellow", "missing": "red"}),
        Column("what", "what"),
        Column("found", "found", is_prose=True),
    )
    print_listing(columns, [asdict(finding) for finding in findings], form)


def _describe_run(settings: Settings, folder: RunFolder, needed: dict[str, str]) -> dict[str, Any]:
    config, result, run_id = folder.record.config, None, folder.path.name
    try:
        result = folder.result
        left = "trained now" if is_in_use(folder) else folder.state
        has_lost_weights = (
            result is not None and result.best_weights and not (folder.path / result.best_weights).is_file()
        )
        state = left if result is None else "no weights" if has_lost_weights else "done"
    except TrainingError:
        state = "damaged"
    metrics = {} if result is None else result.metrics
    return {
        "run_id": run_id,
        "recipe": config.recipe,
        "dataset": config.dataset,
        "profile": config.profile,
        "seed": config.seed,
        "state": state,
        "is_offline": folder.is_offline,
        "validation_accuracy": metrics.get("validation/best_accuracy"),
        "test_accuracy": metrics.get("test/accuracy"),
        "size_bytes": measure(folder.path) + measure(settings.artifacts_dir / run_id),
        "at": datetime.fromtimestamp(folder.begun_s, UTC).isoformat(timespec="seconds"),
        "changes": _describe_changes(config),
        "needed_by": needed.get(run_id),
    }


def _describe_changes(config: RunConfig) -> str:
    """Return the settings in which a custom run differs from its recipe; empty where the recipe is gone."""
    try:
        return describe_budget(config).removeprefix("custom: ") if config.profile == "custom" else ""
    except UsageError:
        return ""


def _read_accuracy(tags: Mapping[str, str]) -> float | None:
    """Return the accuracy of a version as it was judged; None for versions without a readable verdict."""
    try:
        accuracy = json.loads(tags.get(ACCURACY_TAG) or tags.get(VERDICT_TAG) or "null")
    except ValueError:
        return None
    if isinstance(accuracy, dict):
        accuracy = accuracy.get("challenger_accuracy")
    return accuracy if isinstance(accuracy, float) else None


def _minutes(at: str) -> str:
    return at[:16].replace("T", " ")
