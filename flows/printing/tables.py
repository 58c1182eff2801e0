"""Output of the commands: tables for people, in a terminal or a log file."""

import json
import re
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flows.printing.records import describe_added, describe_outcomes, describe_report, describe_result
from model_code.data.sources.images import SOME, name_some
from model_code.disk import format_size
from model_code.release.names import RELEASE_NAMES
from serving.listing import Column, Form, find_terminal_width, fold_line, print_listing
from serving.printable import show

# These import torch, for which a list of data sets need not wait.
if TYPE_CHECKING:
    from flows.operations.doctor import Finding
    from flows.printing.summaries import Choice, Outcome, Plan
    from model_code.data.add import AddedDataset
    from model_code.data.cache import DatasetSummary
    from model_code.data.revisions import Difference, Revision
    from model_code.recipes.catalog import Recipe
    from model_code.report.files import ReportFiles
    from model_code.training.run_folder import RunResult

# FastNet's work grows with the area: above, a ResNet that halves the image five times is cheaper.
_SMALL_IMAGE = 96
PLAN_WIDTH, _NO_BREAK = 80, "\xa0"
_STATE_COLOURS = {"skipped": "yellow", "failed": "red"}


def print_recipes(recipes: "Sequence[Recipe]", form: Form = "table") -> None:
    """Print name, published accuracy and first docstring line of each recipe."""
    columns = (
        Column("recipe", "recipe"),
        Column("published", "published_accuracy", _percent),
        Column("images", "dataset"),
        Column("what it is", "title", is_prose=True),
    )
    print_listing(columns, [_describe_recipe(recipe) for recipe in recipes], form)


def print_recipe(recipe: "Recipe", form: Form = "table") -> None:
    """Print one recipe's evidence and every setting, as `--set` takes them."""
    from model_code.training.run_config import FIXED_SETTINGS

    settings = {key: value for key, value in recipe.build().flatten().items() if key not in FIXED_SETTINGS}
    if form != "table":
        print_listing((), [{**_describe_recipe(recipe), "evidence": recipe.evidence, "settings": settings}], form)
        return
    print(f"{recipe.name}\n")
    for paragraph in _join_lines(recipe.evidence):
        print_line(paragraph)
    print()
    for key, value in settings.items():
        print_line(f"  {key}={json.dumps(value)}")
    if "network" in settings:
        from model_code.models.networks import NETWORKS

        print()
        print_line(f"Networks: {', '.join(sorted(NETWORKS))}")


def _join_lines(text: str) -> list[str]:
    """Return the paragraphs of a docstring, a line each; one begins after an empty line, or with its `Heading: `."""
    paragraphs = [""]
    for line in map(str.strip, text.splitlines()):
        if line and paragraphs[-1] and not re.match(r"[A-Z][\w ]*: ", line):
            paragraphs[-1] += f" {line}"
        else:
            paragraphs.append(line)
    return paragraphs[1:]


def _describe_recipe(recipe: "Recipe") -> dict[str, object]:
    return {
        "recipe": recipe.name,
        "published_accuracy": recipe.published_accuracy,
        "dataset": recipe.build().dataset,
        "title": recipe.title,
    }


def print_datasets(datasets: "Sequence[DatasetSummary]", cache_dir: Path, form: Form = "table") -> None:
    """Print what is packed in a cache."""
    if not datasets and form == "table":
        print_line(f"no images yet in {cache_dir}; start with: darkroom data add shapes")
        return
    columns = (
        Column("data set", "dataset"),
        Column("images", "counts", lambda counts: ", ".join(f"{count} {split}" for split, count in counts.items())),
        Column("classes", "classes", lambda classes: str(len(classes) or "")),
        Column("size", "image_size", lambda side: f"{side}x{side}" if side else ""),
        Column("on disk", "size_bytes", lambda size: format_size(size) if size else ""),
        Column("checksum", "checksum", lambda checksum: checksum[:12]),
        Column("source", "source", is_prose=True),
        Column("damaged", "damage", is_prose=True),
    )
    records = [
        {
            "dataset": dataset.name,
            "counts": dict(dataset.counts),
            "classes": list(dataset.classes),
            "image_size": dataset.image_size,
            "size_bytes": dataset.size_bytes,
            "checksum": dataset.checksum,
            "source": dataset.source,
            "damage": dataset.damage,
        }
        for dataset in datasets
    ]
    print_listing(columns, records, form)


def print_revisions(revisions: "Sequence[Revision]", form: Form = "table") -> None:
    """Print the history of a data set, the oldest revision first, with what changed from one to the next."""
    from model_code.data.revisions import compare_revisions

    columns = (
        Column("revision", "revision"),
        Column("added at", "added_at", lambda time: time[:19]),
        Column("images", "images"),
        Column("size", "image_size", lambda side: f"{side}x{side}"),
        Column("changes", "changes"),
    )
    records = []
    for before, revision in zip([None, *revisions], revisions, strict=False):
        changes = ""
        if before is not None and before.image_size == revision.image_size:
            changes = _count_changes(compare_revisions(before, revision))
        records.append(
            {
                "revision": str(revision),
                "added_at": revision.added_at,
                "images": len(revision.images),
                "image_size": revision.image_size,
                "changes": changes,
            }
        )
    print_listing(columns, records, form)


def print_difference(difference: "Difference") -> None:
    """Print every image that differs between two revisions, and how many there are."""
    lines = [f"removed     {one.split} {one.label} {one.file}" for one in difference.removed]
    lines += [f"added       {one.split} {one.label} {one.file}" for one in difference.added]
    lines += [f"relabelled  {old.label} -> {new.label} {new.file}" for old, new in difference.relabelled]
    lines += [f"moved       {old.split} -> {new.split} {new.label} {new.file}" for old, new in difference.moved]
    for line in [*lines, _count_changes(difference)]:
        print_line(line)


def _count_changes(difference: "Difference") -> str:
    counts = {name: len(getattr(difference, name)) for name in ("added", "removed", "relabelled", "moved")}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "the same images and labels"


def print_added(
    added: "AddedDataset", form: Form = "table", *, notes: Sequence[str] = (), is_offline: bool = False
) -> None:
    """Print what came of adding a data set, what was left out and why, and notes for people."""
    if form != "table":
        print_listing((), [describe_added(added)], form)
        return
    dataset = added.dataset
    counts = ", ".join(f"{len(split.labels_N)} {name}" for name, split in dataset.splits.items())
    verb = "is there already, its source did not change" if added.reused else "packed"
    feedback = "" if dataset.base is None else f", {dataset.count_feedback()} of them feedback"
    print_line(
        f"{dataset.name} {verb}: {counts} images{feedback} of {dataset.image_size}x{dataset.image_size}, "
        f"{len(dataset.classes)} classes, checksum {dataset.checksum[:12]}"
    )
    names_by_reason: dict[str, list[str]] = defaultdict(list)
    for skipped in added.skipped:
        if not skipped.is_note:
            names_by_reason[skipped.reason].append(skipped.name)
    for reason, names in names_by_reason.items():
        print_line(f"  left out: {name_some(names)}: {reason}")
    if any(len(names) > SOME for names in names_by_reason.values()):
        print_line("  --report FILE lists all that is left out")
    for note in [*(f"{one.name}: {one.reason}" for one in added.skipped if one.is_note), *notes]:
        print_line(f"  {note}")
    if "train" in dataset.splits:
        recipe = _choose_recipe(dataset.name, dataset.image_size)
        way = " --offline" if is_offline else ""
        print_line(f"  next: darkroom train {recipe} --data {dataset.name}{way}; others: darkroom recipes")
    test = dataset.splits.get("test")
    if "train" not in dataset.splits:
        print_line("  no training images: this set is for evaluation only")
    elif test is None:
        print_line("  no test images: runs will report validation only; add them with one more --from")
    elif not test.has_labels:
        print_line("  the test images have no labels: runs will report validation only")


def _choose_recipe(dataset: str, image_size: int) -> str:
    """Return the recipe to begin with: FastNet's for the data set, on other small images one that a CPU trains too."""
    from model_code.recipes.catalog import RECIPES

    if (own := RECIPES.get(f"fastnet_{dataset}")) is not None and own.build().dataset == dataset:
        return own.name
    return "fastnet_cifar10" if image_size <= _SMALL_IMAGE else "resnet18_food11"


def print_result(result: "RunResult", form: Form = "table", *, seed: int = 0, is_offline: bool = False) -> None:
    """Print one finished run, and what to do next; as a record with its seed."""
    if form != "table":
        print_listing((), [describe_result(result, seed)], form)
        return
    from model_code.data.cache import FEEDBACK_SUFFIX, is_dataset_taken

    best = "" if result.epochs is None else f", best epoch {result.best_epoch} of {result.epochs}"
    macro_f1 = f", macro-F1 {result.metrics['test/macro_f1']:.4f}" if "test/macro_f1" in result.metrics else ""
    lines = [
        f"{result.recipe}  done in {result.seconds:.0f} s{best}",
        f"{_describe_figures(result)}{macro_f1}",
        f"run {result.run_id}",
    ]
    if result.weights_sha256:
        lines.append(f"weights {result.weights_sha256}")
        names = [name for name, pattern in RELEASE_NAMES.items() if is_dataset_taken(result.dataset, pattern)]
        own = result.dataset.removesuffix(FEEDBACK_SUFFIX)
        if not is_offline:
            lines.append(f"next: darkroom release {result.run_id[:8]} --as {names[0] if names else own}")
    if is_offline:
        lines.append(f"next: darkroom runs pack {result.run_id[:8]} --out DIR")
    print("\n  ".join(map(show, lines)), flush=True)


def print_outcomes(
    outcomes: "Sequence[Outcome]", released: "Sequence[Choice]" = (), form: Form = "table", *, next_step: str = ""
) -> None:
    """Print what happened to each run, published figures beside full ones only, and to the champions."""
    if form != "table":
        print_listing((), describe_outcomes(outcomes, released), form)
        return
    from model_code.recipes.catalog import get_recipe

    columns = (
        Column("recipe", "recipe"),
        Column("seed", "seed"),
        Column("state", "state", colours=_STATE_COLOURS),
        Column("published", "published"),
        Column("run", "run"),
        Column("seconds", "seconds"),
        Column("best epoch", "best_epoch"),
        Column("budget", "budget", is_prose=True),
        Column("ours", "ours", is_prose=True),
        Column("why", "error", is_prose=True),
    )
    records = []
    for outcome in outcomes:
        result = outcome.result
        record: dict[str, object] = {"recipe": outcome.recipe, "seed": outcome.seed}
        if result is None:
            record |= {"state": "skipped" if outcome.is_skipped else "failed", "error": outcome.error}
        else:
            published = get_recipe(outcome.recipe).published_accuracy if result.profile == "full" else None
            record |= {
                "state": "kept" if outcome.was_cached else "done",
                "budget": f"{result.profile} on {result.dataset}",
                "published": None if published is None else _percent(published),
                "ours": _describe_figures(result, "{:.1%}"),
                "best_epoch": None if result.epochs is None else f"{result.best_epoch}/{result.epochs}",
                "seconds": round(result.seconds),
                "run": result.run_id[:8],
            }
        records.append(record)
    print_listing(columns, records)
    if any(outcome.result is not None and outcome.result.profile != "full" for outcome in outcomes):
        print_line("Smoke and custom runs show that everything works; their figures compare with nothing.")
    if released:
        _print_choices(released)
    if next_step and any(outcome.result is not None for outcome in outcomes):
        print_line(f"next: {next_step}")


def _print_choices(choices: "Sequence[Choice]") -> None:
    from flows.printing.releases import describe_decision

    columns = (
        Column("model", "model"),
        Column("champion before", "before"),
        Column("now", "now"),
        Column("validation", "validation"),
        Column("best run by validation", "run", is_prose=True),
        Column("verdict", "verdict", is_prose=True),
    )
    records = []
    for choice in choices:
        before, after, verdict = "", "", choice.error
        if choice.released is not None:
            summary = choice.released
            before = summary.champion_before or "-"
            after = (summary.version if summary.is_champion else None) or before
            verdict = describe_decision(summary)
        shown = f"{choice.validation_accuracy:.1%}" + (f" (mean of {choice.seeds} seeds)" if choice.seeds > 1 else "")
        shown += " by kNN" if choice.run.kind == "simsiam" else ""
        run = f"{choice.run.recipe}, run {choice.run.run_id[:8]}"
        cells = (choice.name, before, after, shown, run, verdict)
        records.append(dict(zip((column.key for column in columns), cells, strict=True)))
    print_listing(columns, records)


def print_plans(plans: "Sequence[Plan]", form: Form = "table", *, is_released: bool) -> None:
    """Print what would become of the runs: data set by data set, with the time of each recipe, and the sum."""
    if form != "table":
        print_listing((), [plan.model_dump() for plan in plans], form)
        return
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
    total_s = sum(plan.seconds or 0 for group in groups.values() for plan in group)
    if total_s:
        print_line(f"together about {format_seconds(total_s)} on this machine")
    elif any(plan.state.startswith("skip") for plan in plans):
        print_line("nothing can be trained before what is missing is here")
    else:
        print_line("nothing is left to train")
    if is_released:
        print_line("then the best run of each data set would be released, and the report written")


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


# What people look at first of each kind of run: MLflow name -> name in a table.
_FIGURES = {
    "supervised": {
        "test/accuracy": "test accuracy",
        "validation/best_accuracy": "validation accuracy",
    },
    "simsiam": {
        "validation/untrained_knn_accuracy": "kNN at the start",
        "validation/best_accuracy": "best kNN",
        "test/knn_accuracy": "test kNN",
        "test/linear_accuracy": "test linear",
        "test/augmented_linear_accuracy": "test linear, augmented",
        "validation/linear_accuracy": "validation linear",
        "validation/augmented_linear_accuracy": "validation linear, augmented",
    },
    "random_features": {
        "test/knn_accuracy": "kNN",
        "test/linear_accuracy": "linear",
        "test/mlp_accuracy": "MLP",
        "test/untrained_head_accuracy": "head",
    },
}


def _describe_figures(result: "RunResult", form: str = "{:.4f}") -> str:
    metrics = result.metrics
    if result.kind == "untrained":
        share = form.format(metrics["validation/top_class_share"])
        return (
            f"{metrics['validation/correct']:.0f} of {metrics['validation/pictures']:.0f} right, "
            f"{metrics['validation/distinct_classes']:.0f} classes, top class {share}"
        )
    shown = [f"{name} {form.format(metrics[key])}" for key, name in _FIGURES[result.kind].items() if key in metrics]
    if result.kind == "supervised" and "test/accuracy" not in metrics:
        shown.insert(0, "no test images with labels")
    return ", ".join(shown)


def count_runs(count: int) -> str:
    """Return a number of finished runs in words."""
    return f"{count} finished run{'' if count == 1 else 's'}"


def print_report(files: "ReportFiles", run_count: int, run_id: str, form: Form = "table") -> None:
    """Print where a report is, on how many runs, and the MLflow run that keeps a copy."""
    if form != "table":
        print_listing((), [describe_report(files, run_count, run_id)], form)
        return
    print(
        f"report on {count_runs(run_count)}\n  {files.page}\n  {files.markdown}\n"
        f"  MLflow run {run_id} in darkroom-reports"
    )


def print_findings(findings: "Sequence[Finding]", form: Form = "table") -> None:
    """Print what the machine can do."""
    columns = (
        Column("", "level", colours={"ok": "green", "note": "yellow", "missing": "red"}),
        Column("what", "what"),
        Column("found", "found", is_prose=True),
    )
    print_listing(columns, [asdict(finding) for finding in findings], form)


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.1%}"


def print_line(line: str) -> None:
    """Print a line of text, whatever names are in it; on a terminal it breaks at words."""
    print(fold_line(show(line), find_terminal_width()), flush=True)
