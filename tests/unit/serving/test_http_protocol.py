"""Connections that never finish what they begin; real sockets, a real uvicorn."""

import socket
import threading
import time

import pytest
import uvicorn

from serving import http_protocol
from serving.http_protocol import BoundedHttp

REQUEST = b"GET / HTTP/1.1\r\nHost: darkroom\r\n\r\n"
HEAD_TIMEOUT_S = 0.5


async def answer(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", HEAD_TIMEOUT_S)
    config = uvicorn.Config(answer, http=BoundedHttp, lifespan="off", log_config=None, timeout_keep_alive=60)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()
        server.should_exit = True
        thread.join()


def ask(connection):
    connection.sendall(REQUEST)
    received = b""
    while not received.endswith(b"ok"):
        received += connection.recv(1000)


def wait_until_closed(connection):
    start_s = time.monotonic()
    connection.settimeout(10)
    assert connection.recv(1000) == b""
    return time.monotonic() - start_s


@pytest.mark.parametrize("sent", [b"", REQUEST[:-4], b"G"], ids=["nothing", "half a head", "one letter"])
def test_a_head_that_does_not_end_is_given_up(address, sent):
    with socket.create_connection(address) as connection:
        connection.sendall(sent)
        assert HEAD_TIMEOUT_S * 0.8 < wait_until_closed(connection) < 8


def test_a_second_request_that_does_not_end_is_given_up_too(address):
    with socket.create_connection(address) as connection:
        ask(connection)
        time.sleep(2 * HEAD_TIMEOUT_S)  # an idle connection stays open: uvicorn's own limit is another one
        ask(connection)
        connection.sendall(REQUEST[:-2])
        assert HEAD_TIMEOUT_S * 0.8 < wait_until_closed(connection) < 8
