"""The report: published figures beside ours."""

from pathlib import Path
from typing import TYPE_CHECKING

from flows.jobs.job import QUIET, Job, option
from flows.printing.narration import narrating
from model_code.disk import check_writable
from model_code.settings import load_settings
from serving.listing import FORM, Form

if TYPE_CHECKING:
    from model_code.report.files import ReportFiles


class Report(Job):
    """Write every published figure beside ours, verdicts on the open questions and all curves.

    Without --out the report goes to DARKROOM_HOME/report; MLflow keeps a copy.
    """

    command, flow, is_short, loads = "report", "write-report", True, ("MLflow", "Matplotlib")

    out: Path | None = option(None, "Folder for report.md and report.html.")

    form: Form = option("table", FORM, name="--format")
    is_quiet: bool = option(False, QUIET, name="--quiet")

    @property
    def folder(self) -> Path:
        """Folder of the report."""
        return (self.out or load_settings().home / "report").resolve()

    def check(self) -> None:
        from model_code.report.place import writing_report

        if self.out is not None:
            with writing_report(self.folder):
                check_writable(self.folder, "the report")

    def run(self) -> None:
        with narrating(self.form, is_quiet=self.is_quiet):
            written = self.write()
        from flows.printing.runs import print_report

        print_report(*written, self.form, is_quiet=self.is_quiet)

    def write(self) -> "tuple[ReportFiles, int, str]":
        """Write the report; return its files, the number of finished runs, and the MLflow run that keeps a copy."""
        from flows.printing.runs import count_runs
        from model_code.report.collection import collect_runs
        from model_code.report.contents import build_document, describe_origin
        from model_code.report.files import log_report, write_report
        from model_code.tracking.store import open_store

        settings = load_settings()
        client = open_store(settings)
        print("reading the runs", flush=True)
        collection = collect_runs(client)
        print(f"comparing {count_runs(collection.finished_count)}", flush=True)
        document = build_document(collection, client, settings, describe_origin())
        files = write_report(document, self.folder)
        return files, collection.finished_count, log_report(client, settings, files)
