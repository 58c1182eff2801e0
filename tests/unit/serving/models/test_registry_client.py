"""Bounds on the answers of a registry, for which nothing but the follower waits."""

import io
import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath

import pytest

from serving.errors import RegistryError
from serving.models import registry_client
from serving.models.model_set import ModelSet
from serving.models.registry import RegistryFollower
from serving.models.registry_client import MAX_PAGES, RegistryClient
from tests.unit.serving.tiny_bundle import release

NAMED = {"registered_models": [{"name": "shapes", "aliases": [{"alias": "champion", "version": "1"}]}]}
TAGS = {"model_version": {"tags": [{"key": "bundle", "value": "b"}, {"key": "manifest_sha256", "value": "0" * 64}]}}


@contextmanager
def answering(answer):
    """Serve `answer(path, send)` at an address, which comes back with the list of what was asked."""
    asked = []
    stopping = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)

            def send(data):
                self.wfile.write(data)
                self.wfile.flush()
                return not stopping.is_set()

            answer(self.path, send)

        def log_message(self, *_):
            pass

        def handle(self):
            with suppress(OSError):  # the client has had enough
                super().handle()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            stopping.set()
            server.shutdown()
            thread.join()


def send_json(send, content):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))


def drip_head(_, send):
    send(b"HTTP/1.1 200 OK\r\nX: ")
    while send(b"x"):
        time.sleep(0.05)


def drip_body(_, send):
    send(b"HTTP/1.1 200 OK\r\n\r\n")
    while send(b" "):
        time.sleep(0.05)


def flood(_, send):
    send(b"HTTP/1.1 200 OK\r\n\r\n")
    while send(b" " * 1_000_000):
        pass


def say_nothing(_, send):
    while send(b""):
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(registry_client, "MAX_ANSWER_S", 0.5)
    monkeypatch.setattr(registry_client, "MAX_LOOK_S", 2.0)


@pytest.mark.parametrize("answer", [drip_head, drip_body, flood, say_nothing])
def test_an_answer_has_a_largest_size_and_a_time(answer):
    with answering(answer) as (address, _), RegistryClient(address) as client:
        start_s = time.monotonic()
        with pytest.raises(RegistryError, match=r"no whole answer within|answers with more than 8,000,000 bytes"):
            client.list_names()
        assert time.monotonic() - start_s < 5


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (b"Invalid Host header - possible DNS rebinding attack detected", r"403: Invalid Host header.*--allowed-hosts"),
        (b"", r"answers 403$"),
        (b"\x1b[31mno\n entry\xff", r"answers 403: \\x1b\[31mno entry"),
        (b"x" * 5000, r"answers 403: x{200}$"),
    ],
)
def test_a_refusal_comes_with_its_reason(reason, told):
    def refuse(_, send):
        send(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(reason), reason))

    with (
        answering(refuse) as (address, _),
        RegistryClient(address) as client,
        pytest.raises(RegistryError, match=told),
    ):
        client.list_names()


def test_a_refusal_without_end_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(registry_client, "MAX_ANSWER_S", 1.0)

    def refuse(_, send):
        send(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        while send(b" "):
            time.sleep(0.05)

    with answering(refuse) as (address, _), RegistryClient(address) as client:
        start_s = time.monotonic()
        with pytest.raises(RegistryError):
            client.list_names()
        assert time.monotonic() - start_s < 10


def test_pages_have_an_end():
    def answer(_, send):
        send_json(send, {"registered_models": [], "next_page_token": "again"})

    with answering(answer) as (address, asked), RegistryClient(address) as client:
        with pytest.raises(RegistryError, match=r"more than 50 pages|took more than"):
            client.list_names()
        assert len(asked) <= MAX_PAGES


def test_one_look_has_an_end_however_quick_each_answer_is():
    def answer(_, send):
        time.sleep(0.3)
        send_json(send, {"registered_models": [], "next_page_token": "again"})

    with answering(answer) as (address, _), RegistryClient(address) as client:
        start_s = time.monotonic()
        with pytest.raises(RegistryError, match=r"took more than 2 seconds|no whole answer"):
            client.list_names()
        assert time.monotonic() - start_s < 5


@pytest.mark.parametrize(
    "files",
    [
        [{"path": "d", "is_dir": True}],
        [{"path": f"d{number}", "is_dir": True} for number in range(50)],
        [{"path": f"f{number}"} for number in range(5000)],
    ],
)
def test_folders_have_an_end(files):
    def answer(path, send):
        send_json(send, {"artifact_uri": "mlflow-artifacts:/x"} if "download-uri" in path else {"files": files})

    with answering(answer) as (address, asked), RegistryClient(address) as client:
        if len(files) == 1:
            assert client.list_files("shapes", "1") == []
        else:
            with pytest.raises(RegistryError, match="more than 20 folders or 200 files"):
                client.list_files("shapes", "1")
        assert len(asked) <= 22


def test_a_file_has_a_largest_size_and_a_time(tmp_path):
    for answer, message in ((flood, "sends more than 5,000,000 bytes"), (drip_body, "no whole answer within")):
        with answering(answer) as (address, _), RegistryClient(address) as client, (tmp_path / "it").open("wb") as file:
            start_s = time.monotonic()
            with pytest.raises(RegistryError, match=message):
                client.download(PurePosixPath("x/model.onnx"), file, 5_000_000, 0.5)
            assert time.monotonic() - start_s < 5


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"{}}",
        b"\xff\xfe",
        [],
        None,
        {"registered_models": 3},
        {"registered_models": [None]},
        {"registered_models": [{"name": "a", "aliases": [{"alias": []}]}]},
        {"registered_models": {"x": "\x1b[2J" * 10_000}},
    ],
)
def test_nonsense_is_one_short_line(content, tmp_path):
    with answering(lambda _, send: send_json(send, content)) as (address, _):
        follower = RegistryFollower(address, tmp_path / "bundles", interval_s=0)
        follower.sync()
    assert follower.problem.startswith(f"the registry {address} answers what MLflow does not: ")
    assert len(follower.problem) < 400
    assert follower.problem.isprintable()


@pytest.mark.parametrize("version", ["", "1\n2", "../3", "\x1b[31m", "9" * 30])
def test_a_version_is_a_number(version, tmp_path):
    models = json.loads(json.dumps(NAMED))
    models["registered_models"][0]["aliases"][0]["version"] = version
    with answering(lambda _, send: send_json(send, models)) as (address, _):
        follower = RegistryFollower(address, tmp_path / "bundles", interval_s=0)
        follower.sync()
    assert "MLflow counts them" in follower.failures["shapes"]
    assert follower.failures["shapes"].isprintable()


def test_nonsense_about_one_name_spoils_no_other(tmp_path):
    def answer(path, send):
        if "search" in path:
            send_json(
                send,
                {"registered_models": [NAMED["registered_models"][0], {**NAMED["registered_models"][0], "name": "z"}]},
            )
        elif "name=shapes" in path:
            send_json(send, {"model_version": {"tags": 7}})
        else:
            send_json(send, TAGS if "model-versions/get?" in path else {"artifact_uri": "s3://elsewhere"})

    with answering(answer) as (address, _):
        follower = RegistryFollower(address, tmp_path / "bundles", interval_s=0)
        follower.sync()
    assert "answers what MLflow does not" in follower.failures["shapes"]
    assert "start it with --serve-artifacts" in follower.failures["z"]
    assert follower.problem == ""


@pytest.mark.parametrize("answer", [drip_head, say_nothing])
def test_releases_and_the_end_never_wait_for_the_registry(answer, tmp_path, monkeypatch):
    monkeypatch.setattr(registry_client, "MAX_ANSWER_S", 30.0)
    monkeypatch.setattr(registry_client, "MAX_LOOK_S", 30.0)
    release(tmp_path / "bundles", "cifar10", "1")
    with answering(answer) as (address, _):
        models = ModelSet(tmp_path / "bundles", registry=RegistryFollower(address, tmp_path / "bundles"))
        models.refresh()
        start_s = time.monotonic()
        models.watch(0.05)
        assert models.names == ["cifar10"]
        release(tmp_path / "bundles", "food", "1")
        while models.names != ["cifar10", "food"]:
            assert time.monotonic() - start_s < 10
            time.sleep(0.05)
        stop_s = time.monotonic()
        models.stop()
        # Far less than the registry is waited for, however busy the machine is.
        assert time.monotonic() - stop_s < 10


def test_a_start_without_models_waits_for_a_while_only(tmp_path, monkeypatch):
    from serving.models import model_set

    monkeypatch.setattr(model_set, "START_WAIT_S", 0.5)
    monkeypatch.setattr(registry_client, "MAX_ANSWER_S", 30.0)
    with answering(say_nothing) as (address, _):
        models = ModelSet(tmp_path / "bundles", registry=RegistryFollower(address, tmp_path / "bundles"))
        start_s = time.monotonic()
        models.watch()
        assert time.monotonic() - start_s < 3
        (problem,) = models.describe().problems
        assert problem.message == f"the registry {address} has not answered yet"
        models.stop()


def test_a_download_takes_no_time_from_the_questions(monkeypatch):
    monkeypatch.setattr(registry_client, "MAX_ANSWER_S", 20.0)
    monkeypatch.setattr(registry_client, "MAX_LOOK_S", 20.0)
    now_s, real = 0.0, time.monotonic

    def answer(path, send):
        nonlocal now_s
        if "artifacts/" in path:
            now_s += 100
        send_json(send, NAMED)

    monkeypatch.setattr(registry_client.time, "monotonic", lambda: real() + now_s)
    with answering(answer) as (address, _), RegistryClient(address) as client:
        client.list_names()
        client.download(PurePosixPath("a/b"), io.BytesIO(), 1000, 300.0)
        assert now_s == 100
        assert client.list_names() == {"shapes": {"champion": "1"}}


def test_a_connection_that_is_made_when_the_time_is_over_is_cut(monkeypatch):
    real = RegistryClient._note_socket

    def note_late(client, event, info):
        if event.endswith("connect_tcp.complete"):
            assert client._is_cut.wait(10)
        real(client, event, info)

    monkeypatch.setattr(RegistryClient, "_note_socket", note_late)
    with answering(drip_head) as (address, _), RegistryClient(address) as client:
        start_s = time.monotonic()
        with pytest.raises(RegistryError, match="no whole answer within"):
            client.list_names()
        assert time.monotonic() - start_s < 8


@pytest.mark.parametrize("seconds", [0.0, -5.0])
def test_no_time_left_is_an_error_at_once(seconds):
    with answering(say_nothing) as (address, asked), RegistryClient(address) as client:
        with pytest.raises(RegistryError, match="no time is left"):
            client.download(PurePosixPath("a/b"), io.BytesIO(), 1000, seconds)
        assert asked == []
