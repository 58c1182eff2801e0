"""Lines of runs side by side, on a terminal and in a pipe."""

import subprocess
import sys

from tests.terminal import show_on_terminal

SHOW_TWO_RUNS = """
from flows.printing.live import showing_runs
with showing_runs() as live:
    live.say(1, "first seed 0", "cpu (x86_64, 1 thread)")
    for epoch in (1, 2):
        live.say(1, "first seed 0", f"epoch {epoch}/9  loss 2.152 accuracy 0.254  validation 1.9{epoch} 0.281")
        live.say(2, "second seed 0", f"epoch {epoch}/9  step 5/12  loss 2.225")
    live.end(2)
    print("[3/3] third")
print("all done")
"""


def test_on_a_terminal_epochs_change_in_place_and_all_else_stays_above():
    shown = show_on_terminal(SHOW_TWO_RUNS, 60)
    kept = [line.rpartition("\r")[2].rpartition("\x1b[A")[2] for line in shown.split("\r\n")]
    printed = [line for line in kept if line.strip() and "epoch" not in line]
    assert printed == ["first seed 0 | cpu (x86_64, 1 thread)", "[3/3] third", "all done"]
    assert "first seed 0  epoch 2/9  validation 1.92 0.281  loss" in shown, "the end of the line is cut off"
    assert "second seed 0  epoch 2/9  step 5/12" in shown
    last = shown.rpartition("epoch")[2]
    assert "\r" in last, "the last row is wiped"
    assert "all done" in last


def test_in_a_pipe_every_line_is_printed():
    done = subprocess.run([sys.executable, "-c", SHOW_TWO_RUNS], capture_output=True, check=True, text=True)
    assert done.stderr == ""
    assert "\r" not in done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    assert lines[1] == "first seed 0 | epoch 1/9  loss 2.152 accuracy 0.254  validation 1.91 0.281"
