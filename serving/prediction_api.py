"""What answers predictions: limits, decoding on threads, batches on the device, the answer.

Shape suffixes: N = pictures in the request, H = height, W = width, C = colour channels, K = classes.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
from starlette.requests import Request

from serving.admission import Admission
from serving.batching import Batcher
from serving.classifier import Classifier
from serving.errors import BadParameterError, OverloadedError, ServingError, TooLargeError
from serving.limits import ANSWER_TIMEOUT_S, DEFAULT_TOP_K, MAX_PICTURES, MAX_REQUEST_PIXELS
from serving.manifest import Manifest
from serving.model_set import ModelSet
from serving.predictions import ModelsAnswer, PredictAnswer, rank_classes
from serving.request_body import EncodedPicture, RequestBody
from serving.session import count_cpus
from serving.shadow import OnComparison, Shadow

_MAX_DECODERS = 4


class PredictionApi:
    """Predictions of one set of models, with the threads that do the work.

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
        on_answer: Callable[[Manifest, PredictAnswer, Sequence[EncodedPicture]], None] | None = None,
        shadow_share: float = 0.0,
        on_comparison: OnComparison | None = None,
    ) -> None:
        """Start the threads.

        Args:
            models: The loaded models.
            admission: How much is worked on at once; the usual limits when None.
            on_batch: Told how many pictures each batch has.
            on_answer: Told whose answer each is, the answer and its pictures, before it is sent; it must not wait.
            shadow_share: Share of the requests that challengers look at too.
            on_comparison: Told what `serving.shadow.Shadow` compared.
        """
        self.models = models
        self._on_answer = on_answer
        self.admission = admission or Admission()
        self._decoder_count = min(_MAX_DECODERS, count_cpus())
        self._decoders = ThreadPoolExecutor(self._decoder_count, thread_name_prefix="decode")
        self._batcher = Batcher(on_batch=on_batch)
        self._shadow = Shadow(models, shadow_share, self.classify, on_comparison)

    def describe_threads(self) -> str:
        """Return how the work is spread over this machine, in words."""
        cpus = count_cpus()
        return (
            f"{cpus} CPUs: a batch of up to {MAX_PICTURES} pictures on {cpus} threads, decoding on "
            f"{self._decoder_count}; one process"
        )

    def close(self) -> None:
        """End the threads, also those of the models; work that has not started is dropped."""
        self.models.stop()
        self._decoders.shutdown(wait=True, cancel_futures=True)
        self._batcher.close()

    def describe(self) -> ModelsAnswer:
        """Return the loaded models, what is known of their challengers, and what could not be loaded."""
        answer = self.models.describe()
        served = tuple(
            model.model_copy(update={"challenger": self._shadow.describe(self.models.select(model.name))})
            for model in answer.models
        )
        return answer.model_copy(update={"models": served})

    async def predict(self, request: Request) -> PredictAnswer:
        """Answer `POST /v1/predict`.

        Raises:
            ServingError: The request is refused.
            starlette.requests.ClientDisconnect: The client went away.
        """
        body = RequestBody(request)
        with self.admission.hold() as holding:
            try:
                classifier = self.models.select(request.query_params.get("model"))
                top_k = _read_top_k(request, len(classifier.manifest.classes))
                pictures = await body.read_pictures(holding.take)
            except ServingError:
                request.state.is_body_read = await body.discard()
                raise
            probabilities_NK = await self.classify(classifier, pictures)
        self._shadow.offer(classifier, pictures, probabilities_NK)
        answer = PredictAnswer(
            model=classifier.identity,
            provider=classifier.provider,
            predictions=tuple(
                rank_classes(probabilities_K, classifier.manifest, top_k, picture.filename, picture.sha256)
                for probabilities_K, picture in zip(probabilities_NK, pictures, strict=True)
            ),
        )
        if self._on_answer is not None:
            self._on_answer(classifier.manifest, answer, pictures)
        return answer

    async def classify(self, classifier: Classifier, pictures: list[EncodedPicture]) -> npt.NDArray[np.float32]:
        """Return the class probabilities of some pictures, float32 [N, K], when their turn has come.

        Raises:
            ServingError: A picture does not decode, or there is too much to do.
        """
        try:
            with self.admission.wait(len(pictures), self._batcher.pictures_per_s):
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    images_NHWC = await self._decode(classifier, pictures)
                    return await self._batcher.classify(classifier, images_NHWC)
        except TimeoutError as error:
            raise OverloadedError(f"not answered within {ANSWER_TIMEOUT_S:g} seconds; try again", 5) from error

    async def _decode(self, classifier: Classifier, pictures: list[EncodedPicture]) -> npt.NDArray[np.uint8]:
        """Decode in as many parts as there are threads: a hop to a thread costs as much as a small picture."""
        run = partial(asyncio.get_running_loop().run_in_executor, self._decoders)
        if len(pictures) == 1:
            return (await run(_decode_part, classifier, pictures, 0, 1, None))[0][None]
        budget = _PixelBudget(len(pictures))
        size = -(-len(pictures) // self._decoder_count)
        starts = range(0, len(pictures), size)
        parts = await asyncio.gather(
            *(
                run(_decode_part, classifier, pictures[start : start + size], start, len(pictures), budget.take)
                for start in starts
            ),
            return_exceptions=True,
        )
        images = []
        for part in parts:
            if isinstance(part, BaseException):  # of several bad pictures the first is named
                raise part
            images += part
        return np.stack(images)


class _PixelBudget:
    """Pixels that one request may still have decoded; a small file can hold many."""

    def __init__(self, pictures: int) -> None:
        self._pictures = pictures
        self._taken = 0
        self._lock = threading.Lock()

    def take(self, pixels: int) -> None:
        with self._lock:
            self._taken += pixels
            if self._taken > MAX_REQUEST_PIXELS:
                raise _OverBudgetError(
                    f"{self._pictures} pictures of more than {MAX_REQUEST_PIXELS:,} pixels together; send fewer at once"
                )


class _OverBudgetError(TooLargeError):
    """All pictures together are too large, not the one at which it showed."""


def _decode_part(
    classifier: Classifier,
    pictures: list[EncodedPicture],
    start: int,
    count: int,
    take_pixels: Callable[[int], None] | None,
) -> list[npt.NDArray[np.uint8]]:
    """Decode some of a request's pictures, those from position `start` of `count`."""
    images = []
    for position, picture in enumerate(pictures, start=start + 1):
        try:
            images.append(classifier.decode(picture.data, take_pixels))
            _ = picture.sha256  # computed here, on a thread, and kept
        except ServingError as error:
            if picture.filename is None or isinstance(error, _OverBudgetError):
                raise
            raise type(error)(f"picture {position} of {count}, {picture.filename!r}: {error}") from error
    return images


def _read_top_k(request: Request, classes: int) -> int:
    text = request.query_params.get("top_k")
    if text is None:
        return min(DEFAULT_TOP_K, classes)
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= classes):
        raise BadParameterError(f"top_k is {text[:40]!r}; it must be a whole number from 1 to {classes}")
    return int(text)
