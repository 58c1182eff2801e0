"""Connections that ask for upgrades, pipeline, stay silent or do not read; real sockets, a real uvicorn."""

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
import threading
import time

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.http import connections as http_connections
from serving.http import protocol as http_protocol
from serving.http.protocol import BoundedHttp

REQUEST = b"GET / HTTP/1.1\r\nHost: darkroom\r\n\r\n"
INNER = b"POST /inner HTTP/1.1\r\nHost: darkroom\r\nContent-Length: 3\r\n\r\nabc"
HEAD_TIMEOUT_S = 0.5


class Echo:
    """Answers with the path and body of each request, and notes them."""

    def __init__(self):
        self.seen = []
        self.running = 0
        self.most_running = 0
        self.padding = 0

    async def __call__(self, scope, receive, send):
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.running -= 1
                return
            body, more = body + message["body"], message["more_body"]
        self.seen.append((scope["path"], body))
        mark = b" surplus" if scope["state"].get(http_connections.SURPLUS) else b""
        answer = scope["path"].encode() + b":" + body + mark + b"." + b"x" * self.padding
        length = (b"content-length", str(len(answer)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": answer})
        self.running -= 1


@pytest.fixture
def echo():
    return Echo()


@pytest.fixture
def address(monkeypatch, echo):
    monkeypatch.setattr(http_connections, "HEAD_TIMEOUT_S", HEAD_TIMEOUT_S)
    monkeypatch.setattr(http_connections, "_WATCH_PERIOD_S", 0.05)
    config = uvicorn.Config(
        echo, http=BoundedHttp, ws="none", lifespan="off", log_config=None, timeout_keep_alive=60, access_log=False
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()
        server.should_exit = True
        thread.join()


def read_until(connection, end, times=1):
    received = b""
    connection.settimeout(10)
    while received.count(end) < times:
        chunk = connection.recv(65_536)
        assert chunk, received
        received += chunk
    return received


def ask(connection):
    connection.sendall(REQUEST)
    return read_until(connection, b"/:.")


def wait_until_closed(connection):
    start_s = time.monotonic()
    connection.settimeout(10)
    with contextlib.suppress(ConnectionResetError):
        assert connection.recv(1000) == b""
    return time.monotonic() - start_s


def cut(data, places):
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


@pytest.mark.parametrize("upgrade", [b"", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"])
def test_a_request_of_too_many_headers_is_refused(address, echo, upgrade):
    """Each costs time on the event loop: 16,000 of four bytes took it 30 ms."""
    for headers, status in ((190, b" 200 "), (210, b" 400 "), (15_000, b" 400 ")):
        with socket.create_connection(address, 5) as connection:
            connection.sendall(REQUEST[:-2] + upgrade + b"a:\r\n" * headers + b"\r\n")
            assert status in connection.recv(65_536).partition(b"\r\n")[0]
    assert len(echo.seen) == 1


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


def test_a_body_that_nobody_reads_to_its_end_is_given_up(monkeypatch, address):
    monkeypatch.setattr(http_connections, "BODY_TIMEOUT_S", 0.3)
    monkeypatch.setattr(http_connections, "_BODY_GRACE_S", 0.2)
    with socket.create_connection(address) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        assert 0.4 < wait_until_closed(connection) < 8


UPGRADES = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    "websocket": b"Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13\r\n",
    "twice": b"upgrade: a\r\nUPGRADE: b\r\nConnection: keep-alive, UPGRADE\r\n",
    "none": b"Connection: upgrade\r\n",
}
FRAMINGS = {
    "length": (b"Content-Length: %d\r\n" % len(INNER), INNER),
    "chunked": (b"Transfer-Encoding: chunked\r\n", b"%x;a=b\r\n%b\r\n0\r\nTrailer: a\r\n\r\n" % (len(INNER), INNER)),
}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("upgrade", UPGRADES)
def test_a_body_after_an_upgrade_is_a_body_wherever_it_is_split(address, echo, upgrade, framing, caplog):
    """A body that reads as a request must never become one."""
    fields, body = FRAMINGS[framing]
    head = b"POST /outer HTTP/1.1\r\nHost: a\r\n" + UPGRADES[upgrade] + fields + b"\r\n"
    whole = head + body
    around = [1, len(head) - 3, len(head) - 1, len(head), len(head) + 1, len(head) + 30, len(whole) - 1]
    with caplog.at_level(logging.INFO):
        for places in ([], *([place] for place in around), [len(head) - 2, len(head) + 40]):
            with socket.create_connection(address) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for piece in cut(whole, places):
                    connection.sendall(piece)
                    time.sleep(0.02)
                assert read_until(connection, b"/outer:" + INNER + b".")
                ask(connection)
    assert echo.seen == [("/outer", INNER), ("/", b"")] * 9
    assert len([one for one in caplog.records if one.name == "uvicorn.error" and "pgrade" in one.message]) == 0


def test_pipelined_upgrades_are_answered_in_order(address, echo):
    one = b"POST /%d HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\nabc"
    with socket.create_connection(address) as connection:
        connection.sendall(b"".join(one % number for number in range(200)))
        read_until(connection, b"/199:abc.")
    assert [path for path, _ in echo.seen] == [f"/{number}" for number in range(200)]


def test_connect_is_refused(address, echo):
    with socket.create_connection(address) as connection:
        connection.sendall(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n" + INNER)
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert echo.seen == []


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"x-own", b"chunked, chunked"])
def test_other_transfer_codings_are_refused(address, echo, coding):
    with socket.create_connection(address) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: %b\r\n\r\n3\r\nabc\r\n0\r\n\r\n" % coding)
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert echo.seen == []


def test_what_is_no_http_is_told_once_in_a_while(address, echo, caplog, monkeypatch):
    monkeypatch.setattr(http_protocol, "_invalid_requests", http_protocol._InvalidRequests())
    for _ in range(20):
        with socket.create_connection(address) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert [one.getMessage() for one in caplog.records] == [
        "invalid HTTP requests: 1; the last from 127.0.0.1: a request names its host (RFC 9112, 3.2)"
    ]
    monkeypatch.setattr(http_protocol, "_TELL_PERIOD_S", 0)
    with socket.create_connection(address) as connection:
        connection.sendall(b"\0\r\n\r\n")
        read_until(connection, b"\r\n\r\n")
    assert caplog.records[1].getMessage().startswith("invalid HTTP requests: 20; the last from 127.0.0.1: ")
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET http://a:99999/?key=SECRET HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert caplog.records[2].getMessage() == "invalid HTTP requests: 1; the last from 127.0.0.1: invalid target"


@pytest.mark.parametrize("size", [1, 3, 5, 40, 10_000_000], ids="pieces of {}".format)
def test_pipelined_requests_are_answered_in_order_and_one_at_a_time(address, echo, size):
    chunked = b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n\r\n\r\n\r\n0\r\n\r\n"
    data = (REQUEST + INNER + b"\r\n" + chunked) * 5 + REQUEST * (500 if size > 100 else 1)
    with socket.create_connection(address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sending = threading.Thread(
            target=lambda: [connection.sendall(data[at : at + size]) for at in range(0, len(data), size)]
        )
        sending.start()
        read_until(connection, b"HTTP/1.1 200 OK", data.count(b"HTTP/1.1"))
        sending.join()
    assert echo.seen[:15] == [("/", b""), ("/inner", b"abc"), ("/c", b"\r\n\r\n")] * 5
    assert echo.most_running == 1


CHUNKED_HEAD = b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize("one", [b"1\r\na\r\n", b"1;" + b"b" * 1000 + b"\r\na\r\n"], ids=["tiny", "extensions"])
def test_a_body_that_is_mostly_framing_is_refused(address, echo, one):
    with socket.create_connection(address) as connection:
        connection.sendall(CHUNKED_HEAD + one * (90_000 // len(one)))
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert echo.seen == []


@pytest.mark.parametrize(("size", "times"), [(1, 10_000), (64, 5000), (1000, 500), (200_000, 3)])
def test_small_chunks_are_a_body_too(address, echo, size, times):
    with socket.create_connection(address) as connection:
        connection.sendall(CHUNKED_HEAD + chunk(b"a" * size) * times + b"0\r\n\r\n")
        read_until(connection, b"a.")
    assert echo.seen == [("/c", b"a" * size * times)]


def test_chunks_are_passed_on_together_and_leave_the_loop_to_others(address, echo, monkeypatch):
    pieces, passed = [], []
    parse, on_body = BoundedHttp._parse, HttpToolsProtocol.on_body

    def parse_and_see(self, piece):
        pieces.append(len(piece))
        parse(self, piece)

    def pass_and_see(self, body):
        passed.append(len(body))
        on_body(self, body)

    turns = []
    read_on = BoundedHttp._read_on

    def read_and_see(self):
        before = len(pieces)
        read_on(self)
        turns.append(sum(pieces[before:]))

    monkeypatch.setattr(BoundedHttp, "_parse", parse_and_see)
    monkeypatch.setattr(BoundedHttp, "_read_on", read_and_see)
    monkeypatch.setattr(HttpToolsProtocol, "on_body", pass_and_see)
    with socket.create_connection(address) as connection:
        connection.sendall(CHUNKED_HEAD + chunk(b"a" * 50) * 10_000 + b"0\r\n\r\n")
        read_until(connection, b"a.")
    assert echo.seen == [("/c", b"a" * 500_000)]
    assert len(passed) <= len(pieces) + 1
    assert max(turns) < 40_000


@pytest.mark.parametrize("request_", [REQUEST, INNER], ids=["without bodies", "with bodies"])
def test_what_is_pipelined_stays_in_the_socket(address, echo, monkeypatch, request_):
    kept = []
    receive = BoundedHttp.data_received

    def receive_and_see(self, data):
        receive(self, data)
        kept.append(len(self._unread))

    monkeypatch.setattr(BoundedHttp, "data_received", receive_and_see)
    with socket.create_connection(address) as connection:
        connection.settimeout(1)
        with pytest.raises(TimeoutError):
            connection.sendall(request_ * 1_000_000)
        deadline_s = time.monotonic() + 60
        while len(echo.seen) <= 100 and time.monotonic() < deadline_s:
            time.sleep(0.05)
    assert len(echo.seen) > 100
    assert max(kept) < 600_000


def test_pipelines_leave_time_for_others_however_many_they_are(address, echo):
    with contextlib.ExitStack() as opened:
        pipelines = [opened.enter_context(socket.create_connection(address)) for _ in range(20)]
        for connection in pipelines:
            connection.sendall(REQUEST * 2000)
        start_s, before = time.monotonic(), len(echo.seen)
        time.sleep(1)
        answered = len(echo.seen) - before
        assert 0 < answered < 1.5 * (time.monotonic() - start_s) / http_protocol._PAUSE_S
        with socket.create_connection(address) as connection:
            before = len(echo.seen)
            for _ in range(20):
                ask(connection)
            # One that waits for its answers gets each within one round of the pipelines, each of which gets one.
            assert len(echo.seen) - before < 20 * (len(pipelines) + 1)


def test_pipelined_answers_that_take_long_leave_time_for_others(address, echo):
    spent = []

    class Costly(Echo):
        async def __call__(self, scope, receive, send):
            if scope["path"] == "/inner":
                spent.append(0.02)
                time.sleep(spent[-1])
            await super().__call__(scope, receive, send)

    echo.__class__ = Costly
    with contextlib.ExitStack() as opened:
        for _ in range(10):
            opened.enter_context(socket.create_connection(address)).sendall(INNER * 500)
        wait_for(lambda: len(spent) >= 10)
        start_s, before = time.monotonic(), len(spent)
        time.sleep(2)
        assert sum(spent[before:]) < 0.4 * (time.monotonic() - start_s)
        assert len(spent) > before


@pytest.mark.parametrize("framing", [b"Content-Length: 100000", b"Transfer-Encoding: chunked"])
def test_requests_in_small_pieces_are_read_with_pauses(address, monkeypatch, framing):
    read = []
    data_received = BoundedHttp.data_received

    def receive_and_count(self, data):
        read.append(len(data))
        data_received(self, data)

    monkeypatch.setattr(BoundedHttp, "data_received", receive_and_count)
    part = b"1\r\nx\r\n" if b"chunked" in framing else b"x"
    with contextlib.ExitStack() as opened:
        dripping = [opened.enter_context(socket.create_connection(address)) for _ in range(20)]
        for connection in dripping:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n")
        start_s, sent = time.monotonic(), 0
        while time.monotonic() - start_s < 2:
            for connection in dripping:
                connection.sendall(part)
                sent += 1
            time.sleep(0.001)
        most = len(dripping) * (2 + http_protocol._FREE_SMALL_PIECES) + 2 / http_protocol._PAUSE_S
        assert len(read) < 1.5 * most
        assert sent > 2 * len(read), "the pieces did not come faster than they were read"
        with socket.create_connection(address) as connection:
            ask(connection)


def test_small_pieces_arrive_whole(address):
    with socket.create_connection(address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            for letter in INNER:
                connection.sendall(bytes([letter]))
                time.sleep(0.001)
            read_until(connection, b"/inner:abc.")


class Refusing(Echo):
    async def __call__(self, scope, receive, send):
        if scope["path"] == "/inner":
            scope["state"][http_protocol.REFUSED] = True
        await super().__call__(scope, receive, send)


def test_after_a_refusal_only_its_own_connection_waits(address, echo, monkeypatch):
    echo.__class__ = Refusing
    monkeypatch.setattr(http_protocol, "_REFUSED_PAUSE_S", 1.5)
    with socket.create_connection(address) as refused, socket.create_connection(address) as other:
        refused.sendall(INNER)
        read_until(refused, b"/inner:abc.")
        start_s = time.monotonic()
        refused.sendall(REQUEST)
        ask(other)
        others_s = time.monotonic() - start_s
        read_until(refused, b"/:.")
        assert others_s < 1.4 < time.monotonic() - start_s


def test_a_large_refused_body_makes_its_connection_wait_longer(address, echo, monkeypatch):
    echo.__class__ = Refusing
    monkeypatch.setattr(http_protocol, "_REFUSED_BYTES_PER_S", 1_000_000)
    body = bytes(1_200_000)
    with socket.create_connection(address) as refused:
        refused.sendall(b"POST /inner HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        read_until(refused, b"/inner:" + body + b".")
        for expected_s in (1.2, 0.0):
            start_s = time.monotonic()
            refused.sendall(REQUEST)
            read_until(refused, b"/:.")
            assert expected_s <= time.monotonic() - start_s + 0.05 < expected_s + 0.9


def wait_for(condition):
    end_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_line_ends_behind_a_body_delay_nothing(address, monkeypatch):
    monkeypatch.setattr(http_protocol, "_PAUSE_S", 60)
    with socket.create_connection(address) as connection:
        for _ in range(3):
            connection.sendall(INNER + b"\r\n\r\n")
            read_until(connection, b"/inner:abc.")


def test_connections_without_pipelines_do_not_slow_one(address, monkeypatch):
    monkeypatch.setattr(http_protocol, "_PAUSE_S", 0.2)
    with contextlib.ExitStack() as opened:
        for _ in range(100):
            opened.enter_context(socket.create_connection(address))
        connection = opened.enter_context(socket.create_connection(address))
        connection.sendall(REQUEST * 2)
        read_until(connection, b"/:.", 2)  # read_until waits 10 s, half of what 100 connections would take


def test_one_timer_goes_on_with_a_connection(address, monkeypatch):
    """Also where several small requests end within one piece of a chunked body."""
    fired = []
    go_on = BoundedHttp._go_on

    def go_on_and_see(self):
        fired.append(self.loop.time())
        go_on(self)

    monkeypatch.setattr(BoundedHttp, "_go_on", go_on_and_see)
    monkeypatch.setattr(http_protocol, "_PAUSE_S", 0.5)
    with socket.create_connection(address) as connection:
        connection.sendall(CHUNKED_HEAD + b"0\r\n\r\n" + REQUEST * 60)
        read_until(connection, b"/:.", 20)
        wait_for(lambda: fired)
    time.sleep(0.2)
    assert len(fired) == 1


@pytest.mark.parametrize("is_complete", [False, True], ids=["half an answer", "a whole answer"])
def test_nothing_is_written_into_an_answer_that_has_begun(address, echo, is_complete):
    class Early(Echo):
        async def __call__(self, scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"500")]})
            await send({"type": "http.response.body", "body": b"x" * (500 if is_complete else 9), "more_body": True})
            if is_complete:
                await send({"type": "http.response.body", "body": b""})
            while (await receive())["type"] != "http.disconnect":
                pass

    echo.__class__ = Early
    with socket.create_connection(address) as connection:
        connection.sendall(CHUNKED_HEAD.replace(b"POST", b"GET") + b"1\r\na\r\n")
        received = read_until(connection, b"x" * 9)
        connection.sendall(b"garbage\r\n")
        with contextlib.suppress(ConnectionResetError):
            while more := connection.recv(1000):
                received += more
    assert received.count(b"HTTP/1.1") == 1
    assert received.count(b"x") == (500 if is_complete else 9)


def test_answers_that_nobody_reads_close_the_connection(monkeypatch, address, echo):
    monkeypatch.setattr(http_connections, "ANSWER_READ_TIMEOUT_S", 0.5)
    echo.padding = 1_000_000
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(address)
        connection.sendall(REQUEST * 500)
        time.sleep(2)
        assert len(echo.seen) < 20
        with pytest.raises(ConnectionError):
            connection.sendall(REQUEST * 1_000_000)


def test_a_half_closed_client_is_answered_all_that_it_asked(address):
    with socket.create_connection(address) as connection:
        connection.sendall(REQUEST * 3 + REQUEST[:-1])
        connection.shutdown(socket.SHUT_WR)
        read_until(connection, b"/:.", 3)
        wait_until_closed(connection)


def test_a_half_closed_client_of_half_a_request_is_closed(address):
    with socket.create_connection(address) as connection:
        connection.sendall(INNER[:-1])
        connection.shutdown(socket.SHUT_WR)
        assert wait_until_closed(connection) < 8  # the body's own limit is a minute


@pytest.mark.parametrize("begun", [b"", INNER[:-1]], ids=["silent", "a byte is missing"])
def test_the_slowest_connection_gives_its_place_to_a_new_one(monkeypatch, address, begun):
    monkeypatch.setattr(http_connections, "HEAD_TIMEOUT_S", 60)
    monkeypatch.setattr(http_connections, "MAX_CONNECTIONS", 5)
    with contextlib.ExitStack() as opened:
        slow = []
        for _ in range(5):
            slow.append(opened.enter_context(socket.create_connection(address)))
            slow[-1].sendall(begun)
            time.sleep(0.05)
        for _ in range(3):
            new = opened.enter_context(socket.create_connection(address))
            if begun:
                new.sendall(begun)
                time.sleep(0.1)
            else:
                assert b"surplus" not in ask(new)
        for connection in slow[:3]:
            if len(begun) > 1:
                answer = read_until(connection, b"}}")
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b"retry-after: 1" in answer
                assert b'"code":"overloaded"' in answer
            wait_until_closed(connection)
        slow[4].sendall(begun[-1:] if begun else REQUEST)
        read_until(slow[4], b".")


def test_connections_without_a_request_give_their_place_first_then_the_slowest(monkeypatch, address):
    monkeypatch.setattr(http_connections, "HEAD_TIMEOUT_S", 60)
    monkeypatch.setattr(http_connections, "MAX_CONNECTIONS", 4)
    length = 1_000_000
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length
    with contextlib.ExitStack() as opened:
        fast, slow, idle, silent = (opened.enter_context(socket.create_connection(address)) for _ in range(4))
        fast.sendall(head + b"a" * (length - 1))  # begins first, and is far from the slowest
        time.sleep(0.1)
        slow.sendall(head + b"a")
        ask(idle)
        time.sleep(0.1)
        for victim in (silent, idle):
            ask(opened.enter_context(socket.create_connection(address)))
            wait_until_closed(victim)
        for new in [opened.enter_context(socket.create_connection(address)) for _ in range(2)]:
            new.sendall(head + b"a" * 500_000)
            time.sleep(0.1)
        opened.enter_context(socket.create_connection(address))
        assert read_until(slow, b"}}").startswith(b"HTTP/1.1 503 ")
        fast.sendall(b"a")
        assert read_until(fast, b"a.").startswith(b"HTTP/1.1 200 ")


def test_where_all_wait_for_answers_some_connections_are_left_for_probes(monkeypatch, address, echo):
    monkeypatch.setattr(http_connections, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(http_connections, "PROBE_CONNECTIONS", 2)
    monkeypatch.setattr(http_connections, "PROBE_TIMEOUT_S", 0.3)
    held = threading.Event()

    class Holding(Echo):
        async def __call__(self, scope, receive, send):
            while scope["path"] == "/hold" and not held.is_set():
                await asyncio.sleep(0.02)
            await super().__call__(scope, receive, send)

    echo.__class__ = Holding
    with contextlib.ExitStack() as opened:
        busy = [opened.enter_context(socket.create_connection(address)) for _ in range(3)]
        for connection in busy:
            connection.sendall(REQUEST.replace(b" / ", b" /hold "))
        time.sleep(0.2)
        probe = opened.enter_context(socket.create_connection(address))
        probe.sendall(REQUEST)
        assert b"connection: close" in read_until(probe, b" surplus.")
        silent = opened.enter_context(socket.create_connection(address))
        assert 0.2 < wait_until_closed(silent) < 5
        held.set()
        for connection in busy:
            assert b"surplus" not in read_until(connection, b"/hold:.")


@pytest.mark.parametrize(("open_files", "expected"), [(1024, 512), (676, 512), (675, 511), (200, 36), (50, 1)])
def test_connections_leave_room_for_the_files_of_the_service(open_files, expected):
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({open_files}, {open_files}))\n"
        "from serving.limits import MAX_CONNECTIONS\nprint(MAX_CONNECTIONS)"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(printed) == expected


@pytest.mark.parametrize(
    "trailer", [b"X-API-Key: trailed", b"Host: trailed", b"Connection: close", b"Upgrade: trailed"]
)
def test_trailers_are_no_headers(monkeypatch, address, echo, trailer):
    heads = []
    answer = Echo.__call__

    async def note(self, scope, receive, send):
        heads.append(dict(scope["headers"]))
        await answer(self, scope, receive, send)

    monkeypatch.setattr(Echo, "__call__", note)
    chunked = b"POST /a HTTP/1.1\r\nHost: darkroom\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"
    with socket.create_connection(address, 3) as connection:
        connection.sendall(chunked + trailer + b"\r\n\r\n" + REQUEST)
        received = b""
        while b"/:" not in received and (piece := connection.recv(65_536)):
            received += piece
    assert echo.seen == [("/a", b"abc"), ("/", b"")][: 1 if b"close" in trailer else 2]
    assert heads[0] == {b"host": b"darkroom", b"transfer-encoding": b"chunked"}


@pytest.mark.parametrize("upgrade", [b"", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"])
@pytest.mark.parametrize("hosts", [(b"Host: a\r\n", b"hOST: b\r\n"), (b"", b"")])
def test_a_request_names_one_host(address, echo, upgrade, hosts):
    with socket.create_connection(address, 3) as connection:
        connection.sendall(b"GET /a HTTP/1.1\r\n" + upgrade.join(hosts) + b"\r\n" + REQUEST)
        assert b" 400 " in connection.recv(65_536).partition(b"\r\n")[0]
    assert echo.seen == []


def test_a_request_of_http_1_0_needs_no_host(address, echo):
    with socket.create_connection(address, 3) as connection:
        connection.sendall(b"GET /a HTTP/1.0\r\n\r\n")
        assert b" 200 " in connection.recv(65_536).partition(b"\r\n")[0]


def test_space_around_a_value_is_no_part_of_it(monkeypatch, address):
    heads = []
    answer = Echo.__call__

    async def note(self, scope, receive, send):
        heads.append(dict(scope["headers"]))
        await answer(self, scope, receive, send)

    monkeypatch.setattr(Echo, "__call__", note)
    with socket.create_connection(address, 3) as connection:
        connection.sendall(b"GET /a HTTP/1.1\r\nHost: a\r\nSec-Fetch-Site: \tcross-site \t\r\n\r\n")
        assert b" 200 " in connection.recv(65_536).partition(b"\r\n")[0]
    assert heads == [{b"host": b"a", b"sec-fetch-site": b"cross-site"}]
