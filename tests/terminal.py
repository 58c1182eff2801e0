"""Scripts of Python on a terminal."""

import os
import subprocess
import sys
import termios


def show_on_terminal(script: str, columns: int) -> str:
    """Run a script to its end on a terminal of 24 lines; return all that it wrote."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:
        pass
    os.close(ours)
    assert process.wait() == 0, shown
    return shown.decode()
