"""The Open Inference Protocol (https://github.com/kserve/open-inference-protocol), REST with JSON, beside /v1.

A tensor of pixels becomes a PNG, so that it is an image like any other to limits, log, drift and feedback.

Shape suffixes: N = images in the request, H = height, W = width, C = colour channels, K = classes.
"""

import asyncio
import base64
import binascii
import io
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from serving.decoding.encoded import EncodedImage
from serving.errors import (
    BadParameterError,
    NoSuchModelError,
    NotAnImageError,
    OverloadedError,
    TooLargeError,
    WrongTypeError,
)
from serving.http.endpoint import REFUSALS, describe_overload, describe_parameter, endpoint
from serving.http.prediction_api import PredictionApi
from serving.http.request_body import RequestBody
from serving.limits import MAX_IMAGE_BYTES, MAX_IMAGES
from serving.models.classifier import Classifier

# One file of `MAX_IMAGE_BYTES` in base64.
MAX_JSON_BYTES = 14_000_000
# Parsing holds up the event loop: up to some 50 ms for so many numbers, of which a list costs as much as four.
MAX_JSON_VALUES = 500_000
_VALUES_PER_LIST = 4
_PIXELS, _FILES = "UINT8", "BYTES"
_INPUT, _PROBABILITIES, _LABELS = "images", "probabilities", "labels"


class ServerMetadata(BaseModel):
    """Answer to `GET /v2`."""

    name: str = "darkroom"
    version: str = "1"
    extensions: tuple[str, ...] = ()


class Live(BaseModel):
    """Answer to `GET /v2/health/live`."""

    live: bool = True


class Ready(BaseModel):
    """Answer to `GET /v2/health/ready`."""

    ready: bool = True


class ModelReady(Ready):
    """Answer to `GET /v2/models/{model}/ready`."""

    name: str


class TensorMetadata(BaseModel):
    """Name, type and shape of an input or output; -1 for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(BaseModel):
    """Answer to `GET /v2/models/{model}`; the images may also be encoded files, of type BYTES and shape [N]."""

    name: str
    versions: tuple[str, ...]
    platform: str = "onnxruntime_onnx"
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


class InferenceInput(BaseModel):
    """The images of a request.

    Attributes:
        name: `images`.
        datatype: `UINT8` for pixels, `BYTES` for encoded files.
        shape: [N, H, W, 3] of pixels, red first; [N] or [N, 1] of files.
        data: Numbers from 0 to 255, nested or flat; or files in base64.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any]


class InferenceOutput(BaseModel):
    """An output that is asked for: `probabilities` or `labels`."""

    model_config = ConfigDict(frozen=True)

    name: str


class InferenceRequest(BaseModel):
    """The JSON body of an inference; without `outputs` all are answered."""

    model_config = ConfigDict(frozen=True)

    id: str | None = Field(None, max_length=200)
    inputs: tuple[InferenceInput, ...]
    outputs: tuple[InferenceOutput, ...] = ()


class TensorAnswer(TensorMetadata):
    """An output: `probabilities`, FP32 [N, K], or `labels`, BYTES [N]; flat, row by row."""

    data: tuple[float, ...] | tuple[str, ...]


class InferenceAnswer(BaseModel):
    """Answer to an inference."""

    model_name: str
    model_version: str
    id: str | None
    outputs: tuple[TensorAnswer, ...]


def read_inputs(body: bytes) -> tuple[InferenceRequest, list[EncodedImage]]:
    """Return a request and its images.

    Raises:
        BadParameterError: The body is not a request with one input `images`, whose data fit type and shape.
        NotAnImageError: A file is empty.
        TooLargeError: There are too many images or bytes.
    """
    values = body.count(b",") + _VALUES_PER_LIST * (body.count(b"[") + body.count(b"{"))
    if values > MAX_JSON_VALUES:
        raise TooLargeError(f"more than {MAX_JSON_VALUES:,} numbers and lists; send files as {_FILES} in base64")
    try:
        asked = InferenceRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:80]
        raise BadParameterError(
            f"not a request of the Open Inference Protocol: {place}: {first['msg'][:200]}"
        ) from None
    names = [one.name for one in asked.inputs]
    if names != [_INPUT]:
        raise BadParameterError(f"{len(names)} inputs; send one, called {_INPUT!r}")
    for output in asked.outputs:
        if output.name not in (_PROBABILITIES, _LABELS):
            raise BadParameterError(f"output {output.name[:40]!r}; ask for {_PROBABILITIES!r} or {_LABELS!r}")
    if len(set(asked.outputs)) < len(asked.outputs):
        raise BadParameterError(f"{len(asked.outputs)} outputs; ask for each once")
    (tensor,) = asked.inputs
    if tensor.shape and tensor.shape[0] > MAX_IMAGES:
        raise TooLargeError(f"{tensor.shape[0]} images; send at most {MAX_IMAGES} in one request")
    if tensor.datatype == _PIXELS:
        return asked, [_encode(image_HWC) for image_HWC in _read_pixels(tensor)]
    if tensor.datatype == _FILES:
        return asked, _read_files(tensor)
    raise BadParameterError(f"datatype {tensor.datatype[:40]!r}; send {_PIXELS} pixels, or files as {_FILES} in base64")


def _read_pixels(tensor: InferenceInput) -> npt.NDArray[np.uint8]:
    shape = tensor.shape
    if len(shape) != 4 or shape[-1] != 3 or min(shape) < 1:
        raise BadParameterError(f"shape {list(shape[:8])}; send [N, height, width, 3]")
    try:
        values = np.array(tensor.data)
    except (ValueError, OverflowError):
        values = np.array([None])
    # From Python's product: numpy's would wrap around.
    count = shape[0] * shape[1] * shape[2] * shape[3]
    if values.dtype.kind != "i" or values.size != count or values.min() < 0 or values.max() > 255:
        raise BadParameterError(f"the data must be {count:,} whole numbers from 0 to 255, as shape {list(shape)} says")
    return values.astype(np.uint8).reshape(shape)


def _encode(image_HWC: npt.NDArray[np.uint8]) -> EncodedImage:
    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, "PNG", compress_level=1)
    return EncodedImage(file.getvalue(), None)


def _read_files(tensor: InferenceInput) -> list[EncodedImage]:
    data = [one[0] if isinstance(one, list) and len(one) == 1 else one for one in tensor.data]
    if tensor.shape not in ((len(data),), (len(data), 1)) or not data:
        raise BadParameterError(f"shape {list(tensor.shape[:8])} of {len(data)} files; send [{len(data) or 'N'}]")
    files = []
    for position, text in enumerate(data, start=1):
        try:
            content = base64.b64decode(text, validate=True) if isinstance(text, str) else None
        except (binascii.Error, ValueError):
            content = None
        if content is None:
            raise BadParameterError(f"file {position} of {len(data)} is not base64")
        if not content:
            raise NotAnImageError(f"file {position} of {len(data)} is empty; send an image")
        if len(content) > MAX_IMAGE_BYTES:
            raise TooLargeError(f"file {position} of {len(data)} has more than {MAX_IMAGE_BYTES:,} bytes")
        files.append(EncodedImage(content, None))
    return files


def _select(request: Request) -> Classifier:
    api: PredictionApi = request.app.state.api
    classifier = api.models.select(request.path_params["model"])
    version = request.path_params.get("version", classifier.version)
    if version != classifier.version:
        raise NoSuchModelError(f"version {version[:40]!r} is not served; version {classifier.version} is")
    return classifier


def _answer(
    asked: InferenceRequest, classifier: Classifier, probabilities_NK: npt.NDArray[np.float32], labels: Sequence[str]
) -> InferenceAnswer:
    rows, classes = probabilities_NK.shape
    flat = tuple(probabilities_NK.ravel().tolist())
    outputs = {
        _PROBABILITIES: TensorAnswer(name=_PROBABILITIES, datatype="FP32", shape=(rows, classes), data=flat),
        _LABELS: TensorAnswer(name=_LABELS, datatype=_FILES, shape=(rows,), data=tuple(labels)),
    }
    return InferenceAnswer(
        model_name=classifier.manifest.name,
        model_version=classifier.version,
        id=asked.id,
        outputs=tuple(outputs[name] for name in ([one.name for one in asked.outputs] or outputs)),
    )


_MODEL = describe_parameter("model", "path", "Registered name")
_VERSION = describe_parameter("version", "path", "Version that is served")
_inference = partial(
    endpoint,
    "POST",
    answer=InferenceAnswer,
    success="Probabilities and labels",
    refusals=REFUSALS,
    further=describe_overload("InferenceError"),
    body={"application/json": {"schema": {"$ref": "#/components/schemas/InferenceRequest"}}},
    reads=InferenceRequest,
)


@endpoint("GET", "/v2", answer=ServerMetadata, success="The server")
async def describe_server(_: Request) -> ServerMetadata:
    """Name and version of the server (Open Inference Protocol)."""
    return ServerMetadata()


@endpoint(
    "GET", "/v2/health/live", answer=Live, success="The server answers", further=describe_overload("InferenceError")
)
async def tell_live(request: Request) -> Live:
    """Whether the server answers and nothing in it hangs (Open Inference Protocol)."""
    if problem := request.app.state.explain_dead():
        raise OverloadedError(problem, retry_after_s=5)
    return Live()


@endpoint(
    "GET", "/v2/health/ready", answer=Ready, success="A model is loaded", further=describe_overload("InferenceError")
)
async def tell_ready(request: Request) -> Ready:
    """Whether predictions are answered (Open Inference Protocol)."""
    if problem := request.app.state.explain_unready():
        raise OverloadedError(problem, retry_after_s=5)
    return Ready()


@endpoint("GET", "/v2/models/{model}", answer=ModelMetadata, success="The model", parameters=[_MODEL], refusals=["404"])
async def describe_model(request: Request) -> ModelMetadata:
    """Inputs and outputs of a model (Open Inference Protocol)."""
    classifier = _select(request)
    classes = len(classifier.manifest.classes)
    return ModelMetadata(
        name=classifier.manifest.name,
        versions=(classifier.version,),
        inputs=(TensorMetadata(name=_INPUT, datatype=_PIXELS, shape=(-1, -1, -1, 3)),),
        outputs=(
            TensorMetadata(name=_PROBABILITIES, datatype="FP32", shape=(-1, classes)),
            TensorMetadata(name=_LABELS, datatype=_FILES, shape=(-1,)),
        ),
    )


@endpoint(
    "GET",
    "/v2/models/{model}/ready",
    answer=ModelReady,
    success="The model is loaded",
    parameters=[_MODEL],
    refusals=["404"],
)
async def tell_model_ready(request: Request) -> ModelReady:
    """Whether a model is loaded (Open Inference Protocol)."""
    return ModelReady(name=_select(request).manifest.name)


@_inference("/v2/models/{model}/infer", parameters=[_MODEL])
async def infer(request: Request) -> InferenceAnswer:
    """Classify up to 64 images (Open Inference Protocol)."""
    api: PredictionApi = request.app.state.api
    body: RequestBody = request.state.body
    with api.admission.hold() as holding:
        classifier = _select(request)
        is_drawn = "version" not in request.path_params
        if is_drawn:
            classifier = api.models.draw(classifier)
        if body.media_type not in ("application/json", ""):
            raise WrongTypeError(f"content type {body.media_type!r}; send application/json, without binary tensors")
        content = await body.read_text(holding, MAX_JSON_BYTES)
        asked, images = await asyncio.to_thread(read_inputs, content)
        probabilities_NK, answer = await api.answer(classifier, images, 1, is_drawn=is_drawn)
    return _answer(asked, classifier, probabilities_NK, [one.label for one in answer.predictions])


@endpoint(
    "GET",
    "/v2/models/{model}/versions/{version}",
    answer=ModelMetadata,
    success="The model",
    parameters=[_MODEL, _VERSION],
    refusals=["404"],
)
async def describe_model_version(request: Request) -> ModelMetadata:
    """Inputs and outputs of a model, if this version is served (Open Inference Protocol)."""
    return await describe_model(request)


@endpoint(
    "GET",
    "/v2/models/{model}/versions/{version}/ready",
    answer=ModelReady,
    success="The version is loaded",
    parameters=[_MODEL, _VERSION],
    refusals=["404"],
)
async def tell_model_version_ready(request: Request) -> ModelReady:
    """Whether a version of a model is loaded (Open Inference Protocol)."""
    return await tell_model_ready(request)


@_inference("/v2/models/{model}/versions/{version}/infer", parameters=[_MODEL, _VERSION])
async def infer_with_version(request: Request) -> InferenceAnswer:
    """Classify up to 64 images, if this version is served (Open Inference Protocol)."""
    return await infer(request)
