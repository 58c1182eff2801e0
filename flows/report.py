"""The report flow: finished runs -> report.md and report.html -> MLflow."""

from pathlib import Path

from prefect import flow

from flows.printing.summaries import ReportSummary
from model_code.report.collection import collect_runs
from model_code.report.contents import build_document, describe_origin
from model_code.report.files import log_report, write_report
from model_code.settings import load_settings
from model_code.tracking.store import open_store


@flow(name="report")
def report_flow(folder: Path) -> ReportSummary:
    """Write the report on every finished run to a folder and keep it in MLflow."""
    settings = load_settings()
    client = open_store(settings)
    collection = collect_runs(client)
    document = build_document(collection, client, settings, describe_origin())
    files = write_report(document, folder)
    return ReportSummary(
        markdown=str(files.markdown),
        page=str(files.page),
        run_count=collection.finished_count,
        run_id=log_report(client, settings, files),
    )
