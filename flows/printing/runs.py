"""Results of trainings: of a run, of a study, and the report on them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.printing.lines import format_accuracy, print_line
from flows.printing.records import describe_outcomes, describe_report, describe_result
from model_code.release.names import RELEASE_NAMES
from serving.listing import Column, Form, find_terminal_width, fold_line, print_listing
from serving.printable import show

if TYPE_CHECKING:
    from flows.printing.summaries import Choice, Outcome
    from model_code.report.files import ReportFiles
    from model_code.training.run_folder import RunResult

_STATE_COLOURS = {"skipped": "yellow", "failed": "red"}
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


def print_result(
    result: "RunResult", form: Form = "table", *, seed: int = 0, is_offline: bool = False, is_quiet: bool = False
) -> None:
    """Print one finished run and, unless quiet, what to do next; as a record with its seed."""
    if form != "table":
        print_listing((), [describe_result(result, seed)], form)
        return
    from model_code.data.cache import FEEDBACK_SUFFIX, is_dataset_taken
    from model_code.report.amounts import format_seconds

    best = "" if result.epochs is None else f", best epoch {result.best_epoch} of {result.epochs}"
    macro_f1 = f", macro-F1 {result.metrics['test/macro_f1']:.4f}" if "test/macro_f1" in result.metrics else ""
    lines = [
        f"{result.recipe}  done in {format_seconds(result.seconds)}{best}",
        f"{describe_figures(result)}{macro_f1}",
        f"run {result.run_id}",
    ]
    if result.weights_sha256:
        lines.append(f"weights {result.weights_sha256}")
        names = [name for name, pattern in RELEASE_NAMES.items() if is_dataset_taken(result.dataset, pattern)]
        own = result.dataset.removesuffix(FEEDBACK_SUFFIX)
        if not (is_offline or is_quiet):
            lines.append(f"next: darkroom release {result.run_id[:8]} --as {names[0] if names else own}")
    if is_offline and not is_quiet:
        lines.append(f"next: darkroom runs pack {result.run_id[:8]} --out DIR")
    width = find_terminal_width()
    print("\n  ".join(fold_line(show(line), width) for line in lines), flush=True)


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
                "published": None if published is None else format_accuracy(published),
                "ours": describe_figures(result),
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
        shown = format_accuracy(choice.validation_accuracy)
        shown += f" (mean of {choice.seeds} seeds)" if choice.seeds > 1 else ""
        shown += " by kNN" if choice.run.kind == "simsiam" else ""
        run = f"{choice.run.recipe}, run {choice.run.run_id[:8]}"
        cells = (choice.name, before, after, shown, run, verdict)
        records.append(dict(zip((column.key for column in columns), cells, strict=True)))
    print_listing(columns, records)


def describe_figures(result: "RunResult") -> str:
    """Return the accuracies of a run in a line, the most important one first."""
    metrics = result.metrics
    if result.kind == "untrained":
        share = format_accuracy(metrics["validation/top_class_share"])
        return (
            f"{metrics['validation/correct']:.0f} of {metrics['validation/pictures']:.0f} right, "
            f"{metrics['validation/distinct_classes']:.0f} classes, top class {share}"
        )
    shown = [f"{name} {format_accuracy(metrics[key])}" for key, name in _FIGURES[result.kind].items() if key in metrics]
    if result.kind == "supervised" and "test/accuracy" not in metrics:
        shown.insert(0, "no test images with labels")
    return ", ".join(shown)


def count_runs(count: int) -> str:
    """Return a number of finished runs in words."""
    return f"{count} finished run{'' if count == 1 else 's'}"


def print_report(
    files: "ReportFiles", run_count: int, run_id: str, form: Form = "table", *, is_quiet: bool = False
) -> None:
    """Print where a report is, on how many runs, its MLflow run and, unless quiet, what to do next."""
    if form != "table":
        print_listing((), [describe_report(files, run_count, run_id)], form)
        return
    print(
        f"report on {count_runs(run_count)}\n  {files.page}\n  {files.markdown}\n"
        f"  MLflow run {run_id} in darkroom-reports"
    )
    if not is_quiet:
        print("  next: darkroom ui compares the runs in MLflow")
