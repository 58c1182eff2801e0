import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest


class Refusing(BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture
def refusing():
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def tell(monkeypatch, address):
    from prefect.client.schemas import FlowRun

    from flows.operations.notification import send

    monkeypatch.setenv("DARKROOM_WEBHOOK_URL", address)
    send("train", FlowRun(flow_id=uuid.uuid4(), name="first"), "Failed", "why")


def test_a_webhook_that_refuses_is_a_line_without_its_address(monkeypatch, capsys, refusing):
    tell(monkeypatch, f"http://127.0.0.1:{refusing}/services/SECRET")
    assert capsys.readouterr().out == "the webhook was not told that train first is Failed: 404\n"


@pytest.mark.parametrize(
    ("address", "why"), [("http://127.0.0.1:1/SECRET", "ConnectError"), ("http://127.0.0.1:port/SECRET", "InvalidURL")]
)
def test_a_webhook_that_is_not_there_is_a_line(monkeypatch, capsys, address, why):
    tell(monkeypatch, address)
    assert capsys.readouterr().out == f"the webhook was not told that train first is Failed: {why}\n"


def test_without_an_address_nothing_is_said(monkeypatch, capsys):
    tell(monkeypatch, "")
    assert capsys.readouterr().out == ""
