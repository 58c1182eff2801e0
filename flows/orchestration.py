"""How Prefect runs here: a server that PREFECT_API_URL names, or one of our own that lives as long as the command.

Call `configure` before anything imports prefect: it reads its settings at import.
"""

import atexit
import os
import socket
import subprocess
import sys

from model_code.settings import Settings

STOP_TIMEOUT_S = 5


def configure(settings: Settings) -> None:
    """Set Prefect's environment where the user has not set it, and start a server if none is named.

    The server starts while the command goes on; requests wait in its socket until it answers. It ends with this
    process, also when this process is killed.
    """
    home = settings.home / "prefect"
    defaults = {
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "results"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    is_embedded = "PREFECT_API_URL" not in os.environ
    if is_embedded:
        defaults |= {
            "PREFECT_HOME": str(home),
            # The first start makes the database.
            "PREFECT_API_REQUEST_TIMEOUT": "180",
            # The command prints its own lines; an error is shown once, by the command.
            "PREFECT_LOGGING_LEVEL": "CRITICAL",
            "PREFECT_LOGGING_TO_API_ENABLED": "false",
        }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if is_embedded:
        os.environ["PREFECT_API_URL"] = _start_server(settings)


def _start_server(settings: Settings) -> str:
    """Start the server on a free loopback port and return its address."""
    (settings.home / "prefect").mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.embedded_server", str(listener.fileno()), str(os.getpid())],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            # Ctrl-C is for the command, which ends the server itself.
            start_new_session=True,
        )
    atexit.register(_stop_server, process)
    return f"http://127.0.0.1:{port}/api"


def _stop_server(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
