"""Output of the commands: tables for people, in a terminal or a log file."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model_code.disk import format_size
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

_LOG_FILE_WIDTH = 160


def print_recipes(recipes: "Sequence[Recipe]") -> None:
    """Print name, published accuracy and first docstring line of each recipe."""
    table = new_table("recipe", "published", "images", "what it is")
    for recipe in recipes:
        table.add_row(recipe.name, _percent(recipe.published_accuracy), recipe.build().dataset, recipe.title)
    _print(table)


def print_recipe(recipe: "Recipe") -> None:
    """Print one recipe's evidence and every setting, as `--set` takes them."""
    from model_code.training.run_config import FIXED_SETTINGS

    console = open_console()
    console.print(f"{recipe.name}\n\n{recipe.evidence}\n", markup=False, highlight=False)
    for key, value in recipe.build().flatten().items():
        if key not in FIXED_SETTINGS:
            console.print(f"  {key}={json.dumps(value)}", markup=False, highlight=False, soft_wrap=True)


def print_datasets(datasets: "Sequence[DatasetSummary]", cache_dir: Path) -> None:
    """Print what is packed in a cache."""
    if not datasets:
        line = f"no images yet in {cache_dir}; start with: darkroom data add shapes"
        open_console().print(line, markup=False, highlight=False, soft_wrap=True)
        return
    table = new_table("data set", "images", "classes", "size", "on disk", "checksum", "source")
    for dataset in datasets:
        if dataset.damage is not None:
            table.add_row(escape(dataset.name), "damaged", "", "", "", "", escape(dataset.damage))
            continue
        counts = ", ".join(f"{count} {split}" for split, count in dataset.counts.items())
        table.add_row(
            escape(dataset.name),
            counts,
            str(len(dataset.classes)),
            f"{dataset.image_size}x{dataset.image_size}",
            format_size(dataset.size_bytes),
            dataset.checksum[:12],
            escape(dataset.source),
        )
    _print(table)


def print_revisions(revisions: "Sequence[Revision]") -> None:
    """Print the history of a data set, the oldest revision first, with what changed from one to the next."""
    from model_code.data.revisions import compare_revisions

    table = new_table("revision", "added at", "images", "size", "changes")
    for before, revision in zip([None, *revisions], revisions, strict=False):
        changes = ""
        if before is not None and before.image_size == revision.image_size:
            changes = _count_changes(compare_revisions(before, revision))
        size = f"{revision.image_size}x{revision.image_size}"
        table.add_row(str(revision), revision.added_at[:19], str(len(revision.images)), size, changes)
    _print(table)


def print_difference(difference: "Difference") -> None:
    """Print every image that differs between two revisions, and how many there are."""
    console = open_console()
    lines = [f"removed     {one.split} {one.label} {one.file}" for one in difference.removed]
    lines += [f"added       {one.split} {one.label} {one.file}" for one in difference.added]
    lines += [f"relabelled  {old.label} -> {new.label} {new.file}" for old, new in difference.relabelled]
    lines += [f"moved       {old.split} -> {new.split} {new.label} {new.file}" for old, new in difference.moved]
    for line in [*lines, _count_changes(difference)]:
        console.print(show(line), markup=False, highlight=False, soft_wrap=True)


def _count_changes(difference: "Difference") -> str:
    counts = {name: len(getattr(difference, name)) for name in ("added", "removed", "relabelled", "moved")}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "the same images and labels"


def print_added(added: "AddedDataset") -> None:
    """Print what came of adding a data set, with every image that was left out."""
    dataset = added.dataset
    counts = ", ".join(f"{len(split.labels_N)} {name}" for name, split in dataset.splits.items())
    verb = "is there already, its source did not change" if added.reused else "packed"
    feedback = "" if dataset.base is None else f", {dataset.count_feedback()} of them feedback"
    console = open_console()
    console.print(
        f"{dataset.name} {verb}: {counts} images{feedback} of {dataset.image_size}x{dataset.image_size}, "
        f"{len(dataset.classes)} classes, checksum {dataset.checksum[:12]}",
        markup=False,
        highlight=False,
    )
    for skipped in added.skipped:
        console.print(show(f"  left out: {skipped.name}: {skipped.reason}"), markup=False, highlight=False)
    test = dataset.splits.get("test")
    if "train" not in dataset.splits:
        console.print("  no training images: this set is for evaluation only", markup=False)
    elif test is None:
        console.print("  no test images: runs will report validation only; add them with one more --from", markup=False)
    elif not test.has_labels:
        console.print("  the test images have no labels: runs will report validation only", markup=False)


def print_result(result: "RunResult") -> None:
    """Print one finished run."""
    best = "" if result.epochs is None else f", best epoch {result.best_epoch} of {result.epochs}"
    macro_f1 = f", macro-F1 {result.metrics['test/macro_f1']:.4f}" if "test/macro_f1" in result.metrics else ""
    lines = [
        f"{result.recipe}  done in {result.seconds:.0f} s{best}",
        f"{_describe_figures(result)}{macro_f1}",
        f"run {result.run_id}",
    ]
    if result.weights_sha256:
        lines.append(f"weights {result.weights_sha256}")
    open_console().print("\n  ".join(lines), markup=False, highlight=False, soft_wrap=True)


def print_outcomes(outcomes: "Sequence[Outcome]", released: "Sequence[Choice]" = ()) -> None:
    """Print what happened to each run, published figures beside full ones only, and to the champions."""
    from model_code.recipes.catalog import get_recipe

    table = new_table("recipe", "seed", "", "budget", "published", "ours", "best epoch", "seconds", "run")
    for outcome in outcomes:
        result = outcome.result
        if result is None:
            colour, word = ("yellow", "skipped") if outcome.is_skipped else ("red", "failed")
            table.add_row(outcome.recipe, str(outcome.seed), f"[{colour}]{word}[/]", "", "", escape(outcome.error))
            continue
        table.add_row(
            outcome.recipe,
            str(outcome.seed),
            "kept" if outcome.was_cached else "done",
            f"{result.profile} on {escape(result.dataset)}",
            _percent(get_recipe(outcome.recipe).published_accuracy) if result.profile == "full" else "",
            _describe_figures(result, "{:.1%}"),
            "" if result.epochs is None else f"{result.best_epoch}/{result.epochs}",
            f"{result.seconds:.0f}",
            result.run_id[:8],
        )
    _print(table)
    if any(outcome.result is not None and outcome.result.profile != "full" for outcome in outcomes):
        open_console().print("Smoke and custom runs show that everything works; their figures compare with nothing.")
    if released:
        _print_choices(released)


def _print_choices(choices: "Sequence[Choice]") -> None:
    from flows.printing.releases import describe_decision

    table = new_table("model", "champion before", "now", "best run by validation", "validation", "verdict")
    for choice in choices:
        before, after, verdict = "", "", choice.error
        if choice.released is not None:
            summary = choice.released
            before = summary.champion_before or "-"
            after = (summary.version if summary.is_champion else None) or before
            verdict = describe_decision(summary)
        shown = f"{choice.validation_accuracy:.1%}" + (f" (mean of {choice.seeds} seeds)" if choice.seeds > 1 else "")
        run = f"{choice.run.recipe}, run {choice.run.run_id[:8]}"
        table.add_row(choice.name, before, after, escape(run), shown, escape(verdict))
    _print(table)


def print_plans(plans: "Iterable[Plan]", *, is_released: bool) -> None:
    """Print what would become of each run, as soon as it is known, and the sum of the times."""
    from model_code.report.amounts import format_seconds

    console, total_s, is_open = open_console(), 0.0, False
    for plan in plans:
        seconds = "" if plan.seconds is None or plan.seconds == 0 else f"  about {format_seconds(plan.seconds)}"
        line = f"{plan.recipe}  seed {plan.seed}  {plan.dataset}  {plan.state}{seconds}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        total_s += plan.seconds or 0
        is_open = is_open or plan.state == "fetch, then train"
    known = f"together about {format_seconds(total_s)} on this machine" if total_s else ""
    unknown = "the time for images that are not here yet is not known" if is_open else ""
    console.print("; ".join(filter(None, (known, unknown))) or "nothing is left to train", highlight=False)
    if is_released:
        console.print("then the best run of each data set would be released, and the report written", highlight=False)


# What people look at first of each kind of run: MLflow name -> name in a table.
_FIGURES = {
    "supervised": {
        "test/accuracy": "test accuracy",
        "validation/best_accuracy": "validation accuracy",
    },
    "simsiam": {
        "validation/untrained_knn_accuracy": "untrained kNN",
        "validation/best_accuracy": "best kNN",
        "test/knn_accuracy": "test kNN",
        "test/linear_accuracy": "test linear",
        "validation/linear_accuracy": "validation linear",
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


def print_report(files: "ReportFiles", run_count: int, run_id: str) -> None:
    """Print where a report is, on how many runs, and the MLflow run that keeps a copy."""
    open_console().print(
        f"report on {run_count} finished runs\n  {files.page}\n  {files.markdown}\n"
        f"  MLflow run {run_id} in darkroom-reports",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def print_findings(findings: "Sequence[Finding]") -> None:
    """Print what the machine can do."""
    colours = {"ok": "green", "note": "yellow", "missing": "red"}
    table = new_table("", "what", "found")
    for finding in findings:
        table.add_row(f"[{colours[finding.level]}]{finding.level}[/]", finding.what, escape(finding.found))
    _print(table)


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.1%}"


def new_table(*columns: str) -> Table:
    """Return an empty table in the style of all."""
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[0].no_wrap = True
    return table


def open_console() -> Console:
    """Return where to print: as wide as the terminal, or as a log file is."""
    console = Console()
    return console if console.is_terminal else Console(width=_LOG_FILE_WIDTH)


def _print(table: Table) -> None:
    open_console().print(table)
