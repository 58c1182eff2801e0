"""The machine and its servers: examination, health, MLflow's pages, Prefect's deployments, the whole path at once."""

import socket
from functools import cached_property
from typing import TYPE_CHECKING

from flows.jobs.job import Job, option
from model_code.errors import DarkroomError, ServiceError, TrackingError
from model_code.settings import load_settings
from serving.listing import FORM, Form

if TYPE_CHECKING:
    from model_code.tracking.pages import Pages


class Doctor(Job):
    """Say what this machine can do, and what is missing."""

    command, loads = "doctor", ("PyTorch", "ONNX Runtime")

    form: Form = option("table", FORM, name="--format")

    @property
    def writes_home(self) -> bool:
        return False

    def run(self) -> None:
        from flows.operations.doctor import examine_machine
        from flows.printing.inventory import print_findings

        findings = examine_machine()
        print_findings(findings, self.form)
        if missing := [finding.what for finding in findings if finding.level == "missing"]:
            raise DarkroomError(f"missing: {', '.join(missing)}; the lines above say what to do")


class CheckHealth(Job):
    """Look at the images that are there or needed, released models, service and disk; fail with what is wrong."""

    flow = "check-health"

    def run(self) -> None:
        from flows.operations.upkeep import find_problems

        if problems := find_problems(load_settings()):
            raise DarkroomError("; ".join(problems))
        print("data sets, released models, service and disk are well")


class OpenPages(Job):
    """Open MLflow on the runs and registered models."""

    command, loads = "ui", ("MLflow",)

    port: int = option(5000, "Port of MLflow's pages.", ge=1, le=65535)

    def check(self) -> None:
        settings = load_settings()
        if settings.has_mlflow_server:
            raise TrackingError(f"MLFLOW_TRACKING_URI is set: open {settings.tracking_uri} in a browser")
        _check_port(self.port, TrackingError)

    @cached_property
    def pages(self) -> "Pages":
        """The pages, which listen."""
        from model_code.tracking.pages import Pages

        return Pages(load_settings(), self.port)

    def run(self) -> None:
        print(f"MLflow on {load_settings().home} at {self.pages.address} (Ctrl-C stops it)", flush=True)

    def serve(self) -> None:
        try:
            self.pages.serve()
        except KeyboardInterrupt:
            print("stopped", flush=True)


class Deploy(Job):
    """Write work pools, device slots and the deployments of ./prefect.yaml to the server in PREFECT_API_URL."""

    command, loads = "deploy", ("Prefect",)

    @property
    def writes_home(self) -> bool:
        return False

    def check(self) -> None:
        _check_prefect()

    def run(self) -> None:
        from flows.operations.deployment import deploy_all

        deploy_all()


class Heal(Job):
    """Start flow runs again whose process died, and skip scheduled ones that piled up, until Ctrl-C."""

    command, loads = "heal", ("Prefect",)

    every_s: float = option(30, "Seconds between two looks.", name="--every", metavar="SECONDS", ge=1)
    port: int | None = option(None, "Answer Prometheus there.", name="--metrics-port", ge=1, le=65535)

    @property
    def writes_home(self) -> bool:
        return False

    def check(self) -> None:
        _check_prefect()

    def run(self) -> None:
        import flows.operations.healing  # noqa: F401 - its seconds are told like those of other commands

        print("looking for dead and late flow runs (Ctrl-C stops it)", flush=True)

    def serve(self) -> None:
        from flows.operations.healing import keep_healing

        keep_healing(self.every_s, self.port)


class QuickStart(Job):
    """Run the whole path on drawn images: data, training, release, service, prediction."""

    command, flow, loads = "quickstart", "quickstart", ("PyTorch", "MLflow", "Prefect")
    is_resumable = True

    port: int = option(0, "Port of the service; 0 takes a free one.", ge=0, le=65535)

    def check(self) -> None:
        _check_port(self.port, ServiceError)

    def run(self) -> None:
        from flows.operations.quickstart import run_quickstart

        run_quickstart(self.port)


def _check_prefect() -> None:
    from flows.operations.prefect_server import get_server_address

    get_server_address()


def _check_port(port: int, refused: type[DarkroomError]) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        reason = f"cannot listen on 127.0.0.1:{port}: {error.strerror}"
        raise refused(f"{reason}; choose another --port") from error
