"""uvicorn around the service: what answers which path, and what is printed when it is ready.

Import it only once BentoML's environment is set (`serving/launcher.py`).
"""

import faulthandler
import gc
import logging
import socket
import warnings
from types import FrameType
from typing import Any

import prometheus_client
import uvicorn
from bentoml import server_context
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.server.metrics.prometheus import PrometheusClient
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import service
from serving.errors import StartError
from serving.http.api import BENTOML_PATHS
from serving.http.protocol import BoundedHttp
from serving.listing import find_terminal_width, fold_line
from serving.models.predictions import ModelsAnswer
from serving.printable import PrintableFormatter, show
from serving.supervisor import start_heartbeat

# Requests that have started get so long to end; the process is gone after the second, whatever still runs.
_STOP_TIMEOUT_S = 8
_EXIT_TIMEOUT_S = 12


def run_service(listener: socket.socket, is_patient: bool) -> None:
    """Serve on a listening socket until the process is told to stop.

    Args:
        listener: Accepts connections.
        is_patient: True to go on without a model.

    Raises:
        StartError: The service did not start, or nothing can be loaded and it is not patient.
    """
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger("serving").setLevel(logging.INFO)
    # The answer says what is wrong with an image; Python would keep each different warning about one forever.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="PIL")
    # The decorator makes the class a bentoml.Service, which type checkers do not see.
    darkroom: Any = service.Darkroom
    # The labels of BentoML's metrics.
    server_context.service_name = server_context.bento_name = darkroom.name
    # Counted in memory: mapped files in a folder that is full or cleaned would end this process.
    BentoMLContainer.metrics_client.set(PrometheusClient(multiproc=False))
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    config = uvicorn.Config(
        separate_paths(darkroom.to_asgi(), service.app),
        http=BoundedHttp,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=service.options.keep_alive_s,
        timeout_graceful_shutdown=_STOP_TIMEOUT_S,
    )
    server = _AnnouncingServer(config, service.app, is_patient)
    server.run(sockets=[listener])
    if not server.started:
        raise StartError("the service did not start; the lines above say why")
    if server.problem:
        raise StartError(server.problem)


def separate_paths(whole: ASGIApp, routes: ASGIApp) -> ASGIApp:
    """Send probes, metrics and the life of the process to BentoML, and everything else straight to our routes.

    BentoML's layers between a connection and a route cost more than the route itself, and its metrics would keep a
    label for each path that anybody asks for; `serving/observation/metrics.py` counts requests instead.

    Args:
        whole: The service as BentoML builds it.
        routes: Our own routes; they refuse what they do not know.
    """

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        is_ours = scope["type"] == "http" and scope["path"] not in BENTOML_PATHS
        await (routes if is_ours else whole)(scope, receive, send)

    return dispatch


class _AnnouncingServer(uvicorn.Server):
    """Says when it is ready; stops when there is nothing to serve, unless it is patient."""

    def __init__(self, config: uvicorn.Config, app: Starlette, is_patient: bool) -> None:
        super().__init__(config)
        self._is_patient = is_patient
        self.problem = ""
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; a thread that hangs is shown on stderr and ends with the process."""
        faulthandler.dump_traceback_later(_EXIT_TIMEOUT_S, exit=True)
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not (self.started and sockets):
            return
        answer = self._app.state.api.models.describe()
        if not (answer.models or self._is_patient):
            self.problem = "; ".join(problem.message for problem in answer.problems) or "no model is released"
            self.should_exit = True
            return
        self._heartbeat = start_heartbeat(lambda: not self._app.state.explain_dead())
        # What stays as long as the process is not looked through again while requests wait.
        gc.collect()
        gc.freeze()
        lines = [
            *describe_service(format_address(sockets[0]), answer).split("\n"),
            f"  {self._app.state.api.describe_threads()}",
        ]
        width = find_terminal_width()
        print("\n".join(fold_line(line, width) for line in lines), flush=True)


def describe_service(address: str, answer: ModelsAnswer) -> str:
    """Return what is printed when the service is ready: the address, then one line per model and problem."""
    lines = [f"Darkroom serves at {address} (Ctrl-C stops it)"]
    lines += [
        f"  {model.name} version {model.version}, {len(model.classes)} classes, {model.provider}, {model.choice}"
        for model in answer.models
    ]
    lines += [show(f"  {problem.name}: {problem.message}") for problem in answer.problems]
    if not (answer.models or answer.problems):
        lines.append("  no model is released yet; the first one is loaded when it comes")
    return "\n".join(lines)


def format_address(listener: socket.socket) -> str:
    """Return the URL at which this machine reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
