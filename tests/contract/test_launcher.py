"""Starting and stopping the service, as a person does."""

import http.client
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from serving.bundle.processors import count_cpus
from serving.bundle.store import MODEL_FILE
from serving.launcher import _listen
from tests.contract.conftest import ROOT
from tests.unit.serving.tiny_bundle import release


def launch(home, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "serving.launcher", "--home", str(home), *arguments],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_nothing_released_is_one_clear_line(tmp_path):
    outcome = launch(tmp_path, "--port", "0")
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines() == [
        f"error: no model is released in {tmp_path / 'bundles'}; run `darkroom release RECIPE --as cifar10`"
    ]


def test_a_taken_port_is_one_clear_line(tmp_path):
    release(tmp_path / "bundles")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        outcome = launch(tmp_path, "--port", str(port))
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines() == [
        f"error: cannot listen on 127.0.0.1:{port}: Address already in use; choose another with --port or --host"
    ]


def test_only_damaged_models_is_an_error(tmp_path):
    folder = release(tmp_path / "bundles")
    (folder / MODEL_FILE).write_bytes(b"damaged")
    outcome = launch(tmp_path, "--port", "0")
    assert outcome.returncode == 1
    assert "was changed after its release" in outcome.stderr.splitlines()[-1]


def test_it_says_what_it_serves_and_ctrl_c_stops_it(tmp_path, start_service):
    release(tmp_path / "bundles", "food", "12")
    service = start_service(tmp_path)
    assert httpx.get(f"{service.url}/readyz", trust_env=False).status_code == 200
    assert service.stop(signal.SIGINT) == 0
    log = "".join(service.log)
    assert f"{count_cpus()} CPUs: a batch of up to 64 images on {count_cpus()} threads, decoding on" in log
    assert "food version 12, 6 classes, CPUExecutionProvider, fp32: the only variant that is" in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_it_starts_again_after_a_kill_and_is_unready_without_a_model(tmp_path, start_service):
    release(tmp_path / "bundles")
    first = start_service(tmp_path)
    port = httpx.URL(first.url).port
    first.stop(signal.SIGKILL)
    with socket.create_server(("127.0.0.1", port)):
        pass
    second = start_service(tmp_path)
    with httpx.Client(base_url=second.url, trust_env=False) as client:
        assert client.get("/readyz").status_code == 200
        (tmp_path / "bundles" / "cifar10" / "champion.json").unlink()
        deadline = time.monotonic() + 15
        while client.get("/readyz").status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        ready = client.get("/readyz")
        assert (ready.status_code, ready.text) == (503, "no model is loaded; the log and /v1/models say why")
        assert client.get("/livez").status_code == 200
    assert second.stop(signal.SIGTERM) == 0


def test_answers_do_not_wait_for_acknowledgements():
    """asyncio sees no TCP in a socket of create_server and would leave Nagle's algorithm on: 40 ms for each answer."""
    with _listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


@pytest.mark.slow
def test_a_start_removes_what_killed_services_left(tmp_path, start_service):
    release(tmp_path / "bundles")
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def list_left():
        return sorted(entry.name for entry in scratch.iterdir())

    lives = start_service(tmp_path, TMPDIR=str(scratch))
    [mine] = list_left()
    killed = start_service(tmp_path, TMPDIR=str(scratch))
    assert len(list_left()) == 2
    killed.stop(signal.SIGKILL)
    assert len(list_left()) == 2
    # Whoever may write there must not hold up a start.
    (scratch / "darkroom-serving-fifo").mkdir()
    os.mkfifo(scratch / "darkroom-serving-fifo/lock")
    again = start_service(tmp_path, TMPDIR=str(scratch))
    assert len(list_left()) == 3
    assert again.stop() == 0
    assert list_left() == sorted([mine, "darkroom-serving-fifo"])
    assert lives.stop() == 0
    assert list_left() == ["darkroom-serving-fifo"]


@pytest.mark.parametrize("module", ["serving", "flows.cli"])
def test_sigterm_ends_process_1(module):
    """The kernel ignores it there without a handler."""
    command = ["unshare", "--fork", "--pid", "--kill-child"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare --pid is not permitted here")
    code = f"import {module}, time; print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen([*command, sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as outer:
        assert outer.stdout.readline() == b"ready\n"
        [inner] = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        os.kill(int(inner), signal.SIGTERM)
        assert outer.wait(10) == 128 + signal.SIGTERM


@pytest.mark.slow
def test_idle_connections_stay_open_as_long_as_asked(tmp_path, start_service):
    release(tmp_path / "bundles")
    brief, usual = start_service(tmp_path, "--keep-alive", "1"), start_service(tmp_path)
    ports = [int(service.url.rpartition(":")[2]) for service in (brief, usual)]
    closed, kept = (http.client.HTTPConnection("127.0.0.1", port, timeout=10) for port in ports)
    for connection in (closed, kept):
        connection.request("GET", "/livez")
        connection.getresponse().read()
    assert select.select([closed.sock], [], [], 15)[0]
    assert closed.sock.recv(1) == b""
    assert not select.select([kept.sock], [], [], 6)[0]
    kept.request("GET", "/livez")
    assert kept.getresponse().status == 200
    closed.close()
    kept.close()
