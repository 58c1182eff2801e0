"""HTTP as uvicorn reads it with httptools, with limits of size and time on what is not a body, which both have not."""

import asyncio
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.limits import HEAD_TIMEOUT_S, MAX_HEAD_BYTES

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application


class BoundedHttp(HttpToolsProtocol):
    """One connection; it is closed when it sends endless addresses, headers, chunk extensions or trailers, or no end.

    httptools keeps each of them until it is complete. Bodies have limits of their own (`serving/request_body.py`), and
    uvicorn closes connections that are idle between two requests.
    """

    _bytes_without_body = 0
    _running: RequestResponseCycle | None = None
    _closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Read what has arrived, and refuse it when there is too much of it and no body."""
        self._bytes_without_body += len(data)
        super().data_received(data)
        if self._bytes_without_body > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"More than {MAX_HEAD_BYTES} bytes of headers.")
        elif self._closing is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        """Begin a request."""
        self._stop_waiting()
        self._bytes_without_body = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._bytes_without_body = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP and close; a request before it that is still being answered is dropped."""
        if self._running is not None:
            # It would write to the closed connection: an error in the log that any client can cause.
            self._running.disconnected = True
            self._running.message_event.set()
        self.pipeline.clear()
        super().send_400_response(msg)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is being answered, also where others wait behind it."""
        self._stop_waiting()
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._closing = self.loop.call_later(HEAD_TIMEOUT_S, self._close_slow)

    def _stop_waiting(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _close_slow(self) -> None:
        self._closing = None
        if not self.transport.is_closing():
            self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: "ASGI3Application") -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)
