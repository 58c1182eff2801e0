"""Layers around the routes: headers that every answer carries, and records of every request."""

import asyncio
import time
from collections.abc import Callable, Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.request_record import REQUEST_ID, AnsweredRequest, choose_request_id, read_traceparent

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
REQUEST_ID_HEADER = "X-Request-ID"
_OTHER_PATHS = "other"
_MAX_PATH = 200


class SecurityHeaders:
    """Adds `SECURITY_HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class CutOff:
    """Answers 503 to a request that the end of the process cuts off before its answer has begun."""

    def __init__(self, app: ASGIApp, answer: ASGIApp) -> None:
        """Wrap an application.

        Args:
            app: Application that answers.
            answer: Application that answers instead.
        """
        self._app = app
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        has_begun = False

        async def send_and_see(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        except asyncio.CancelledError:
            if scope["type"] != "http" or has_begun:
                raise
            await self._answer(scope, receive, send)


class RequestObserver:
    """Gives every request an identity, and tells what was answered."""

    def __init__(self, app: ASGIApp, paths: Collection[str], on_request: Callable[[AnsweredRequest], None]) -> None:
        """Wrap an application.

        Args:
            app: Application that answers.
            paths: Routes, told as they are written here; every other path is `other`, so that nobody can make up
                labels.
            on_request: Told of each request once its answer is sent.
        """
        self._app = app
        self._patterns = {path: compile_path(path)[0] for path in paths}
        self._on_request = on_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s = time.perf_counter()
        status = 500  # of an error that the layers around this one answer
        headers = Headers(scope=scope)
        request_id = choose_request_id(headers.get(REQUEST_ID_HEADER))
        REQUEST_ID.set(request_id)

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        finally:
            path = scope["path"]
            client = scope.get("client")
            self._on_request(
                AnsweredRequest(
                    request_id=request_id,
                    traceparent=read_traceparent(headers.get("traceparent")),
                    client=client[0] if client else None,
                    method=scope["method"],
                    path=path[:_MAX_PATH],
                    route=next(
                        (route for route, pattern in self._patterns.items() if pattern.match(path)), _OTHER_PATHS
                    ),
                    status=status,
                    seconds=round(time.perf_counter() - start_s, 6),
                )
            )
