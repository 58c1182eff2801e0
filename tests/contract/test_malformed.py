"""Hundreds of malformed requests: each is refused as the contract says, and the service is as well afterwards."""

import contextlib
import os
import select
import socket
import threading
import time
from itertools import chain
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from serving.models.predictions import ErrorAnswer
from tests.contract.conftest import Service
from tests.contract.malformed_requests import BROKEN, CANARY, KINDS, LUCKY, ODD, REFUSED, part, request
from tests.contract.watched_launcher import SECRET_NAME
from tests.unit.serving.tiny_bundle import paint, release

CODES = {
    400: {"not_a_picture", "bad_request"},
    404: {"no_such_model", "no_such_route"},
    405: {"method_not_allowed"},
    413: {"too_large"},
    415: {"wrong_type"},
    422: {"bad_parameter"},
}
MAX_GROWTH_BYTES = 200_000_000
ANSWER_TIMEOUT_S = 15
# How long an unfinished request is waited over before it is given up.
PATIENCE_S = 0.2


class Watched(Service):
    """The service in a process that writes down whom it tries to reach."""

    def __init__(self, home):
        self.watch_file = home / "events.txt"
        super().__init__(home, module="tests.contract.watched_launcher", WATCH_FILE=str(self.watch_file))
        self.canary = home / SECRET_NAME
        self.canary.write_bytes(paint())
        self.address = (httpx.URL(self.url).host, httpx.URL(self.url).port)
        self.client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
        for _ in range(3):
            self.check_it_answers()
        self.memory_at_start = self.read_status("VmRSS")
        self.files_at_start = self.count_files()
        self.lines_seen = 0
        self.events_at_start = len(self.read_events())

    def read_events(self):
        return self.watch_file.read_text().splitlines()

    def read_status(self, name):
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))

    def forget_peak(self):
        """Let VmHWM, the most memory that the process ever had, begin anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def count_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))  # noqa: PTH208

    def check_it_answers(self):
        response = self.client.post("/v1/predict", content=paint("blue"), headers={"Content-Type": "image/png"})
        assert (response.status_code, response.json()["predictions"][0]["label"]) == (200, "blue")

    def check_it_is_well(self):
        assert self.process.poll() is None
        assert self.read_events()[self.events_at_start :] == []
        assert self.read_status("VmHWM") - self.memory_at_start < MAX_GROWTH_BYTES
        deadline = time.monotonic() + 10
        while self.count_files() > self.files_at_start + 3:
            assert time.monotonic() < deadline, "connections or files stay open"
            time.sleep(0.1)
        lines, self.lines_seen = self.log[self.lines_seen :], len(self.log)
        assert not any(word in line for word in ("Traceback", " ERROR ", "PIL") for line in lines), "".join(lines)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    home = tmp_path_factory.mktemp("watched")
    release(home / "bundles", "cifar10", "3")
    release(home / "bundles", "food", "1", softness=9000.0)
    running = Watched(home)
    yield running
    running.client.close()
    running.stop()


def exchange(address, data, is_open):
    """Send bytes and return what comes back until the connection is closed; None when it stays open."""
    received = bytearray()
    with socket.create_connection(address, timeout=ANSWER_TIMEOUT_S) as connection:
        # Beside the reading: a refused upload is answered before all of it is sent.
        sending = threading.Thread(target=send, args=(connection, data))
        sending.start()
        try:
            while True:
                if is_open and not select.select([connection], [], [], PATIENCE_S)[0]:
                    sending.join()
                    connection.shutdown(socket.SHUT_WR)
                    is_open = False
                if not (chunk := connection.recv(65_536)):
                    break
                received += chunk
        except ConnectionResetError:
            pass
        except TimeoutError:
            return None
        finally:
            sending.join()
    return bytes(received)


def send(connection, data):
    with contextlib.suppress(ConnectionError):
        connection.sendall(data)


def read_answers(received):
    """Split what a connection answered into (status, headers, body); what is no HTTP fails."""
    answers = []
    while received:
        head, separator, received = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status = first.split()[:2]
        assert (version, separator) == ("HTTP/1.1", b"\r\n\r\n"), head
        if status == "100":
            continue
        headers = dict(line.lower().split(": ", 1) for line in lines)
        size = int(headers.get("content-length", len(received)))
        body, received = received[:size], received[size:]
        answers.append((int(status), headers, body))
    return answers


def find_fault(one, received):
    """Return what is wrong about the answer to a malformed request, or None."""
    if received is None:
        return "the connection stays open"
    try:
        answers = read_answers(received)
    except (AssertionError, ValueError) as error:
        return f"not HTTP: {error}"
    statuses = [status for status, _, _ in answers]
    if any(status >= 500 for status in statuses):
        return f"answered {statuses}"
    while len(answers) > 0 and answers[0][0] == 200 and one.good_requests > len(statuses) - len(answers):
        answers.pop(0)
    is_http = one.fate in (REFUSED, LUCKY)
    if not answers:
        return "closed without an answer" if is_http and not one.is_open else None
    status, headers, body = answers[-1]
    if status == 200 and one.fate in (LUCKY, ODD):
        return None
    if status not in range(400, 500):
        return f"answered {status}: {body[:200]!r}"
    if not is_http and headers.get("content-type", "").startswith("text/plain"):
        return None
    return find_wrong_shape(status, headers, body)


def find_wrong_shape(status, headers, body):
    if headers.get("content-type") != "application/json":
        return f"{status} of type {headers.get('content-type')}: {body[:200]!r}"
    try:
        error = ErrorAnswer.model_validate_json(body, strict=True, extra="forbid").error
    except ValidationError as problem:
        return f"{status} with {body[:200]!r}: {problem}"
    if error.code not in CODES[status] or not error.message:
        return f"{status} with code {error.code!r}"
    return None


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_malformed_requests(watched, kind):
    faults = []
    watched.forget_peak()
    for one in KINDS[kind]():
        data = one.data.replace(CANARY.encode(), str(watched.canary).encode())
        fault = find_fault(one, exchange(watched.address, data, one.is_open))
        if fault:
            faults.append(f"{kind}: {one.name}: {fault}")
        watched.check_it_answers()
    assert not faults, "\n".join(faults)
    watched.check_it_is_well()


def test_there_are_hundreds_that_must_be_refused():
    every = list(chain.from_iterable(make() for make in KINDS.values()))
    assert sum(one.fate in (REFUSED, BROKEN) for one in every) >= 500
    assert len({(one.name, one.data) for one in every}) == len(every)
    assert every == list(chain.from_iterable(make() for make in KINDS.values()))


def test_slow_senders_keep_nobody_waiting(watched):
    whole = request(paint(), length=b"500")
    form = request(part(b"x" * 400), b"Content-Type: multipart/form-data; boundary=b\r\n", length=b"9000")
    starts = [whole[:20], whole[:-70], whole[:-9], form[:-300], b"GET", b"", whole + b"x" * 20, whole[:60]]
    connections = [socket.create_connection(watched.address, timeout=ANSWER_TIMEOUT_S) for _ in starts]
    try:
        for start, connection in zip(starts, connections, strict=True):
            connection.sendall(start)
        for _ in range(10):
            for connection in connections:
                send(connection, b"a")
            began = time.monotonic()
            watched.check_it_answers()
            assert time.monotonic() - began < 5
            time.sleep(0.1)
        answered = []
        for connection in connections:
            received = b""
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
                received = connection.makefile("rb").read()
            answered.append([status for status, _, _ in read_answers(received)])
    finally:
        for connection in connections:
            connection.close()
    assert all(statuses in ([], [400]) for statuses in answered), answered
    watched.check_it_answers()
    watched.check_it_is_well()


def test_the_watch_works(watched):
    assert watched.read_events()[0].startswith("socket.getaddrinfo ('127.0.0.1', 1")
