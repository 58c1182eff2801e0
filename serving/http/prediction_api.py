"""Predictions over HTTP: limits, decoding, batches on the device, answers.

Shape suffixes: N = images in the request, H = height, W = width, C = colour channels, K = classes.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.requests import Request

from serving.bundle.manifest import Manifest
from serving.bundle.processors import count_cpus
from serving.decoding.cost import IMAGE_S, Cost, estimate_cost, estimate_decode_s
from serving.decoding.decoder import Decoder
from serving.decoding.encoded import EncodedImage
from serving.decoding.work_queue import WorkQueue
from serving.errors import BadParameterError, OverloadedError
from serving.http.admission import Admission
from serving.http.endpoint import REFUSALS, describe_overload, describe_parameter, endpoint
from serving.http.request_body import RequestBody
from serving.limits import (
    ANSWER_TIMEOUT_S,
    DEFAULT_TOP_K,
    MAX_IMAGE_BYTES,
    MAX_IMAGES,
    MAX_PARAMETERS,
    MAX_WAITING_IMAGES,
)
from serving.models.batching import Batcher
from serving.models.classifier import Classifier
from serving.models.model_set import ModelSet
from serving.models.occlusion import VARIANTS
from serving.models.predictions import ModelsAnswer, PredictAnswer, rank_classes
from serving.models.shadow import OnComparison, Shadow
from serving.observation.drift import DriftWatch

Vary = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]


class PredictionApi:
    """Predictions of one set of models, with the threads that do the work.

    Decoding runs on a few threads, classification in batches on one: onnxruntime spreads a batch over the cores itself.

    Attributes:
        models: The loaded models.
        admission: Bytes that are held.
        queues: Images of each kind from their decoding to their classification; a kind waits for itself only.
    """

    def __init__(
        self,
        models: ModelSet,
        admission: Admission | None = None,
        max_images: int = MAX_WAITING_IMAGES,
        on_batch: Callable[[int], None] | None = None,
        on_answer: Callable[[Manifest, PredictAnswer, Sequence[EncodedImage], bool], None] | None = None,
        shadow_share: float = 0.0,
        on_comparison: OnComparison | None = None,
        allows_uncommon: bool = False,
    ) -> None:
        """Start the threads.

        Args:
            models: The loaded models.
            admission: Limit of the bytes that are held at once; the usual one when None.
            max_images: Most images of one kind that wait at once.
            on_batch: Told how many images each batch has.
            on_answer: Told whose answer each is, the answer, its images, and whether any version might have answered,
                before it is sent; it must not wait.
            shadow_share: Share of the requests that challengers look at too.
            on_comparison: Told what `serving.models.shadow.Shadow` compared.
            allows_uncommon: True to decode images of uncommon formats.
        """
        self.models = models
        self._on_answer = on_answer
        self.admission = admission or Admission()
        self.queues = {cost: WorkQueue(max_images) for cost in Cost}
        self._decoder = Decoder(allows_uncommon)
        self._batcher = Batcher(on_batch=on_batch)
        self._shadow = Shadow(models, shadow_share, self.classify, on_comparison)

    def describe_threads(self) -> str:
        """Return how the work is spread over this machine, in words."""
        cpus = count_cpus()
        return (
            f"{cpus} CPUs: a batch of up to {MAX_IMAGES} images on {cpus} threads, decoding on "
            f"{self._decoder.threads}, photographs in as many processes, larger images in one"
        )

    @property
    def is_decoding(self) -> bool:
        """True if images can be decoded."""
        return self._decoder.is_working

    @property
    def is_alive(self) -> bool:
        """True unless the batch on the device hangs."""
        return not self._batcher.is_hung

    def close(self) -> None:
        """End the threads, also those of the models; work that has not started is dropped."""
        self.models.stop()
        self._decoder.close()
        self._batcher.close()

    def describe(self) -> ModelsAnswer:
        """Return the loaded models, what is known of their challengers, and what could not be loaded."""
        answer, champions = self.models.describe(), self.models.champions
        served = tuple(
            model.model_copy(update={"challenger": self._shadow.describe(champions[model.name])})
            for model in answer.models
            if model.name in champions
        )
        return answer.model_copy(update={"models": served})

    async def predict(self, request: Request) -> PredictAnswer:
        """Answer a request for predictions.

        Raises:
            ServingError: The request is refused.
            starlette.requests.ClientDisconnect: The client went away.
        """
        body: RequestBody = request.state.body
        with self.admission.hold() as holding:
            check_parameters(request, "model", "top_k")
            classifier = self.models.draw(self.models.select(request.query_params.get("model")))
            top_k = _read_top_k(request, len(classifier.manifest.classes))
            images = await body.read_images(holding)
            _, answer = await self.answer(classifier, images, top_k)
        return answer

    async def answer(
        self, classifier: Classifier, images: list[EncodedImage], top_k: int, *, is_drawn: bool = True
    ) -> tuple[npt.NDArray[np.float32], PredictAnswer]:
        """Classify the images of a request, show them to a challenger, and tell the answer.

        Args:
            classifier: Answers.
            images: The images.
            top_k: Classes to list.
            is_drawn: False if the request asks for this version.

        Returns:
            Class probabilities, float32 [N, K], and the answer that they make.

        Raises:
            ServingError: An image does not decode, or there is too much to do.
        """
        probabilities_NK = await self.classify(classifier, images)
        self._shadow.offer(classifier, images, probabilities_NK)
        answer = PredictAnswer(
            model=classifier.identity,
            provider=classifier.provider,
            predictions=tuple(
                rank_classes(probabilities_K, classifier.manifest, top_k, image.filename, image.sha256)
                for probabilities_K, image in zip(probabilities_NK, images, strict=True)
            ),
        )
        if self._on_answer is not None:
            self._on_answer(classifier.manifest, answer, images, is_drawn)
        return probabilities_NK, answer

    async def classify(
        self, classifier: Classifier, images: list[EncodedImage], vary: Vary | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the class probabilities of some images, float32 [N, K], when their turn has come.

        Args:
            classifier: Classifies.
            images: The images; one where they are varied.
            vary: Makes the images that are classified instead, as many as `serving.models.occlusion.VARIANTS`, whose
                places in the queue the image takes; None to classify the images themselves.

        Raises:
            ServingError: An image does not decode, or there is too much to do.
        """
        self._decoder.check_formats(images)
        cost = max(estimate_cost(one.structure, classifier.manifest.resize_size) for one in images)
        work_s = sum(estimate_decode_s(one.structure) for one in images)
        places = len(images)
        if vary is not None:
            work_s += (VARIANTS - places) * IMAGE_S
            places = VARIANTS
        try:
            with self.queues[cost].wait(places, work_s):
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    if cost is Cost.CHEAP and places == 1 and self._batcher.is_idle:
                        decode = partial(self._decoder.decode_cheap, classifier.manifest, images)
                        return await self._batcher.decode_and_classify(classifier, decode)
                    images_NHWC = await self._decoder.decode(classifier.manifest, images)
                    if vary is not None:
                        images_NHWC = await asyncio.to_thread(vary, images_NHWC[0])
                    return await self._batcher.classify(classifier, images_NHWC)
        except TimeoutError as error:
            raise OverloadedError(f"not answered within {ANSWER_TIMEOUT_S:g} seconds; try again", 5) from error


def check_parameters(request: Request, *names: str) -> None:
    """Refuse addresses of thousands of parameters, before they are parsed.

    Args:
        request: The request.
        names: Parameters of the endpoint.

    Raises:
        BadParameterError: There are too many.
    """
    parameters = request.scope["query_string"].count(b"&") + 1
    if parameters > MAX_PARAMETERS:
        known = f"ones are {' and '.join(names)}" if len(names) > 1 else f"one is {names[0]}"
        raise BadParameterError(f"{parameters:,} query parameters; the only {known}")


def _read_top_k(request: Request, classes: int) -> int:
    text = request.query_params.get("top_k")
    if text is None:
        return min(DEFAULT_TOP_K, classes)
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= classes):
        raise BadParameterError(f"top_k is {text[:40]!r}; it must be a whole number from 1 to {classes}")
    return int(text)


_FILE = {"type": "string", "format": "binary"}


def describe_image_body(max_images: int = MAX_IMAGES) -> dict[str, Any]:
    """Return the OpenAPI description of a body that is an image, or a form of images."""
    raw = {"schema": {**_FILE, "maxLength": MAX_IMAGE_BYTES}}
    files = {"type": "array", "items": _FILE, "minItems": 1, "maxItems": max_images} if max_images > 1 else _FILE
    form = {"type": "object", "required": ["image"], "properties": {"image": files}, "additionalProperties": False}
    return {"image/*": raw, "application/octet-stream": raw, "multipart/form-data": {"schema": form}}


@endpoint(
    "POST",
    "/v1/predict",
    answer=PredictAnswer,
    success="One prediction per image, in the order they were sent",
    parameters=[
        describe_parameter("model", "query", "Registered name; when left out: the only model, or cifar10"),
        describe_parameter(
            "top_k",
            "query",
            f"Classes to list; when left out {DEFAULT_TOP_K}, or all if there are fewer",
            {"type": "integer", "minimum": 1},
        ),
    ],
    refusals=REFUSALS,
    further=describe_overload(),
    body=describe_image_body(),
)
async def predict(request: Request) -> PredictAnswer:
    """Classify one image, or up to 64 in one batch."""
    api: PredictionApi = request.app.state.api
    return await api.predict(request)


@endpoint("GET", "/v1/models", answer=ModelsAnswer, success="Loaded models")
async def list_models(request: Request) -> ModelsAnswer:
    """The loaded models, and the releases that could not be loaded."""
    api: PredictionApi = request.app.state.api
    drift: DriftWatch | None = request.app.state.drift
    answer = api.describe()
    return answer if drift is None else drift.describe(answer)
