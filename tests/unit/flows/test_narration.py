"""Silence of a command on a terminal and in a pipe."""

import os
import pty
import subprocess
import sys
from contextlib import suppress

import pytest

SCRIPT = """
import sys, time
from flows.printing import narration
narration.SILENCE_S = 0.6
with narration.showing_silence():
    print("loading")
    time.sleep(2)
    print("loaded")
    print("  50 %", end="", file=sys.stderr, flush=True)
    time.sleep(1.5)
    print(file=sys.stderr)
    raise SystemExit("the end")
"""
CLEAR = "\r\x1b[K"


def run_in_terminal(script):
    controller, terminal = pty.openpty()
    process = subprocess.Popen([sys.executable, "-P", "-c", script], stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    with os.fdopen(controller, "rb", buffering=0) as stream, suppress(OSError):  # its end, once the process has ended
        while part := stream.read(4096):
            shown += part
    process.wait(30)
    return shown.decode()


def test_a_silence_is_shown_until_the_next_output_takes_its_place():
    shown = run_in_terminal(SCRIPT)
    silence, rest = shown.split("loaded\r\n")
    assert silence.startswith(f"loading\r\n{CLEAR}  1 s{CLEAR}")
    assert silence.endswith(f"  2 s{CLEAR}")
    assert rest == "  50 %\r\nthe end\r\n", "a progress bar stays as it is"


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_pipe_gets_lines_only(stream):
    piped = SCRIPT.replace("with narr", f"import io; sys.{stream} = io.StringIO()\nwith narr")
    assert CLEAR not in run_in_terminal(piped)
    done = subprocess.run([sys.executable, "-P", "-c", SCRIPT], check=False, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("loading\nloaded\n", "  50 %\nthe end\n")
