"""Parent process of the service: it asks /livez, and starts the service again when it is dead, stopped or hung.

The listening socket belongs to the supervisor, so that clients that connect during a restart wait instead of being
refused. The service ends with its supervisor (PR_SET_PDEATHSIG).
"""

import ctypes
import http.client
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

LISTENER_VARIABLE = "DARKROOM_LISTENER_FD"
# Three probes without an answer are noticed within nine seconds.
PROBE_INTERVAL_S = 1.0
PROBE_TIMEOUT_S = 2.0
MOST_FAILURES = 3
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 19.0
_RESTART_DELAY_S = 1.0
_PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


class Supervisor:
    """One service process after the other, on one socket."""

    def __init__(self, listener: socket.socket, command: Sequence[str]) -> None:
        """Remember what to start.

        Args:
            listener: Accepts connections; the service inherits it.
            command: Starts the service.
        """
        self._listener = listener
        self._command = list(command)
        self._is_stopping = False

    def run(self) -> int:
        """Keep the service running until SIGTERM or Ctrl-C; returns the exit status.

        A service that ends before it has answered once is not started again: its own lines say why.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        while True:
            process = self._start()
            has_lived, status = self._watch(process)
            if self._is_stopping or not has_lived:
                return status
            logger.warning("the service ended with status %d; it is started again", status)
            time.sleep(_RESTART_DELAY_S)

    def _stop(self, _: int, __: FrameType | None) -> None:
        self._is_stopping = True

    def _start(self) -> subprocess.Popen[bytes]:
        number = self._listener.fileno()
        return subprocess.Popen(
            self._command, env=os.environ | {LISTENER_VARIABLE: str(number)}, pass_fds=[number], process_group=0
        )

    def _watch(self, process: subprocess.Popen[bytes]) -> tuple[bool, int]:
        """Wait until the service ends or has to be ended; returns whether it ever answered, and its status."""
        has_lived, failures, start_s = False, 0, time.monotonic()
        while process.poll() is None and not self._is_stopping:
            if self._is_alive():
                has_lived, failures = True, 0
            elif has_lived or time.monotonic() - start_s > START_TIMEOUT_S:
                failures += 1
            if failures >= MOST_FAILURES:
                logger.warning("the service did not answer /livez %d times; it is killed", failures)
                process.kill()
                has_lived = True
                break
            time.sleep(PROBE_INTERVAL_S)
        if self._is_stopping and process.poll() is None:
            process.terminate()
        try:
            return has_lived, process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return has_lived, process.wait()

    def _is_alive(self) -> bool:
        host, port = self._listener.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        connection = http.client.HTTPConnection(host, port, timeout=PROBE_TIMEOUT_S)
        try:
            connection.request("GET", "/livez", headers={"Connection": "close"})
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def supervise(listener: socket.socket, flag: str) -> int:
    """Run this process's own command without a flag under supervision; returns the exit status.

    Args:
        listener: Accepts connections.
        flag: Left out of the command.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    command = [sys.executable, *(part for part in sys.orig_argv[1:] if part != flag)]
    return Supervisor(listener, command).run()


def take_listener() -> socket.socket | None:
    """Return the socket that a supervisor left to this process, which ends with it; None without one."""
    number = os.environ.pop(LISTENER_VARIABLE, None)
    if number is None:
        return None
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return socket.socket(fileno=int(number))
