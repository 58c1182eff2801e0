"""Silence of a command on a terminal and in a pipe."""

import os
import pty
import re
import subprocess
import sys
from contextlib import suppress

import pytest

SCRIPT = """
import sys, time
from flows.printing import narration
narration.SILENCE_S = 0.6
with narration.showing_silence("train"):
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
    assert (done.stdout, done.stderr) == ("loading\nloaded\n", "  50 %\nthe end\n"), "shorter than ten seconds"


@pytest.mark.slow
def test_a_pipe_gets_lines_for_silences_of_the_first_minute():
    script = (
        "import sys, time\nfrom flows.printing import narration\n"
        "narration.SILENCE_S, narration.SECONDS_BETWEEN_LINES, narration.FIRST_LINES_S = 0.5, 1.0, 4.0\n"
        "with narration.showing_silence('train'):\n"
        "    time.sleep(3)\n    print('[]', flush=True)\n    time.sleep(4)\n    print('late', file=sys.stderr)\n"
        "    time.sleep(2)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], check=False, capture_output=True, text=True)
    *lines, last = done.stderr.splitlines()
    assert (done.stdout, last) == ("[]\n", "late")
    assert len(lines) in (2, 3), "one second after the other, and none after the fourth"
    assert all(re.fullmatch(r"train: [0-3] s so far", line) for line in lines)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_is_closed_changes_nothing(stream):
    script = (
        f"import sys\nsys.{stream} = None\nfrom flows.printing import narration\n"
        "with narration.showing_silence('train'):\n    print('done', file=sys.stdout or sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout + done.stderr == "done\n"
