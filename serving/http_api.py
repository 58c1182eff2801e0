"""The HTTP contract: routes, parameters, limits and error bodies.

Shape suffixes: N = pictures in the request, H = height, W = width, C = colour channels, K = classes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Match, Route

from serving.admission import Admission
from serving.batching import Batcher
from serving.classifier import Classifier
from serving.errors import BadParameterError, NotReadableError, OverloadedError, ServingError, TooLargeError
from serving.limits import DEFAULT_TOP_K, MAX_REQUEST_PIXELS
from serving.model_set import ModelSet
from serving.openapi import describe_api
from serving.predictions import ErrorAnswer, ErrorDetail, PredictAnswer, rank_classes
from serving.preprocess import measure_pixels
from serving.request_body import EncodedPicture, RequestBody
from serving.session import count_cpus

PAGE_FILE = Path(__file__).parent / "page" / "index.html"
_MAX_DECODERS = 4
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_HTTP_CODES = {404: "no_such_route", 405: "method_not_allowed"}


class PredictionApi:
    """The routes over one set of models, with the threads that do their work.

    Decoding runs on a few threads, classification in batches on one: onnxruntime spreads a batch over the cores itself.

    Attributes:
        models: The loaded models.
        admission: How much is being worked on.
    """

    def __init__(
        self,
        models: ModelSet,
        admission: Admission | None = None,
        on_batch: Callable[[int], None] | None = None,
        on_answer: Callable[[PredictAnswer], None] | None = None,
    ) -> None:
        """Start the threads.

        Args:
            models: The loaded models.
            admission: How much is worked on at once; the usual limits when None.
            on_batch: Told how many pictures each batch has.
            on_answer: Told each answer, before it is sent.
        """
        self.models = models
        self._on_answer = on_answer
        self.admission = admission or Admission()
        self._decoders = ThreadPoolExecutor(min(_MAX_DECODERS, count_cpus()), thread_name_prefix="decode")
        self._batcher = Batcher(on_batch=on_batch)

    def close(self) -> None:
        """End the threads, also those of the models; work that has not started is dropped."""
        self.models.stop()
        self._decoders.shutdown(wait=True, cancel_futures=True)
        self._batcher.close()

    async def predict(self, request: Request) -> Response:
        """Answer `POST /v1/predict`."""
        body = RequestBody(request)
        with self.admission.hold() as holding:
            try:
                classifier = self.models.select(request.query_params.get("model"))
                top_k = _read_top_k(request, len(classifier.manifest.classes))
                pictures = await body.read_pictures(holding.take)
            except ServingError:
                request.state.is_body_read = await body.discard()
                raise
            _check_pixels(pictures)
            with self.admission.wait():
                if await request.is_disconnected():
                    raise ClientDisconnect
                images_NHWC = await self._decode(classifier, pictures)
                probabilities_NK = await self._batcher.classify(classifier, images_NHWC)
        answer = PredictAnswer(
            model=classifier.identity,
            provider=classifier.provider,
            predictions=tuple(
                rank_classes(probabilities_K, classifier.manifest, top_k, picture.filename)
                for probabilities_K, picture in zip(probabilities_NK, pictures, strict=True)
            ),
        )
        if self._on_answer is not None:
            self._on_answer(answer)
        return _answer_json(answer)

    async def list_models(self, _: Request) -> Response:
        """Answer `GET /v1/models`."""
        return _answer_json(self.models.describe())

    async def _decode(self, classifier: Classifier, pictures: list[EncodedPicture]) -> npt.NDArray[np.uint8]:
        loop = asyncio.get_running_loop()
        futures = [loop.run_in_executor(self._decoders, classifier.decode, picture.data) for picture in pictures]
        try:
            images = []
            for position, (future, picture) in enumerate(zip(futures, pictures, strict=True), start=1):
                try:
                    images.append(await future)
                except ServingError as error:
                    if picture.filename is None:
                        raise
                    message = f"picture {position} of {len(pictures)}, {picture.filename!r}: {error}"
                    raise type(error)(message) from error
        finally:
            for future in futures:
                future.cancel()
        return np.stack(images)


def create_app() -> Starlette:
    """Return the routes; `app.state.api` must hold a `PredictionApi` before the first request."""
    return Starlette(
        routes=[
            Route("/v1/predict", _predict, methods=["POST"]),
            Route("/v1/models", _list_models, methods=["GET"]),
            Route("/", _show_page, methods=["GET"]),
            Route("/openapi.json", _show_openapi, methods=["GET"]),
            # BentoML describes only its own methods under this name.
            Route("/docs.json", _show_openapi, methods=["GET"]),
            Route("/{path:path}", _refuse_path, methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]),
        ],
        exception_handlers={
            ServingError: _answer_error,
            Exception: _answer_fault,
            HTTPException: _answer_http_error,
            ClientDisconnect: _answer_nobody,
        },
        lifespan=_close_at_end,
    )


@asynccontextmanager
async def _close_at_end(app: Starlette) -> AsyncIterator[None]:
    yield
    app.state.api.close()


async def _predict(request: Request) -> Response:
    api: PredictionApi = request.app.state.api
    return await api.predict(request)


async def _list_models(request: Request) -> Response:
    api: PredictionApi = request.app.state.api
    return await api.list_models(request)


async def _show_page(_: Request) -> Response:
    return FileResponse(PAGE_FILE, headers=_PAGE_HEADERS)


async def _show_openapi(_: Request) -> Response:
    return JSONResponse(describe_api())


async def _refuse_path(request: Request) -> Response:
    for route in request.app.routes:
        match, _ = route.matches(request.scope)
        if match is Match.PARTIAL:
            allowed = ", ".join(sorted(route.methods))
            raise HTTPException(405, f"{request.url.path} answers {allowed}", {"Allow": allowed})
    raise HTTPException(404, f"nothing is at {request.url.path}; GET /openapi.json lists what is")


async def _answer_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServingError):
        raise error
    headers = {}
    if isinstance(error, OverloadedError):
        headers["Retry-After"] = str(error.retry_after_s)
    if not getattr(request.state, "is_body_read", True):
        headers["Connection"] = "close"
    return _refuse(error.status, error.code, str(error), headers)


async def _answer_fault(_: Request, error: Exception) -> Response:
    # Starlette logs the error itself.
    return _refuse(500, "internal", f"the service failed over this request ({type(error).__name__})", None)


async def _answer_http_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    code = _HTTP_CODES.get(error.status_code, "bad_request")
    return _refuse(error.status_code, code, error.detail, dict(error.headers or {}))


async def _answer_nobody(_: Request, __: Exception) -> Response:
    return _refuse(NotReadableError.status, NotReadableError.code, "the connection was closed early", None)


def _refuse(status: int, code: str, message: str, headers: dict[str, str] | None) -> Response:
    return _answer_json(ErrorAnswer(error=ErrorDetail(code=code, message=message)), status, headers)


def _answer_json(body: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), status, headers, media_type="application/json")


def _check_pixels(pictures: list[EncodedPicture]) -> None:
    pixels = sum(measure_pixels(picture.data) for picture in pictures)
    if len(pictures) > 1 and pixels > MAX_REQUEST_PIXELS:
        raise TooLargeError(
            f"{len(pictures)} pictures of {pixels:,} pixels together; at most {MAX_REQUEST_PIXELS:,} in one request"
        )


def _read_top_k(request: Request, classes: int) -> int:
    text = request.query_params.get("top_k")
    if text is None:
        return min(DEFAULT_TOP_K, classes)
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= classes):
        raise BadParameterError(f"top_k is {text[:40]!r}; it must be a whole number from 1 to {classes}")
    return int(text)
