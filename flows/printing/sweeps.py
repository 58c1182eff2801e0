"""Output of sweeps."""

from optuna.trial import FrozenTrial, TrialState

from flows.printing.lines import format_accuracy, print_line
from model_code.sweeps.trials import Sweep, get_accuracy
from serving.listing import Column, Form, print_listing

_STATES = {
    TrialState.RUNNING: "unfinished",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def print_sweep(sweep: Sweep, form: Form, next_command: str) -> None:
    """Print every trial, the best one, what mattered, and the command that makes a recipe of the best.

    Args:
        sweep: Trials.
        form: Form of the listing; JSON and CSV have the listing alone.
        next_command: Command to print last; none if empty.
    """
    columns = (
        Column("trial", "trial"),
        Column("state", "state", colours={"pruned": "yellow", "failed": "red", "unfinished": "cyan"}),
        Column("validation", "validation_accuracy", format_accuracy),
        Column("run", "run_id", lambda run_id: (run_id or "")[:8]),
        *(Column(name, name, shorten) for name in sweep.record.space),
        Column("reason", "reason", is_prose=True),
    )
    print_listing(columns, [_describe(trial) for trial in sweep.trials], form)
    best = sweep.best
    if form != "table" or best is None:
        return
    print(f"best: trial {best.number}, validation accuracy {best.value:.4f}")
    if shares := sweep.measure_importance():
        print_line("importance: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    if next_command:
        print(f"next: {next_command}")


def _describe(trial: FrozenTrial) -> dict[str, object]:
    return {
        "trial": trial.number,
        "state": _STATES[trial.state],
        "validation_accuracy": get_accuracy(trial),
        "run_id": trial.user_attrs.get("run_id"),
        **trial.params,
        "reason": trial.user_attrs.get("reason"),
    }


def shorten(value: object) -> str:
    """Return a setting's value as people read it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
