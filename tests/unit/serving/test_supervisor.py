"""The supervisor around small programs that beat, stop, end or leave orphans."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = """
import ctypes, socket, sys
from serving import supervisor
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come here, as to a first process
for setting in sys.argv[2].split():
    name, _, value = setting.partition("=")
    setattr(supervisor, name, float(value))
with socket.create_server(("127.0.0.1", 0)) as listener:
    sys.exit(supervisor.Supervisor(listener, [sys.executable, "-c", sys.argv[1]]).run())
"""
BEAT = "import os, time\nos.write(int(os.environ['DARKROOM_HEARTBEAT_FD']), b'.')\nprint(os.getpid(), flush=True)\n"
BEAT_ON = "while True:\n    time.sleep(0.2); os.write(int(os.environ['DARKROOM_HEARTBEAT_FD']), b'.')\n"


@pytest.fixture
def start():
    running = []

    def begin(program, settings=""):
        running.append(
            subprocess.Popen([sys.executable, "-c", RUN, program, settings], stdout=subprocess.PIPE, text=True)
        )
        return running[-1]

    yield begin
    for one in running:
        one.send_signal(signal.SIGSTOP)  # it starts no other meanwhile
        for child in list_children(one.pid):
            os.kill(child, signal.SIGKILL)
        one.kill()
        one.wait()
        one.stdout.close()


def list_children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def stop(supervisor):
    start_s = time.monotonic()
    supervisor.terminate()
    return supervisor.wait(60), time.monotonic() - start_s


@pytest.mark.parametrize("end", ["", "time.sleep(600)"])
def test_a_service_that_ends_or_falls_silent_is_started_again(start, end):
    supervisor = start(BEAT + end, "SILENT_TIMEOUT_S=1 FIRST_DELAY_S=0.1")
    first, second = (int(supervisor.stdout.readline()) for _ in range(2))
    assert first != second


@pytest.mark.slow
def test_a_silent_service_is_killed_within_ten_seconds(start):
    supervisor = start(BEAT + "time.sleep(600)")
    pid = int(supervisor.stdout.readline())
    start_s = time.monotonic()
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.05)
    assert time.monotonic() - start_s < 10


def test_a_start_without_heartbeats_is_not_taken_for_silence(start):
    supervisor = start(f"import time; time.sleep(3)\n{BEAT}{BEAT_ON}", "SILENT_TIMEOUT_S=1.5")
    pid = int(supervisor.stdout.readline())
    assert list_children(supervisor.pid) == [pid]


def test_sigterm_is_passed_on_to_a_stopped_service_at_once(start):
    supervisor = start(BEAT + BEAT_ON)
    os.kill(int(supervisor.stdout.readline()), signal.SIGSTOP)
    status, seconds = stop(supervisor)
    assert status == -signal.SIGTERM % 256
    assert seconds < 5


def test_a_service_that_ignores_sigterm_is_killed_at_one_deadline(start):
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    supervisor = start(ignore + BEAT + BEAT_ON, "STOP_TIMEOUT_S=2")
    supervisor.stdout.readline()
    status, seconds = stop(supervisor)
    assert status == -signal.SIGKILL % 256
    assert 1.9 < seconds < 8


def test_sigterm_before_a_restart_starts_nothing(start):
    supervisor = start(BEAT, "FIRST_DELAY_S=600")
    supervisor.stdout.readline()
    while list_children(supervisor.pid):
        time.sleep(0.05)
    assert stop(supervisor)[1] < 5
    assert supervisor.stdout.read() == ""


@pytest.mark.slow
def test_restarts_are_delayed_ever_longer(start):
    supervisor = start("import time; print(time.monotonic(), flush=True)\n" + BEAT, "FIRST_DELAY_S=0.5")
    times_s = [float(supervisor.stdout.readline()) for _ in range(8)][::2]
    assert times_s[1] - times_s[0] >= 0.5
    assert times_s[2] - times_s[1] >= 1.0
    assert times_s[3] - times_s[2] >= 2.0


def test_orphans_are_collected(start):
    orphan = "import subprocess; subprocess.run(['sh', '-c', 'sleep 0.5 & echo $!'])\n"
    supervisor = start(BEAT + orphan + BEAT_ON)
    supervisor.stdout.readline()
    pid = int(supervisor.stdout.readline())
    deadline_s = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


def test_a_service_that_never_worked_is_not_started_again(start):
    assert start("raise SystemExit(3)").wait(30) == 3
