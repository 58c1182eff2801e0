"""HTTP as uvicorn reads it with httptools, with a limit on everything that is not a body, which httptools has not."""

from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.limits import MAX_HEAD_BYTES

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application


class BoundedHttp(HttpToolsProtocol):
    """One connection; it is closed when it sends endless addresses, headers, chunk extensions or trailers.

    httptools keeps each of them until it is complete. Bodies have limits of their own (`serving/request_body.py`).
    """

    _bytes_without_body = 0
    _running: RequestResponseCycle | None = None

    def data_received(self, data: bytes) -> None:
        """Read what has arrived, and refuse it when there is too much of it and no body."""
        self._bytes_without_body += len(data)
        super().data_received(data)
        if self._bytes_without_body > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"More than {MAX_HEAD_BYTES} bytes of headers.")

    def on_headers_complete(self) -> None:
        """Begin a request."""
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
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: "ASGI3Application") -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)
