"""Limits of HTTP connections: their number, and the time that a head, a body or an unread answer may take."""

import asyncio
from enum import Enum, auto
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.errors import OverloadedError
from serving.limits import (
    ANSWER_READ_TIMEOUT_S,
    BODY_TIMEOUT_S,
    HEAD_TIMEOUT_S,
    MAX_CONNECTIONS,
    PROBE_CONNECTIONS,
    PROBE_TIMEOUT_S,
)

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

# Key of `scope["state"]` on connections beyond `MAX_CONNECTIONS`.
SURPLUS = "is_surplus"
# Bytes that a request is taken to have sent before its first one: a new one is no slow one.
_HEAD_START_BYTES = 65_536
_WATCH_PERIOD_S = 0.5
# The application's own limit answers 408 and discards the rest first.
_BODY_GRACE_S = 15.0


class Phase(Enum):
    """Part of an exchange that a connection is in."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    ANSWER = auto()


class LimitedConnection(HttpToolsProtocol):
    """One of at most `MAX_CONNECTIONS` connections, closed when a part of its exchange takes too long.

    Beyond `MAX_CONNECTIONS`, a connection without a request is closed for a new one, or else the slowest that sends
    one; if there is none, the new one is `SURPLUS`.
    """

    _is_surplus = False
    _phase = Phase.HEAD
    _since_s = 0.0
    _arrived_bytes = 0
    _writing_since_s: float | None = None
    _running: RequestResponseCycle | None = None
    _watching: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, within the limit of connections."""
        super().connection_made(transport)
        self._enter(Phase.HEAD)
        self._watching = self.loop.call_later(_WATCH_PERIOD_S, self._watch)
        if len(self.connections) > MAX_CONNECTIONS and not self._displace_another():
            self._is_surplus = True
            self.app_state = {**self.app_state, SURPLUS: True}
            if len(self.connections) > MAX_CONNECTIONS + PROBE_CONNECTIONS:
                transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is being answered, also where others wait behind it."""
        if self._watching is not None:
            self._watching.cancel()
        self._disconnect_running()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: "ASGI3Application") -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

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

    def _enter(self, phase: Phase) -> None:
        self._phase, self._since_s, self._arrived_bytes = phase, self.loop.time(), 0

    def _displace_another(self) -> bool:
        """Close the connection that does least for its client; False if every client waits for an answer."""
        others = [other for other in self.connections if isinstance(other, LimitedConnection) and other is not self]
        idle = [other for other in others if other._phase is not Phase.ANSWER or other.flow.write_paused]
        if not idle:
            return False
        slowest = min(idle, key=lambda other: other._measure_pace())
        self.connections.discard(slowest)
        slowest._give_up()
        return True

    def _measure_pace(self) -> tuple[bool, float]:
        """Return what orders connections, the first to be closed first: without a request for longest, then slowest."""
        has_request = self._phase in (Phase.BODY, Phase.ANSWER) or self._arrived_bytes > 0
        elapsed_s = self.loop.time() - self._since_s
        return has_request, (_HEAD_START_BYTES + self._arrived_bytes) / max(
            elapsed_s, 0.001
        ) if has_request else -elapsed_s

    def _give_up(self) -> None:
        """Close for another connection; an upload is told to try again."""
        running = self._running
        if self._phase is not Phase.BODY or running is None or running.response_started:
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
        limit_s = {Phase.HEAD: head_timeout_s, Phase.BODY: BODY_TIMEOUT_S + _BODY_GRACE_S}.get(self._phase)
        if limit_s is not None and now_s - self._since_s > limit_s and not self.transport.is_closing():
            self.transport.close()
