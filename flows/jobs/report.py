"""The report: published figures beside ours."""

from pathlib import Path

from flows.jobs.job import Job, option
from model_code.settings import load_settings


class Report(Job):
    """Write every published figure beside ours, verdicts on the open questions and all curves.

    Without --out the report goes to DARKROOM_HOME/report; MLflow keeps a copy.
    """

    command, flow, is_short, loads = "report", "write-report", True, "MLflow and Matplotlib"

    out: Path | None = option(None, "Folder for report.md and report.html.")

    def run(self) -> None:
        from flows.printing.tables import print_report
        from model_code.report.collection import collect_runs
        from model_code.report.contents import build_document, describe_origin
        from model_code.report.files import log_report, write_report
        from model_code.tracking.store import open_store

        settings = load_settings()
        client = open_store(settings)
        collection = collect_runs(client)
        document = build_document(collection, client, settings, describe_origin())
        files = write_report(document, (self.out or settings.home / "report").resolve())
        print_report(files, collection.finished_count, log_report(client, settings, files))
