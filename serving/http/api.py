"""The HTTP contract: routes, who may call them, and error bodies."""

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from serving.errors import (
    NotReadableError,
    OverloadedError,
    ServingError,
    UnauthorizedError,
    WrongFormError,
    WrongTypeError,
)
from serving.http.addresses import find_root_path, find_url
from serving.http.api_keys import ApiKeys
from serving.http.connections import SURPLUS
from serving.http.endpoint import ENDPOINTS, INFERENCE_PATHS, INFERENCE_PREFIX, Endpoint
from serving.http.examples import write_examples
from serving.http.held_response import PIECE_BYTES, HeldResponse
from serving.http.layers import REQUEST_ID_HEADER, SECURITY_HEADERS, CutOff, RequestObserver, SecurityHeaders
from serving.http.openapi import describe_api
from serving.http.origins import PageCheck, normalise_origin
from serving.http.protocol import REFUSED
from serving.http.request_body import RequestBody
from serving.limits import MAX_CONNECTIONS
from serving.models.predictions import ErrorAnswer, ErrorDetail, FormExamples, InferenceError
from serving.options import ServiceOptions
from serving.request_record import REQUEST_ID, AnsweredRequest

# What BentoML answers when it is asked with GET; everything else about them comes here.
BENTOML_PATHS = {"/livez", "/readyz", "/healthz", "/metrics", "/schema.json"}
PAGE_FILE = Path(__file__).parents[1] / "page" / "index.html"
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}
_ANYTHING_ELSE = "/{path:path}"
logger = logging.getLogger(__name__)

for _file in iter_modules([str(Path(__file__).parent)], "serving.http."):
    if _file.name.endswith("_api"):
        import_module(_file.name)

_HTTP_CODES = {404: "no_such_route", 405: "method_not_allowed"}


def create_app(
    options: ServiceOptions | None = None, on_request: Callable[[AnsweredRequest], None] = lambda _: None
) -> Starlette:
    """Return the routes; `app.state.api` must hold a `PredictionApi` before the first request.

    `app.state.drift` may hold a `DriftWatch`, `app.state.feedback` a `FeedbackApi`, `app.state.review` a `ReviewApi`,
    `app.state.log` a `RequestLog`, `app.state.access_log` an `AccessLog`; feedback and logs are closed with the app.

    Args:
        options: Who may call.
        on_request: Told of each request once its answer is sent.

    Raises:
        StartError: The API keys cannot be read.
    """
    options = options or ServiceOptions()
    middleware = [
        Middleware(SecurityHeaders),
        Middleware(CutOff, answer=_answer_stopping),
    ]
    if options.allowed_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(map(normalise_origin, options.allowed_origins)),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "X-API-Key", "Content-Type", REQUEST_ID_HEADER, "traceparent"],
                expose_headers=["Retry-After", REQUEST_ID_HEADER],
            )
        )
    app = Starlette(
        middleware=middleware,
        routes=[
            *(Route(one.path, _guard(one), methods=[one.method]) for one in ENDPOINTS),
            Route("/", _show_page, methods=["GET"]),
            Route("/openapi.json", _show_openapi, methods=["GET"]),
            # BentoML describes only its own methods under this name.
            Route("/docs.json", _show_openapi, methods=["GET"]),
            Route(_ANYTHING_ELSE, _refuse_path, methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]),
        ],
        exception_handlers={
            ServingError: _answer_error,
            MemoryError: _answer_shortage,
            Exception: _answer_fault,
            HTTPException: _answer_http_error,
            ClientDisconnect: _answer_nobody,
        },
        lifespan=_close_at_end,
    )
    paths = [route.path for route in app.routes if isinstance(route, Route) and route.path != _ANYTHING_ELSE]
    app.user_middleware.insert(0, Middleware(RequestObserver, paths=paths, on_request=on_request))
    app.state.root_path = options.root_path
    app.state.gives_examples = options.gives_examples
    app.state.drift = None
    app.state.feedback = None
    app.state.review = None
    app.state.log = None
    app.state.access_log = None
    app.state.keys = ApiKeys(options.api_keys_file) if options.api_keys_file else None
    app.state.pages = PageCheck(options.allowed_origins, options.allowed_hosts, has_keys=app.state.keys is not None)
    return app


def _guard(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        keys: ApiKeys | None = request.app.state.keys
        pages: PageCheck = request.app.state.pages
        request.state.body = RequestBody(request)
        try:
            if SURPLUS in request.scope.get("state", ()):
                raise OverloadedError(
                    f"{MAX_CONNECTIONS} connections wait for answers, the most there may be; try again"
                )
            if keys is not None:
                keys.check(request.headers)
            if request.method == "POST":
                pages.check(request.headers)
            # Nothing else holds the answer, which is freed before its text is encoded.
            content = (await endpoint.handle(request)).model_dump_json().encode()
        except ServingError:
            # The endpoint has given back what it held: what is discarded takes no memory, but time.
            request.state.is_body_read = await request.state.body.discard()
            raise
        if len(content) > PIECE_BYTES:
            return HeldResponse(content, request.app.state.api.admission)
        return Response(content, media_type="application/json")

    return answer


@asynccontextmanager
async def _close_at_end(app: Starlette) -> AsyncIterator[None]:
    yield
    for other in (app.state.feedback, app.state.log, app.state.access_log):
        if other is not None:
            other.close()
    app.state.api.close()


async def _show_page(_: Request) -> Response:
    return FileResponse(PAGE_FILE, headers=_PAGE_HEADERS)


async def _show_openapi(request: Request) -> Response:
    headers = {"Vary": "X-Forwarded-Prefix"}
    return Response(_encode_description(find_root_path(request)), media_type="application/json", headers=headers)


@lru_cache(maxsize=16)
def _encode_description(root_path: str) -> bytes:
    return json.dumps(describe_api(root_path)).encode()


async def _refuse_path(request: Request) -> Response:
    for route in request.app.routes:
        match, _ = route.matches(request.scope)
        if match is Match.PARTIAL:
            allowed = ", ".join(sorted(route.methods))
            raise HTTPException(405, f"{request.url.path} answers {allowed}", {"Allow": allowed})
    if request.url.path in BENTOML_PATHS:
        raise HTTPException(405, f"{request.url.path} answers GET, HEAD", {"Allow": "GET, HEAD"})
    raise HTTPException(404, f"nothing is at {request.url.path}; GET /openapi.json lists what is")


async def _answer_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServingError):
        raise error
    headers = {}
    if error.status >= 500 and not isinstance(error, OverloadedError):
        logger.warning("%s %s: %s", request.method, request.url.path, error)
    if isinstance(error, OverloadedError):
        headers["Retry-After"] = str(error.retry_after_s)
        request.scope.setdefault("state", {})[REFUSED] = True
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    if not getattr(request.state, "is_body_read", True):
        headers["Connection"] = "close"
    examples = None
    if request.app.state.gives_examples and isinstance(error, WrongTypeError | WrongFormError | NotReadableError):
        examples = write_examples(request.url.path, find_url(request), request.app.state.keys is not None)
    return _refuse(request.scope, error.status, error.code, str(error), headers, examples)


async def _answer_shortage(request: Request, __: Exception) -> Response:
    headers = {"Retry-After": "5", "Connection": "close"}
    message = "there is not enough memory for this request now; try again"
    return _refuse(request.scope, OverloadedError.status, OverloadedError.code, message, headers)


async def _answer_fault(request: Request, error: Exception) -> Response:
    # Starlette logs the error itself.
    # Outside of the layers that add the headers.
    headers = {**SECURITY_HEADERS, REQUEST_ID_HEADER: REQUEST_ID.get()}
    message = f"the service failed on this request ({type(error).__name__})"
    return _refuse(request.scope, 500, "internal", message, headers)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    code = _HTTP_CODES.get(error.status_code, "bad_request")
    return _refuse(request.scope, error.status_code, code, error.detail, dict(error.headers or {}))


async def _answer_nobody(request: Request, __: Exception) -> Response:
    message = "the connection was closed early"
    return _refuse(request.scope, NotReadableError.status, NotReadableError.code, message, None)


async def _answer_stopping(scope: Scope, receive: Receive, send: Send) -> None:
    headers = {"Retry-After": "5", "Connection": "close"}
    message = "the service is stopping; try again"
    answer = _refuse(scope, OverloadedError.status, OverloadedError.code, message, headers)
    await answer(scope, receive, send)


def _refuse(
    scope: Scope,
    status: int,
    code: str,
    message: str,
    headers: dict[str, str] | None,
    examples: FormExamples | None = None,
) -> Response:
    if scope["path"].startswith(INFERENCE_PATHS) or scope["path"] == INFERENCE_PREFIX:
        return _answer_json(InferenceError(error=message), status, headers)
    detail = ErrorDetail(code=code, message=message, request_id=REQUEST_ID.get(), examples=examples)
    body = ErrorAnswer(error=detail).model_dump_json(exclude_none=True)
    return Response(body, status, headers, media_type="application/json")


def _answer_json(body: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), status, headers, media_type="application/json")
