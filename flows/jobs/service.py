"""Clients of a running service: predictions and true labels."""

import sys
import time
from typing import Annotated, Literal

import click

from flows.jobs.job import RELEASED, Job, argument, option
from model_code.data.progress import FIRST_LINE_S, SECONDS_BETWEEN_LINES
from serving.listing import FORM, find_width, fold_line, print_heading, print_listing
from serving.printable import show

ADDRESS, SERVER = "http://127.0.0.1:3000", "Address of the service."
MODEL = "Registered name; if not given the only model that is served, else cifar10."


class Predict(Job):
    """Ask a running service about images, folders or zip archives of images, or URLs (fetched here, not there)."""

    command = "predict"

    sources: tuple[str, ...] = argument("IMAGE|URL")
    server: str = option(ADDRESS, SERVER)
    model: Annotated[str | None, RELEASED] = option(None, MODEL)
    top_k: int | None = option(None, "Classes for each image; at most 5 if not given.")
    form: Literal["table", "json", "csv", "submission"] = option(
        "table",
        f"{FORM} submission: id,label of images named by number, for Kaggle.",
        name="--format",
    )

    def run(self) -> None:
        from rich.console import Console

        from serving.client.client import (
            PREDICTION_COLUMNS,
            describe_model,
            flatten_records,
            list_records,
            name_answers,
            predict,
            write_submission,
        )

        console, next_s = Console(stderr=True), time.monotonic() + FIRST_LINE_S
        with console.status("asking about the first images") as status:

            def report(done: int) -> None:
                nonlocal next_s
                status.update(line := f"images sent: {done}")
                if not console.is_terminal and time.monotonic() > next_s:
                    next_s = time.monotonic() + SECONDS_BETWEEN_LINES
                    click.echo(line, err=True)

            result = predict(
                list(self.sources),
                server=self.server,
                model=self.model,
                top_k=self.top_k,
                on_progress=report,
            )
        records = list_records(result)
        if self.form in ("json", "csv"):
            print_listing((), flatten_records(records) if self.form == "csv" else records, self.form)
        elif self.form == "table":
            if result.predictions:
                print_heading(describe_model(result))
            # On a terminal the lines below say what failed.
            shown = records if find_width() is None else records[: len(result.predictions)]
            if shown:
                print_listing(PREDICTION_COLUMNS, name_answers(shown))
        width = find_width() if sys.stderr.isatty() else None
        for problem in result.problems:
            print(fold_line(show(f"darkroom: {problem.source}: {problem.message}"), width), file=sys.stderr)
        if self.form == "submission":
            write_submission(result, sys.stdout)
        if result.problems:
            sys.exit(1)


class GiveFeedback(Job):
    """Tell a running service the true LABEL of an image, for the next training.

    The service must have been started with --feedback.
    """

    command = "feedback"

    source: str = argument("IMAGE")
    label: str = argument("LABEL")
    server: str = option(ADDRESS, SERVER)
    model: Annotated[str | None, RELEASED] = option(None, MODEL)

    def run(self) -> None:
        from serving.client.client import send_feedback

        kept = send_feedback(self.source, self.label, self.server, self.model)
        count = f"{kept.count} image{'' if kept.count == 1 else 's'}"
        print(show(f"{self.source} is kept as {kept.label} for {kept.model}, {count} with feedback"))
