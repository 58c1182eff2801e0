"""Starts the service in this process and says where it listens and what it serves.

    python -m serving.launcher --port 3000

One process, so that nothing is left holding the port when it is killed.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.bundle import list_released
from serving.errors import StartError
from serving.manifest import Precision
from serving.model_set import PRECISION_VARIABLE, find_bundles_dir
from serving.predictions import ModelsAnswer

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 3000
BENTOML_PATHS = {"/livez", "/readyz", "/healthz", "/metrics", "/schema.json"}
_STOP_TIMEOUT_S = 20


def run_server(
    port: int = DEFAULT_PORT,
    host: str = DEFAULT_HOST,
    home: Path | None = None,
    is_patient: bool = False,
    precision: str | None = None,
) -> None:
    """Serve the released models until Ctrl-C or SIGTERM; requests that have started are finished.

    Args:
        port: TCP port; 0 takes a free one.
        host: Address to listen on; `0.0.0.0` for every one.
        home: DARKROOM_HOME; the environment's, or `./.darkroom`, when None.
        is_patient: Whether to start without a model and answer 503 until the first release.
        precision: The variant that is to answer; the fastest of each model when None.

    Raises:
        StartError: Nothing is released or can be loaded and it is not patient, or the address cannot be listened on.
    """
    bundles_dir = find_bundles_dir(home)
    if not (is_patient or list_released(bundles_dir)):
        raise StartError(f"no model is released in {bundles_dir}; run `darkroom release RECIPE --as cifar10`")
    with _listen(host, port) as listener, tempfile.TemporaryDirectory(prefix="darkroom-serving-") as scratch:
        os.environ["DARKROOM_HOME"] = str(bundles_dir.parent)
        os.environ[PRECISION_VARIABLE] = precision or ""
        _keep_bentoml_here(Path(scratch))
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            _serve(listener, is_patient)
        except KeyboardInterrupt:
            print("stopped")


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m serving.launcher`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serving.launcher", description="Serve the released models.")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--host", default=DEFAULT_HOST)
    parser.add_argument("--home", type=Path, help="DARKROOM_HOME; ./.darkroom by default")
    parser.add_argument("--precision", choices=get_args(Precision), help="the fastest by default")
    parser.add_argument("--wait", action="store_true", help="start without a model and wait for the first release")
    options = parser.parse_args(arguments)
    try:
        run_server(options.port, options.host, options.home, options.wait, options.precision)
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        # create_server words its own text around the system's; a name that does not resolve has a negative number.
        number = (isinstance(error, OSError) and error.errno) or 0
        reason = os.strerror(number) if number > 0 else str(error)
        raise StartError(f"cannot listen on {host}:{port}: {reason}; choose another with --port") from error
    # What it accepts inherits this. asyncio sets it only where it sees TCP, which create_server's sockets do not say:
    # without it the second half of an answer waits up to 40 ms until the client has acknowledged the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _keep_bentoml_here(scratch: Path) -> None:
    """Set what BentoML reads when it is imported: it would write to the user's home and report its use."""
    metrics_dir = scratch / "metrics"
    metrics_dir.mkdir()
    os.environ["BENTOML_HOME"] = str(scratch / "bentoml")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics_dir)
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"


def _serve(listener: socket.socket, is_patient: bool) -> None:
    from bentoml import server_context

    from serving import service

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("serving").setLevel(logging.INFO)
    # The decorator makes the class a bentoml.Service, which type checkers do not see.
    darkroom: Any = service.Darkroom
    # The labels of BentoML's metrics.
    server_context.service_name = server_context.bento_name = darkroom.name
    config = uvicorn.Config(
        keep_unknown_paths_apart(darkroom.to_asgi(), service.app),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_STOP_TIMEOUT_S,
    )
    server = _AnnouncingServer(config, service.app, is_patient)
    server.run(sockets=[listener])
    if not server.started:
        raise StartError("the service did not start; the lines above say why")
    if server.problem:
        raise StartError(server.problem)


def keep_unknown_paths_apart(whole: ASGIApp, routes: Starlette) -> ASGIApp:
    """Send paths that nothing answers past BentoML's metrics, which would keep a label for each of them forever.

    Args:
        whole: The service as BentoML builds it.
        routes: Our own routes; they refuse what they do not know.
    """
    known = {route.path for route in routes.routes if isinstance(route, Route)} | BENTOML_PATHS

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        is_known = scope["type"] != "http" or scope["path"] in known
        await (whole if is_known else routes)(scope, receive, send)

    return dispatch


class _AnnouncingServer(uvicorn.Server):
    """Says when it is ready; stops when there is nothing to serve, unless it is patient."""

    def __init__(self, config: uvicorn.Config, app: Starlette, is_patient: bool) -> None:
        super().__init__(config)
        self._is_patient = is_patient
        self.problem = ""
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not (self.started and sockets):
            return
        answer = self._app.state.api.models.describe()
        if not (answer.models or self._is_patient):
            self.problem = "; ".join(problem.message for problem in answer.problems) or "no model is released"
            self.should_exit = True
            return
        print(describe_service(format_address(sockets[0]), answer), flush=True)


def describe_service(address: str, answer: ModelsAnswer) -> str:
    """Return what is printed when the service is ready: the address, then one line per model and problem."""
    lines = [f"Darkroom serves at {address} (Ctrl-C stops it)"]
    lines += [
        f"  {model.name} version {model.version}, {len(model.classes)} classes, {model.provider}, {model.choice}"
        for model in answer.models
    ]
    lines += [f"  {problem.name}: {problem.message}" for problem in answer.problems]
    if not (answer.models or answer.problems):
        lines.append("  no model is released yet; the first one is loaded when it comes")
    return "\n".join(lines)


def format_address(listener: socket.socket) -> str:
    """Return the URL at which this machine reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
