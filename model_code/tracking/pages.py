"""MLflow's pages on the store, answered by this process on the loopback address."""

import os
import signal
import socket
import warnings

import uvicorn  # before mlflow.server, which checks hosts and origins only within a server
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from model_code.errors import TrackingError
from model_code.settings import Settings
from model_code.tracking.store import as_uri, open_store, share_view

# Requests that are being answered do not keep the process.
_STOP_TIMEOUT_S = 1
# The fragment, which chooses one of MLflow's pages, never reaches a server. What a person chose before stays.
_LEAD = """<!doctype html>
<script>
  location.replace("/?page" + (location.hash || "#/VIEW"));
  localStorage["mlflow.workflowType_v1"] ??= '"machine_learning"';
  localStorage["mlflow.assistant.fab.autoOpenedOnFirstLoad_v1"] ??= "true";
</script>
"""


class Pages:
    """MLflow's pages: they listen once they are made, and answer while `serve` runs.

    Attributes:
        address: What a browser opens.

    Args:
        settings: Where the store is.
        port: TCP port.

    Raises:
        TrackingError: The store cannot be opened, or the port is taken.
    """

    def __init__(self, settings: Settings, port: int) -> None:
        view = share_view(open_store(settings))
        app = _begin_at(view, _load_app(settings))
        try:
            self._listener = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            raise TrackingError(
                f"cannot listen on 127.0.0.1:{port}: {error.strerror}; choose another --port"
            ) from error
        self.address = f"http://127.0.0.1:{port}/#/{view}"
        # `mlflow server` prints every request and what it does when it starts and ends.
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=_STOP_TIMEOUT_S)
        )

    def serve(self) -> None:
        """Answer until Ctrl-C.

        Raises:
            KeyboardInterrupt: It came.
            TrackingError: MLflow does not start.
        """
        # uvicorn ends at Ctrl-C also where a script that has started this ignores it, and then says nothing.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._server.run(sockets=[self._listener])
        if not self._server.started:
            raise TrackingError("MLflow's pages did not start; the lines above say why")


def _begin_at(view: str, app: ASGIApp) -> ASGIApp:
    """Redirect the bare address to a view, with MLflow's pages for training instead of those for language models."""
    lead = HTMLResponse(_LEAD.replace("VIEW", view))

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        is_bare = scope["type"] == "http" and scope["path"] == "/" and not scope["query_string"]
        await (lead if is_bare else app)(scope, receive, send)

    return answer


def _load_app(settings: Settings) -> ASGIApp:
    """Return MLflow's server as `mlflow server` starts it, with its settings from the environment."""
    # Its background jobs are for evaluating language models.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    warnings.simplefilter("ignore")  # deprecations in MLflow's code
    from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR, REGISTRY_STORE_URI_ENV_VAR

    os.environ |= {
        BACKEND_STORE_URI_ENV_VAR: settings.tracking_uri,
        REGISTRY_STORE_URI_ENV_VAR: settings.tracking_uri,
        ARTIFACT_ROOT_ENV_VAR: as_uri(settings.artifacts_dir),
    }
    from mlflow.server import fastapi_app

    app: ASGIApp = fastapi_app.app
    return app
