"""What answers predictions: limits, decoding on threads, batches on the device, the answer.

Shape suffixes: N = pictures in the request, H = height, W = width, C = colour channels, K = classes.
"""

import asyncio
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
from serving.limits import ANSWER_TIMEOUT_S, DEFAULT_TOP_K, MAX_REQUEST_PIXELS
from serving.manifest import Manifest
from serving.model_set import ModelSet
from serving.predictions import PredictAnswer, rank_classes
from serving.preprocess import measure_pixels
from serving.request_body import EncodedPicture, RequestBody
from serving.session import count_cpus

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
    ) -> None:
        """Start the threads.

        Args:
            models: The loaded models.
            admission: How much is worked on at once; the usual limits when None.
            on_batch: Told how many pictures each batch has.
            on_answer: Told whose answer each is, the answer and its pictures, before it is sent; it must not wait.
        """
        self.models = models
        self._on_answer = on_answer
        self.admission = admission or Admission()
        self._decoder_count = min(_MAX_DECODERS, count_cpus())
        self._decoders = ThreadPoolExecutor(self._decoder_count, thread_name_prefix="decode")
        self._batcher = Batcher(on_batch=on_batch)

    def close(self) -> None:
        """End the threads, also those of the models; work that has not started is dropped."""
        self.models.stop()
        self._decoders.shutdown(wait=True, cancel_futures=True)
        self._batcher.close()

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
            return (await run(_decode_part, classifier, pictures, 0, 1))[0][None]
        await run(_check_pixels, pictures)
        size = -(-len(pictures) // self._decoder_count)
        starts = range(0, len(pictures), size)
        parts = await asyncio.gather(
            *(run(_decode_part, classifier, pictures[start : start + size], start, len(pictures)) for start in starts),
            return_exceptions=True,
        )
        images = []
        for part in parts:
            if isinstance(part, BaseException):  # of several bad pictures the first is named
                raise part
            images += part
        return np.stack(images)


def _decode_part(
    classifier: Classifier, pictures: list[EncodedPicture], start: int, count: int
) -> list[npt.NDArray[np.uint8]]:
    """Decode some of a request's pictures, those from position `start` of `count`."""
    images = []
    for position, picture in enumerate(pictures, start=start + 1):
        try:
            images.append(classifier.decode(picture.data))
            _ = picture.sha256  # computed here, on a thread, and kept
        except ServingError as error:
            if picture.filename is None:
                raise
            raise type(error)(f"picture {position} of {count}, {picture.filename!r}: {error}") from error
    return images


def _check_pixels(pictures: list[EncodedPicture]) -> None:
    pixels = sum(measure_pixels(picture.data) for picture in pictures)
    if pixels > MAX_REQUEST_PIXELS:
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
