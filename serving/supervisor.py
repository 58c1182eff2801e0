"""Parent process of the service: it starts the service again when it is dead, stopped or hung.

The service sends a heartbeat through a pipe from its event loop, whatever its connections do. The listening socket
belongs to the supervisor, so that clients that connect during a restart wait instead of being refused. The service ends
with its supervisor (PR_SET_PDEATHSIG). As the first process of a container the supervisor collects orphans too.
"""

import asyncio
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType

from serving.decoding.sandbox import end_with_parent

LISTENER_VARIABLE = "DARKROOM_LISTENER_FD"
HEARTBEAT_VARIABLE = "DARKROOM_HEARTBEAT_FD"
BEAT_INTERVAL_S = 1.0
SILENT_TIMEOUT_S = 8.0
START_TIMEOUT_S = 120.0
# From the signal; the service ends itself after 12 s and shows what hangs (serving/server.py).
STOP_TIMEOUT_S = 14.0
# Doubled with each restart of a service that did not live for as long as the last.
FIRST_DELAY_S, LAST_DELAY_S = 1.0, 60.0

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
        self._stop_s: float | None = None
        self._wake, self._signalled = socket.socketpair()
        for one in (self._wake, self._signalled):
            one.setblocking(False)

    def run(self) -> int:
        """Keep the service running until SIGTERM or Ctrl-C; returns the exit status.

        A service that ends before any has sent a heartbeat is not started again: its own lines say why.
        """
        signal.set_wakeup_fd(self._signalled.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # it wakes `_wait`
        has_lived, delay_s, status = False, FIRST_DELAY_S, 0
        while self._stop_s is None:
            start_s = time.monotonic()
            process, beats = self._start()
            try:
                has_lived |= self._watch(process, beats)
            finally:
                os.close(beats)
            status = process.returncode
            if self._stop_s is not None or not has_lived:
                return status
            if time.monotonic() - start_s > LAST_DELAY_S:
                delay_s = FIRST_DELAY_S
            logger.warning("the service ended with status %d; it is started again in %g s", status, delay_s)
            end_s = time.monotonic() + delay_s
            while self._stop_s is None and (left_s := end_s - time.monotonic()) > 0:
                self._wait(left_s)
                _reap(process)
            delay_s = min(2 * delay_s, LAST_DELAY_S)
        return 0

    def _stop(self, _: int, __: FrameType | None) -> None:
        if self._stop_s is None:
            self._stop_s = time.monotonic()

    def _start(self) -> tuple[subprocess.Popen[bytes], int]:
        """Start the service; returns it and where its heartbeats arrive."""
        beats, theirs = os.pipe()
        os.set_blocking(beats, False)
        listener = self._listener.fileno()
        variables = {LISTENER_VARIABLE: str(listener), HEARTBEAT_VARIABLE: str(theirs)}
        try:
            process = subprocess.Popen(
                self._command, env=os.environ | variables, pass_fds=[listener, theirs], process_group=0
            )
        finally:
            os.close(theirs)
        return process, beats

    def _watch(self, process: subprocess.Popen[bytes], beats: int) -> bool:
        """Wait until the service has ended, and end it when it has to; returns False if it never worked at all."""
        has_beaten, is_killed, is_told, heard_s = False, False, False, time.monotonic()
        while not _reap(process):
            if self._stop_s is not None and not is_told:
                is_told = True
                process.terminate()
                process.send_signal(signal.SIGCONT)
            limit_s = SILENT_TIMEOUT_S if has_beaten else START_TIMEOUT_S
            end_s = heard_s + limit_s if self._stop_s is None else self._stop_s + STOP_TIMEOUT_S
            if time.monotonic() >= end_s:
                if not is_killed:
                    logger.warning("the service sends no heartbeat or does not stop; it is killed")
                is_killed = True
                process.kill()
                end_s = time.monotonic() + BEAT_INTERVAL_S
            self._wait(min(end_s - time.monotonic(), BEAT_INTERVAL_S))
            if _drain(beats):
                has_beaten, heard_s = True, time.monotonic()
        return has_beaten or is_killed or _drain(beats)

    def _wait(self, seconds: float) -> None:
        """Wait for a signal."""
        select.select([self._wake], [], [], max(0.0, seconds))
        with suppress(BlockingIOError):
            self._wake.recv(4096)


def _reap(process: subprocess.Popen[bytes]) -> bool:
    """Collect every child that has ended, orphans of the service too; returns True if the service has."""
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            if pid == process.pid:
                process.returncode = os.waitstatus_to_exitcode(status)
    return process.poll() is not None


def _drain(beats: int) -> bool:
    """Return True if heartbeats have arrived."""
    try:
        return bool(os.read(beats, 65_536))
    except BlockingIOError:
        return False


def supervise(listener: socket.socket) -> int:
    """Run this process's own command under supervision; returns the exit status.

    Args:
        listener: Accepts connections.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return Supervisor(listener, [sys.executable, *sys.orig_argv[1:]]).run()


def has_supervisor() -> bool:
    """Return True if a supervisor started this process and `take_listener` has not been called."""
    return LISTENER_VARIABLE in os.environ


def take_listener() -> socket.socket | None:
    """Return the socket that a supervisor left to this process, which ends with it; None without one."""
    number = os.environ.pop(LISTENER_VARIABLE, None)
    if number is None:
        return None
    end_with_parent()
    return socket.socket(fileno=int(number))


def start_heartbeat(is_alive: Callable[[], bool]) -> "asyncio.Task[None] | None":
    """Send the supervisor a heartbeat now and each second in which the service is alive; None without a supervisor.

    Args:
        is_alive: Asked on the event loop before each heartbeat but the first.
    """
    number = os.environ.pop(HEARTBEAT_VARIABLE, None)
    if number is None:
        return None
    beats = int(number)
    os.set_inheritable(beats, False)
    os.set_blocking(beats, False)
    os.write(beats, b".")
    return asyncio.create_task(_beat(beats, is_alive))


async def _beat(beats: int, is_alive: Callable[[], bool]) -> None:
    with suppress(BrokenPipeError):
        while True:
            await asyncio.sleep(BEAT_INTERVAL_S)
            if is_alive():
                with suppress(BlockingIOError):  # a stopped supervisor reads none
                    os.write(beats, b".")
