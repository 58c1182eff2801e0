"""The limits, tried in a process of their own, since they last."""

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, os, signal, socket, subprocess, threading
from serving.decoding.sandbox import forbid_system_calls, limit_resources
limit_resources(100_000_000)
problem = forbid_system_calls()
if problem:
    print("skip", problem); os._exit(0)
{attempt}
"""
FORBIDDEN = {
    "a socket": "socket.socket()",
    "a file": "open('/etc/passwd')",
    "a written file": "open('/dev/shm/darkroom-test', 'w')",
    "a process": "os.fork()",
    "a command": "os.execv('/bin/true', ['true'])",
    "a signal": "os.kill(os.getppid(), 0)",
    "a signal to a thread of another process": (
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.tgkill(os.getppid(), os.getppid(), signal.SIGCONT): raise OSError(ctypes.get_errno(), 'tgkill')"
    ),
}


def run(attempt):
    outcome = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(attempt=attempt)], capture_output=True, text=True, timeout=60, check=False
    )
    if outcome.stdout.startswith("skip"):
        pytest.skip(outcome.stdout)
    return outcome


@pytest.mark.parametrize("attempt", FORBIDDEN.values(), ids=FORBIDDEN)
def test_it_is_forbidden(attempt):
    assert "PermissionError: [Errno 1]" in run(attempt).stderr


def test_memory_is_limited():
    assert "MemoryError" in run("bytearray(200_000_000)").stderr


def test_threads_and_memory_remain():
    attempt = "t = threading.Thread(target=print, args=('thread',)); t.start(); t.join(); bytearray(50_000_000)"
    outcome = run(attempt)
    assert (outcome.stdout, outcome.returncode) == ("thread\n", 0), outcome.stderr
