"""HTTP/1.1 of uvicorn and httptools, with bounds on the work that each connection causes."""

import asyncio
import logging

import httptools
from uvicorn.protocols.http.flow_control import FlowControl

from serving.http.connections import LimitedConnection, Phase
from serving.limits import MAX_HEAD_BYTES, MAX_HEADERS

# Key of `scope["state"]` with which the application has a connection wait after an answer.
REFUSED = "is_refused"
_HEAD_END = b"\r\n\r\n"
# Least bytes of a chunked body that are parsed at once; what is pipelined behind it fits into as many.
_MIN_CHUNKED_PIECE = 1024
# Most bytes of heads and chunked bodies, which cost much time each, that one connection parses in one turn of the loop.
_TURN_BYTES = 16_384
# A chunked body's framing may have so many bytes, and one more for so many of the body.
_FRAMING_BYTES = 65_536
_BODY_BYTES_PER_FRAMING_BYTE = 8
# Between two pipelined requests, or two readings of a request that comes in small pieces, for each connection that is
# held: all of them together cause so much work only. Where the last answer took long, the pause is a multiple of that.
_PAUSE_S = 0.008
_PAUSE_FACTOR = 4
_MAX_PAUSE_S = 5.0
# After an answer that says to come back later: who does not wait would only be refused again. Longer after a large
# body, which costs time to receive.
_REFUSED_PAUSE_S = 0.2
_REFUSED_BYTES_PER_S = 8_000_000
# A request comes in as many small pieces at once; after them it is read with pauses, in which they gather.
_SMALL_PIECE_BYTES = 1024
_FREE_SMALL_PIECES = 8
# Any client can send what is no HTTP as often as it likes.
_TELL_PERIOD_S = 60.0


class _InvalidRequests:
    """Invalid HTTP requests, logged at most once a minute."""

    def __init__(self) -> None:
        self._untold = 0
        self._told_s = float("-inf")

    def add(self, logger: logging.Logger, client: tuple[str, int] | None, error: Exception, now_s: float) -> None:
        """Count one, and log how many came since the last line."""
        self._untold += 1
        if now_s - self._told_s < _TELL_PERIOD_S:
            return
        reason = error.__context__ or error
        if isinstance(reason, httptools.HttpParserInvalidURLError):  # has the URL, which may hold secrets
            reason = httptools.HttpParserError("invalid target")
        sender = client[0] if client else "unknown"
        logger.warning("invalid HTTP requests: %d; the last from %s: %.200s", self._untold, sender, reason)
        self._untold, self._told_s = 0, now_s


_invalid_requests = _InvalidRequests()


class _Flow(FlowControl):
    """Reads on only where the connection is not held, whoever asks.

    Attributes:
        is_held: True if something is not parsed yet, or the connection has to pause.
    """

    is_held = False

    def resume_reading(self) -> None:
        if not self.is_held:
            super().resume_reading()


class BoundedHttp(LimitedConnection):
    """One connection, which costs a bounded amount of memory and time whatever the client sends or does not read.

    Requests are parsed one at a time: what is pipelined behind a request stays unparsed, and the socket unread, until
    its answer is sent. Upgrades are ignored, as RFC 9110 (7.8) allows. Connections that send small pieces, pipelined
    requests, or a request at once after a refusal, are read with pauses.
    """

    _unread = b""
    _position = 0
    _tail = b""
    _body_left = 0
    _is_chunked = False
    _framing_left = 0.0
    _is_half_closed = False
    _bytes_without_body = 0
    _request_bytes = 0
    _small_pieces = 0
    _going_on: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        self._body_parts: list[bytes] = []
        super().connection_made(transport)
        self.flow: _Flow = _Flow(transport)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, up to the end of the first request that is not answered yet."""
        self._unset_keepalive_if_required()
        self._unread, self._position = self._unread[self._position :] + data, 0
        self._read_on()
        if self._phase in (Phase.HEAD, Phase.BODY) and len(data) < _SMALL_PIECE_BYTES:
            self._small_pieces += 1
            if self._small_pieces > _FREE_SMALL_PIECES and self._going_on is None:
                self._hold(self._measure_pause_s())

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep a connection that the client half closed until its requests are answered."""
        self._is_half_closed = True
        return self._is_answering() or self._going_on is not None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers, which proxies do not check as they check headers, are dropped (RFC 9110, 6.5.1)."""
        if self._phase is Phase.BODY:
            return
        if name.lower() == b"host" and any(known == b"host" for known, _ in self.headers):
            raise httptools.HttpParserError("a request names one host (RFC 9112, 3.2)")
        if name.lower() == b"transfer-encoding" and value.strip(b" \t").lower() != b"chunked":
            raise httptools.HttpParserError("the only transfer coding is chunked (RFC 9112, 6.1)")
        if len(self.headers) == MAX_HEADERS:
            raise httptools.HttpParserError("too many headers")
        super().on_header(name, value.strip(b" \t"))

    def on_headers_complete(self) -> None:
        """Begin a request; one that asks for an upgrade begins once its head is parsed again without it."""
        if self.parser.get_http_version() != "1.0" and not any(name == b"host" for name, _ in self.headers):
            raise httptools.HttpParserError("a request names its host (RFC 9112, 3.2)")
        if self.parser.should_upgrade():
            return
        self._bytes_without_body, self._request_bytes, self._tail = 0, 0, b""
        self._enter(Phase.BODY)
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
        self._body_left, self._is_chunked, self._small_pieces = 0, False, 0
        super().on_message_complete()
        if not self.parser.should_keep_alive():
            # A trailer said so: the parser reads nothing any more.
            self.cycle.keep_alive = False
            if self.cycle.response_complete:
                self.transport.close()
        self._enter(Phase.ANSWER if self._is_answering() else Phase.IDLE)

    def on_response_complete(self) -> None:
        """Go on with what is pipelined behind the request; close what the client half closed."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        took_s = self.loop.time() - self._since_s
        if self._phase is Phase.ANSWER and not self._is_answering():
            self._enter(Phase.IDLE)
        if self._going_on is not None:
            return
        self._skip_empty_lines()
        is_refused = self._running is not None and REFUSED in self._running.scope["state"]
        if self._unread:
            self._unset_keepalive_if_required()
        if is_refused and self._phase is Phase.IDLE and not self._is_half_closed:
            self._hold(min(_MAX_PAUSE_S, max(_REFUSED_PAUSE_S, self._request_bytes / _REFUSED_BYTES_PER_S)))
        elif self._unread:
            self._hold(self._measure_pause_s(took_s))
        elif self._is_half_closed and not self._is_answering():
            self.transport.close()

    def _skip_empty_lines(self) -> None:
        """Skip line ends that some clients send behind a body (RFC 9112, 2.2): they are no request."""
        if self._phase is not Phase.IDLE:
            return
        while self._unread[self._position : self._position + 1] in (b"\r", b"\n"):
            self._position += 1
        self._end_reading()

    def _hold(self, seconds: float) -> None:
        """Read nothing for a while."""
        self.flow.is_held = True
        self.flow.pause_reading()
        self._going_on = self.loop.call_later(seconds, self._go_on)

    def _measure_pause_s(self, took_s: float = 0.0) -> float:
        """Return how long to wait, so that clients that wait for an answer come first."""
        held = sum(isinstance(one, BoundedHttp) and one.flow.is_held for one in self.connections) or 1
        return min(_MAX_PAUSE_S, held * max(_PAUSE_S, _PAUSE_FACTOR * took_s))

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
        """Forget what is not parsed."""
        if self._going_on is not None:
            self._going_on.cancel()
        self._unread, self._position = b"", 0
        super().connection_lost(exc)

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
            if self._phase is Phase.IDLE:
                self._enter(Phase.HEAD)
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
            if self.flow.is_held:
                self.flow.is_held = False
                self.flow.resume_reading()
        else:
            self.flow.is_held = True
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
        self._request_bytes += len(piece)
        try:
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                self._position -= len(piece) - upgrade.args[0]
                self._ignore_upgrade()
            self._pass_body_on()
        except httptools.HttpParserError as error:
            _invalid_requests.add(self.logger, self.client, error, self.loop.time())
            self.send_400_response("Invalid HTTP request received.")
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


def _find_end(data: bytes, start: int) -> int:
    """Return where the first empty line from `start` on ends; the end of the data if there is none."""
    position = data.find(_HEAD_END, start)
    return len(data) if position < 0 else position + len(_HEAD_END)
