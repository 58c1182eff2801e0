"""Runs on this machine: listing, removing, freeing weights, packing and syncing offline ones."""

from pathlib import Path
from typing import Annotated, Literal

from flows.jobs.job import DRY_RUN, OFFLINE_RUNS, RUNS, Job, argument, option
from model_code.disk import format_size
from model_code.settings import load_settings
from serving.listing import FORM, Form


class ListRuns(Job):
    """List the runs in DARKROOM_HOME: what they are, what came of them, what they take on disk."""

    command = "runs list"

    form: Form = option("table", FORM, name="--format")

    def run(self) -> None:
        from flows.printing.inventory import print_runs

        print_runs(load_settings(), self.form)


class RemoveRuns(Job):
    """Remove runs: their folders, their runs and files in MLflow. The report does not count them any more.

    A run that a registered version was released from stays until the version is retired.
    """

    command, loads = "runs remove", ("MLflow",)

    run_ids: Annotated[tuple[str, ...], RUNS] = argument("RUN_ID")
    dry_run: bool = option(False, DRY_RUN)

    @property
    def loading(self) -> tuple[str, ...]:
        return () if self.dry_run else self.loads

    def check(self) -> None:
        _check_runs(self.run_ids)

    def run(self) -> None:
        from flows.operations.removal import remove_runs

        for run_id, size_bytes in remove_runs(load_settings(), self.run_ids, is_dry_run=self.dry_run):
            done = "would be removed and free" if self.dry_run else "is removed and frees"
            print(f"run {run_id} {done} {format_size(size_bytes)}")


_KEPT = "the weights of every run are among the best of its recipe, images and settings, needed, in use or offline"


class Prune(Job):
    """Remove the weights of finished runs that are not among the best; every figure stays.

    What a registered version was released from, what an interrupted run starts from, and interrupted runs keep theirs.
    """

    command = "prune"

    keep: str = option(
        "best:3",
        "Runs that keep their weights: the best N by validation of those with the same recipe, images and settings.",
        metavar="best:N",
    )
    dry_run: bool = option(False, DRY_RUN)

    def check(self) -> None:
        from flows.operations.removal import parse_kept

        parse_kept(self.keep)

    def run(self) -> None:
        from flows.operations.removal import find_prunable, parse_kept, prune, sweep_removed
        from flows.printing.lines import print_line

        if not self.dry_run:
            sweep_removed(load_settings())
        prunable = find_prunable(load_settings(), parse_kept(self.keep))
        for weights in prunable:
            config = weights.run.record.config
            print(
                f"{weights.run.path.name[:8]}  {config.recipe} on {config.dataset}  {format_size(weights.size_bytes)}"
            )
            if not self.dry_run:
                prune(weights)
        total = format_size(sum(weights.size_bytes for weights in prunable))
        verb = "would be removed" if self.dry_run else "are removed"
        runs = "1 run" if len(prunable) == 1 else f"{len(prunable)} runs"
        print_line(f"weights of {runs}, {total}, {verb}; figures stay" if prunable else f"nothing to remove: {_KEPT}")


class PackRuns(Job):
    """Pack complete runs of `darkroom train --offline` as files of a size, to bring them home.

    RUN is a run id, or at least its first 8 digits.
    """

    command, loads = "runs pack", ("PyTorch",)

    runs: Annotated[tuple[str, ...], OFFLINE_RUNS] = argument("RUN")
    out: Path = option(..., "Folder of the packs.", metavar="DIR")
    part_size: str = option("15MiB", "Largest file.", metavar="SIZE")
    weights: Literal["best", "all", "none"] = option(
        "best", "all: those of the last epoch too; none: neither, for a report without a release."
    )

    def check(self) -> None:
        from model_code.tracking.pack import parse_size

        parse_size(self.part_size)
        _check_runs(self.runs)

    def run(self) -> None:
        from flows.operations.run_packing import pack_runs
        from model_code.tracking.pack import parse_size

        pack_runs(self.runs, self.weights, self.out, parse_size(self.part_size))


class SyncRuns(Job):
    """Take up packed runs, as if they had been trained here; what is here already stays as it is.

    PATH is a folder of packs or a file of one.
    """

    command, loads = "runs sync", ("PyTorch", "MLflow")
    is_resumable = True

    paths: tuple[Path, ...] = argument("PATH")

    def check(self) -> None:
        from model_code.tracking.pack import find_packs

        find_packs(self.paths)

    def run(self) -> None:
        from flows.operations.run_sync import sync_runs

        sync_runs(self.paths)


def _check_runs(run_ids: tuple[str, ...]) -> None:
    """Refuse ids of runs that are not here."""
    from model_code.training.run_folder import find_run_place, resolve_run_id

    checkpoints_dir = load_settings().checkpoints_dir
    for run_id in run_ids:
        find_run_place(checkpoints_dir, resolve_run_id(checkpoints_dir, run_id))
