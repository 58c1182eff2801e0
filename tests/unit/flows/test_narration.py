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
with narration.showing_silence("loading"):
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
    assert (done.stdout, done.stderr) == ("loading\nloaded\n", "loading, 1 s so far\n  50 %\nthe end\n")


def test_a_pipe_is_told_of_the_first_silence_again_and_again():
    script = (
        "import time\nfrom flows.printing import narration\n"
        "narration.SILENCE_S, narration.SECONDS_BETWEEN_LINES = 0.2, 0.5\n"
        "with narration.showing_silence('loading', 'json'):\n    time.sleep(1.6)\n    print('[]')\n    time.sleep(1)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], check=False, capture_output=True, text=True)
    first, *lines = done.stderr.splitlines()
    assert (done.stdout, first) == ("[]\n", "loading")
    assert [line.removeprefix("loading, ") for line in lines] == ["0 s so far", "1 s so far", "1 s so far"]
