"""HTTP/1.1 of uvicorn and httptools, with the limits that both lack: sizes, times, pipelining, connections."""

import asyncio
from enum import Enum, auto
from typing import TYPE_CHECKING

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.errors import OverloadedError
from serving.limits import (
    ANSWER_READ_TIMEOUT_S,
    BODY_TIMEOUT_S,
    HEAD_TIMEOUT_S,
    MAX_CONNECTIONS,
    MAX_HEAD_BYTES,
    PROBE_CONNECTIONS,
    PROBE_TIMEOUT_S,
)

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

# Key of `scope["state"]` on connections beyond `MAX_CONNECTIONS`.
SURPLUS = "is_surplus"
_HEAD_END = b"\r\n\r\n"
# Least bytes of a chunked body that are parsed at once; what is pipelined behind it fits into as many.
_MIN_CHUNKED_PIECE = 1024
# Most bytes of heads and chunked bodies, which cost much time each, that one connection parses in one turn of the loop.
_TURN_BYTES = 16_384
# A chunked body's framing may have so many bytes, and one more for so many of the body.
_FRAMING_BYTES = 65_536
_BODY_BYTES_PER_FRAMING_BYTE = 8
# Bytes that a request is taken to have sent before its first one: a new one is no slow one.
_HEAD_START_BYTES = 65_536
_WATCH_PERIOD_S = 0.5
# Between two pipelined requests, for each connection that has something unread.
_PIPELINE_PAUSE_S = 0.004
# The application's own limit answers 408 and discards the rest first.
_BODY_GRACE_S = 15.0


class _Phase(Enum):
    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    ANSWER = auto()


class _Flow(FlowControl):
    """Reads on only where everything that was read is parsed, whoever asks.

    Attributes:
        has_unread: True if something is not parsed yet.
    """

    has_unread = False

    def resume_reading(self) -> None:
        if not self.has_unread:
            super().resume_reading()


class BoundedHttp(HttpToolsProtocol):
    """One connection, which costs a bounded amount of memory and time whatever the client sends or does not read.

    Requests are parsed one at a time: what is pipelined behind a request stays unparsed, and the socket unread, until
    its answer is sent. Upgrades are ignored, as RFC 9110 (7.8) allows. Beyond `MAX_CONNECTIONS`, a connection without
    a request is closed for a new one, or else the slowest that sends one; if there is none, the new one is `SURPLUS`.
    """

    _unread = b""
    _position = 0
    _tail = b""
    _body_left = 0
    _is_chunked = False
    _framing_left = 0.0
    _is_half_closed = False
    _is_surplus = False
    _bytes_without_body = 0
    _phase = _Phase.HEAD
    _since_s = 0.0
    _arrived_bytes = 0
    _writing_since_s: float | None = None
    _running: RequestResponseCycle | None = None
    _watching: asyncio.TimerHandle | None = None
    _going_on: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, within the limit of connections."""
        super().connection_made(transport)
        self._body_parts: list[bytes] = []
        self.flow: _Flow = _Flow(transport)
        self._enter(_Phase.HEAD)
        self._watching = self.loop.call_later(_WATCH_PERIOD_S, self._watch)
        if len(self.connections) > MAX_CONNECTIONS and not self._displace_another():
            self._is_surplus = True
            self.app_state = {**self.app_state, SURPLUS: True}
            if len(self.connections) > MAX_CONNECTIONS + PROBE_CONNECTIONS:
                transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, up to the end of the first request that is not answered yet."""
        self._unset_keepalive_if_required()
        self._unread, self._position = self._unread[self._position :] + data, 0
        self._read_on()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep a connection that the client half closed until its requests are answered."""
        self._is_half_closed = True
        return self._is_answering() or self._going_on is not None

    def on_headers_complete(self) -> None:
        """Begin a request; one that asks for an upgrade begins once its head is parsed again without it."""
        if self.parser.should_upgrade():
            return
        self._bytes_without_body, self._tail = 0, b""
        self._enter(_Phase.BODY)
        super().on_headers_complete()
        self._measure_body()
        if self._is_surplus:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Take a part of the body: there can be thousands in one piece, which are passed on together."""
        self._body_parts.append(body)

    def on_message_complete(self) -> None:
        """End a request."""
        if self.parser.should_upgrade():
            return
        self._pass_body_on()
        self._body_left, self._is_chunked = 0, False
        super().on_message_complete()
        self._enter(_Phase.ANSWER if self._is_answering() else _Phase.IDLE)

    def on_response_complete(self) -> None:
        """Go on with what is pipelined behind the request; close what the client half closed."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._phase is _Phase.ANSWER and not self._is_answering():
            self._enter(_Phase.IDLE)
        if self._going_on is not None:
            return
        self._skip_empty_lines()
        if self._unread:
            self._unset_keepalive_if_required()
            # All connections together go on so often, however many they are; clients that wait for answers come first.
            self._going_on = self.loop.call_later(_PIPELINE_PAUSE_S * self._count_unread(), self._go_on)
        elif self._is_half_closed and not self._is_answering():
            self.transport.close()

    def _skip_empty_lines(self) -> None:
        """Skip line ends that some clients send behind a body (RFC 9112, 2.2): they are no request."""
        if self._phase is not _Phase.IDLE:
            return
        while self._unread[self._position : self._position + 1] in (b"\r", b"\n"):
            self._position += 1
        self._end_reading()

    def _count_unread(self) -> int:
        return sum(isinstance(one, BoundedHttp) and one.flow.has_unread for one in self.connections) or 1

    def _go_on(self) -> None:
        """Parse the next pipelined request; close what the client half closed where nothing is left to answer."""
        self._going_on = None
        self._read_on()
        if self._is_half_closed and not self._is_answering():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP and close; a request before it that is still being answered is dropped."""
        # It would write to the closed connection: an error in the log that any client can cause.
        self._disconnect_running()
        self.pipeline.clear()
        if self._has_begun_to_answer():
            # A second answer would be taken for a part of the first, or for that to the next request.
            self.transport.close()
        else:
            super().send_400_response(msg)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is being answered, also where others wait behind it."""
        for timer in (self._watching, self._going_on):
            if timer is not None:
                timer.cancel()
        self._unread, self._position = b"", 0
        self._disconnect_running()
        super().connection_lost(exc)

    def _disconnect_running(self) -> None:
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()

    def _has_begun_to_answer(self) -> bool:
        """True if an answer is being sent, or was sent before its request had arrived."""
        running = self._running
        return running is not None and running.response_started and (running.more_body or not running.response_complete)

    def _is_answering(self) -> bool:
        """True while a request that has fully arrived is not answered."""
        return self.cycle is not None and not (self.cycle.more_body or self.cycle.response_complete)

    def _enter(self, phase: _Phase) -> None:
        self._phase, self._since_s, self._arrived_bytes = phase, self.loop.time(), 0

    def _pass_body_on(self) -> None:
        if not self._body_parts:
            return
        body = b"".join(self._body_parts)
        self._body_parts.clear()
        self._bytes_without_body = 0
        self._body_left = max(0, self._body_left - len(body))
        self._framing_left += len(body) * (1 + 1 / _BODY_BYTES_PER_FRAMING_BYTE)
        super().on_body(body)

    def _read_on(self) -> None:
        turn_bytes = 0
        while not (
            self._position == len(self._unread)
            or self._is_answering()
            or self._going_on is not None
            or self.transport.is_closing()
        ):
            if self._phase is _Phase.IDLE:
                self._enter(_Phase.HEAD)
            is_plain_body = bool(self._body_left)
            piece = self._take_piece()
            self._parse(piece)
            turn_bytes += 0 if is_plain_body else len(piece)
            if turn_bytes >= _TURN_BYTES and self._position < len(self._unread) and not self._is_answering():
                self._going_on = self.loop.call_soon(self._go_on)
        self._end_reading()

    def _end_reading(self) -> None:
        """Read the socket on if all that was read is parsed."""
        if self._position == len(self._unread):
            self._unread, self._position = b"", 0
            if self.flow.has_unread:
                self.flow.has_unread = False
                self.flow.resume_reading()
        else:
            self.flow.has_unread = True
            self.flow.pause_reading()

    def _take_piece(self) -> bytes:
        """Return the unread bytes up to the end of a head or body; behind a chunked body, a few small requests too."""
        data, start = self._unread, self._position
        if self._body_left:
            end = start + self._body_left
        elif self._is_chunked:
            end = min(_find_end(data, start + _MIN_CHUNKED_PIECE), start + _TURN_BYTES)
        else:
            # The four bytes that end a head may have come in two segments.
            seam = (self._tail + data[start : start + 3]).find(_HEAD_END) if self._tail else -1
            end = _find_end(data, start) if seam < 0 else start + seam + len(_HEAD_END) - len(self._tail)
            end = min(end, start + _TURN_BYTES)
            self._tail = (self._tail + data[max(start, end - 3) : end])[-3:]
        piece = data[start:end]
        self._position = start + len(piece)
        return piece

    def _parse(self, piece: bytes) -> None:
        self._bytes_without_body += len(piece)
        self._framing_left -= len(piece)
        self._arrived_bytes += len(piece)
        try:
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                self._position -= len(piece) - upgrade.args[0]
                self._ignore_upgrade()
            self._pass_body_on()
        except httptools.HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)
            return
        if self.transport.is_closing():
            return
        if self._bytes_without_body > MAX_HEAD_BYTES:
            self.send_400_response(f"More than {MAX_HEAD_BYTES} bytes of headers.")
        elif self._is_chunked and self._framing_left < 0:
            self.send_400_response("The chunks of the body are too small; send chunks of 1 kB or more.")

    def _ignore_upgrade(self) -> None:
        """Parse a head again without its Upgrade header: after an upgrade, httptools skips the body."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            raise httptools.HttpParserError("this is no proxy")
        fields = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        head = b"\r\n".join([method + b" " + self.url + b" HTTP/" + version, *fields, b"", b""])
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(head)

    def _measure_body(self) -> None:
        """Note how the body's end is found; httptools has refused heads that say it in two ways."""
        fields = dict(self.headers)
        self._is_chunked = b"transfer-encoding" in fields
        self._body_left = 0 if self._is_chunked else int(fields.get(b"content-length", 0))
        self._framing_left = _FRAMING_BYTES

    def _displace_another(self) -> bool:
        """Close the connection that does least for its client; False if every client waits for an answer."""
        others = [other for other in self.connections if isinstance(other, BoundedHttp) and other is not self]
        idle = [other for other in others if other._phase is not _Phase.ANSWER or other.flow.write_paused]
        if not idle:
            return False
        slowest = min(idle, key=lambda other: other._measure_pace())
        self.connections.discard(slowest)
        slowest._give_up()
        return True

    def _measure_pace(self) -> tuple[bool, float]:
        """Return what orders connections, the first to be closed first: without a request for longest, then slowest."""
        has_request = self._phase in (_Phase.BODY, _Phase.ANSWER) or self._arrived_bytes > 0
        elapsed_s = self.loop.time() - self._since_s
        return has_request, (_HEAD_START_BYTES + self._arrived_bytes) / max(
            elapsed_s, 0.001
        ) if has_request else -elapsed_s

    def _give_up(self) -> None:
        """Close for another connection; an upload is told to try again."""
        running = self._running
        if self._phase is not _Phase.BODY or running is None or running.response_started:
            self.transport.abort()
            return
        self._disconnect_running()
        code, message = OverloadedError.code, "the upload was too slow while too many connections were open; try again"
        content = b'{"error":{"code":"%b","message":"%b"}}' % (code.encode(), message.encode())
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        self.transport.write(head.encode() + content)
        self.transport.close()

    def _watch(self) -> None:
        """Close what takes too long: a head, a body that nobody reads, an answer that the client does not read."""
        now_s = self.loop.time()
        self._watching = self.loop.call_later(_WATCH_PERIOD_S, self._watch)
        if not self.transport.get_write_buffer_size():
            self._writing_since_s = None
        elif self._writing_since_s is None:
            self._writing_since_s = now_s
        elif now_s - self._writing_since_s > ANSWER_READ_TIMEOUT_S:
            self.transport.abort()
            return
        head_timeout_s = PROBE_TIMEOUT_S if self._is_surplus else HEAD_TIMEOUT_S
        limit_s = {_Phase.HEAD: head_timeout_s, _Phase.BODY: BODY_TIMEOUT_S + _BODY_GRACE_S}.get(self._phase)
        if limit_s is not None and now_s - self._since_s > limit_s and not self.transport.is_closing():
            self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: "ASGI3Application") -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)


def _find_end(data: bytes, start: int) -> int:
    """Return where the first empty line from `start` on ends; the end of the data if there is none."""
    position = data.find(_HEAD_END, start)
    return len(data) if position < 0 else position + len(_HEAD_END)
