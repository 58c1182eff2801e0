"""Offline runs: packing them where they were trained, and syncing them where MLflow is."""

from pathlib import Path
from typing import Literal

from flows.jobs.job import Job, argument, option


class PackRuns(Job):
    """Pack complete runs of `darkroom train --offline` as files of a size, to bring them home.

    RUN is a run id or its beginning.
    """

    command = "runs pack"

    runs: tuple[str, ...] = argument("RUN")
    out: Path = option(..., "Folder of the packs.", metavar="DIR")
    part_size: str = option("15MiB", "Largest file.", metavar="SIZE")
    weights: Literal["best", "all", "none"] = option(
        "best", "all: those of the last epoch too; none: neither, for a report without a release."
    )

    def run(self) -> None:
        from flows.operations.run_packing import pack_runs
        from model_code.tracking.pack import parse_size

        pack_runs(self.runs, self.weights, self.out, parse_size(self.part_size))


class SyncRuns(Job):
    """Take up packed runs, as if they had been trained here; what is here already stays as it is.

    PATH is a folder of packs or a file of one.
    """

    command = "runs sync"

    paths: tuple[Path, ...] = argument("PATH")

    def run(self) -> None:
        from flows.operations.run_sync import sync_runs

        sync_runs(self.paths)
