"""Start of Prefect: a server that PREFECT_API_URL names, or one of our own that lives as long as the command.

Call `configure` before anything imports prefect: it sets up its log at import.
"""

import atexit
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path

from model_code.disk import check_free_space, hold_lock, writing_to
from model_code.errors import DarkroomError
from model_code.settings import Settings

START_TIMEOUT_S = 600
STOP_TIMEOUT_S = 5
DATABASE_BYTES = 4_000_000
LOG_FILE, LOG_BYTES = "server.log", 1_000_000


def configure(settings: Settings) -> None:
    """Set Prefect's environment where the user has not set it, and start a server if none is named.

    The server starts while the command goes on; requests wait in its socket until it answers. It ends with this
    process, also when this process is killed.
    """
    home = settings.home / "prefect"
    defaults = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # Who is silent for longer is taken for dead (flows/operations/healing.py).
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }
    is_embedded = "PREFECT_API_URL" not in os.environ
    if is_embedded:
        defaults |= {
            "PREFECT_HOME": str(home),
            # The first start makes the database.
            "PREFECT_API_REQUEST_TIMEOUT": "180",
            "PREFECT_LOGGING_LEVEL": "CRITICAL",
            "PREFECT_LOGGING_TO_API_ENABLED": "false",
        }
    # The command prints its own lines; an error is shown once, by the command. A server's pages have the rest.
    for logger in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(logger).propagate = False
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if is_embedded:
        os.environ["PREFECT_API_URL"] = _start_server(settings)
    if "prefect" in sys.modules:
        # It has read its settings: without these it would start a temporary server.
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()


def _start_server(settings: Settings) -> str:
    """Start the server on a free loopback port and return its address.

    Raises:
        DarkroomError: The server ended before it answered.
    """
    home = settings.home / "prefect"
    # The first server of a home makes the database: others wait until it answers.
    migrated = home / f"database-{version('prefect')}"
    with hold_lock(settings.locks_dir / "prefect.lock", "starting Prefect"):
        with writing_to(home, DATABASE_BYTES, "starting Prefect"):
            home.mkdir(parents=True, exist_ok=True)
            check_free_space(home, DATABASE_BYTES, "starting Prefect")
        with (
            socket.create_server(("127.0.0.1", 0), backlog=128) as listener,
            (home / LOG_FILE).open("ab") as log,
        ):
            if log.tell() > LOG_BYTES:
                log.truncate(0)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            process = subprocess.Popen(
                # -P: a folder called flows where the command is typed must not stand in for this package.
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "flows.operations.embedded_server",
                    str(listener.fileno()),
                    str(os.getpid()),
                ],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the command, which ends the server itself.
                start_new_session=True,
            )
        atexit.register(_stop_server, process)
        if not migrated.exists():
            print("creating Prefect's database (once for each version of Prefect)", flush=True)
            _wait_until_it_answers(process, url, home / LOG_FILE)
            migrated.touch()
    return url


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=START_TIMEOUT_S):  # noqa: S310 - our own address
                return
        except OSError:
            time.sleep(0.1)
    if process.poll() is None:
        raise DarkroomError(
            f"Prefect's server did not answer within {START_TIMEOUT_S} s; is the machine busy with other work? Repeat "
            f"the command; {log} has what the server says"
        )
    raise DarkroomError(f"Prefect's server did not start; is the disk full? {log} says what it met")


def _stop_server(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
