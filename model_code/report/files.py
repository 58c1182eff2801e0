"""A report on the disk and in MLflow."""

from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from model_code.disk import write_atomically
from model_code.errors import TrackingError, first_line
from model_code.report.document import Document
from model_code.report.markdown import FIGURES_FOLDER, render_markdown
from model_code.report.page import render_page
from model_code.report.place import writing_report
from model_code.settings import Settings
from model_code.tracking.provenance import read_git_sha

MARKDOWN_FILE, PAGE_FILE = "report.md", "report.html"
EXPERIMENT = "darkroom-reports"
RUN_NAME = "report"


@dataclass(frozen=True)
class ReportFiles:
    """Where a report is: its folder, the two texts in it, and the figures that the Markdown shows."""

    folder: Path
    markdown: Path
    page: Path
    figures: tuple[Path, ...]


def write_report(document: Document, folder: Path) -> ReportFiles:
    """Write a report, figures first; each file is replaced in one step. Other files in the folder stay.

    Raises:
        DiskFullError: There is no room.
        DataError: The folder cannot be written to.
    """
    figures = {folder / FIGURES_FOLDER / f"{image.name}.png": image.png for image in document.images}
    markdown, page = folder / MARKDOWN_FILE, folder / PAGE_FILE
    with writing_report(folder):
        for file, png in figures.items():
            write_atomically(file, png)
        write_atomically(markdown, render_markdown(document).encode())
        write_atomically(page, render_page(document).encode())
    return ReportFiles(folder, markdown, page, tuple(figures))


def log_report(client: MlflowClient, settings: Settings, files: ReportFiles) -> str:
    """Keep a written report in MLflow as artifacts of a run of its own; return the run's id.

    Raises:
        TrackingError: MLflow does not take it; the files stay where they are.
    """
    try:
        run_id = str(client.create_run(_open_experiment(client, settings), run_name=RUN_NAME).info.run_id)
        status = "FAILED"
        try:
            client.set_tag(run_id, "git_sha", read_git_sha())
            for file in (files.page, files.markdown):
                client.log_artifact(run_id, str(file))
            for figure in files.figures:
                client.log_artifact(run_id, str(figure), FIGURES_FOLDER)
            status = "FINISHED"
        finally:
            client.set_terminated(run_id, status)
    except (MlflowException, OSError) as error:
        reason = first_line(error)
        raise TrackingError(
            f"the report is in {files.folder}, but MLflow at {settings.tracking_uri} does not keep it ({reason}); "
            "mend the store and repeat the command"
        ) from error
    return run_id


def _open_experiment(client: MlflowClient, settings: Settings) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    if not settings.has_mlflow_server:
        settings.artifacts_dir.mkdir(parents=True, exist_ok=True)
    place = None if settings.has_mlflow_server else settings.artifacts_dir.as_uri()
    return str(client.create_experiment(EXPERIMENT, artifact_location=place))
