"""Feedback over HTTP: an image and its true label -> the review set on disk."""

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from serving.decoding.encoded import EncodedImage
from serving.errors import (
    BadParameterError,
    FeedbackOffError,
    NoSuchImageError,
    NotStoredError,
    WrongFormError,
    WrongTypeError,
)
from serving.heartbeat import Heartbeat
from serving.http.admission import Holding
from serving.http.endpoint import REFUSALS, describe_answer, describe_overload, endpoint
from serving.http.prediction_api import PredictionApi
from serving.http.request_body import RequestBody
from serving.limits import ANSWER_TIMEOUT_S, MAX_IMAGE_BYTES
from serving.models.predictions import FIELD_NAME, FeedbackAnswer
from serving.observation.feedback import LOCK_TIMEOUT_S, FeedbackStore, find_label_folder, name_some
from serving.regular_files import read_regular

# A disk that takes longer hangs; storing waits for another service's lock first.
_HUNG_S = LOCK_TIMEOUT_S + 5.0

_Result = TypeVar("_Result")


class FeedbackRequest(BaseModel):
    """The JSON body: an image that the request log keeps.

    Attributes:
        picture_sha256: As the prediction named it.
        label: One of the model's classes.
        model: Registered name; as `POST /v1/predict` chooses when None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    picture_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    label: str
    model: str | None = None


class FeedbackApi:
    """Feedback on the models that answer predictions; a slow disk holds up other feedback, never predictions.

    Attributes:
        store: Takes the images.
    """

    def __init__(
        self,
        predictions: PredictionApi,
        store: FeedbackStore,
        kept_dir: Path,
        on_feedback: Callable[[str, bool], None] | None = None,
    ) -> None:
        """Start the thread that writes.

        Args:
            predictions: Classifies the images.
            store: Takes them.
            kept_dir: Folder in which the request log keeps images.
            on_feedback: Told the model's name of each that is stored, and whether its label is what the model says.
        """
        self._predictions = predictions
        self.store = store
        self._kept_dir = kept_dir
        self._on_feedback = on_feedback
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="feedback")
        self._heartbeat = Heartbeat(_HUNG_S)

    def close(self) -> None:
        """End the thread; feedback that has not started is dropped."""
        self._disk.shutdown(wait=False, cancel_futures=True)

    async def take(self, request: Request) -> FeedbackAnswer:
        """Answer the request.

        Raises:
            ServingError: It is refused, or cannot be stored.
            starlette.requests.ClientDisconnect: The client went away.
        """
        with self._predictions.admission.hold() as holding:
            image, label, model = await self._read(request.state.body, holding)
            classifier = self._predictions.models.select(model)
            name, classes = classifier.manifest.name, classifier.manifest.classes
            if label not in classes:
                raise BadParameterError(f"label {label[:80]!r} is none of {name}'s classes: {name_some(classes)}")
            find_label_folder(self.store.folder, label)
            (probabilities_K,) = await self._predictions.classify(classifier, [image])
            count = await self.on_disk(self.store.save, name, label, classes, image.sha256, image.data)
        if self._on_feedback is not None:
            self._on_feedback(name, classes[int(probabilities_K.argmax())] == label)
        return FeedbackAnswer(picture_sha256=image.sha256, label=label, model=name, count=count)

    async def _read(self, body: RequestBody, holding: Holding) -> tuple[EncodedImage, str, str | None]:
        """Return the image, its label and the model's name."""
        if body.media_type == "multipart/form-data":
            image, texts = await body.read_form(("label", "model"), holding)
            if "label" not in texts:
                raise WrongFormError(f"the form has no text field `label` beside the file `{FIELD_NAME}`")
            return image, texts["label"], texts.get("model")
        if body.media_type != "application/json":
            raise WrongTypeError(
                f"content type {body.media_type[:80] or 'missing'!r}; send multipart/form-data with the file "
                f"`{FIELD_NAME}` and the text `label`, or application/json with picture_sha256 and label"
            )
        given = await body.read_json(FeedbackRequest, holding)
        data = await self.on_disk(self.read_kept, given.picture_sha256)
        holding.take(len(data))
        return EncodedImage(data, None), given.label, given.model

    def read_kept(self, sha256: str) -> bytes:
        """Return an image that the request log keeps; called on the thread for the disk.

        Raises:
            NoSuchImageError: It is not there, or is not what its name says.
        """
        try:
            data = read_regular(self._kept_dir / sha256, MAX_IMAGE_BYTES)
        except OSError:
            data = None
        if data is None or hashlib.sha256(data).hexdigest() != sha256:
            raise NoSuchImageError(
                f"image {sha256} is not kept here; send the image itself as multipart/form-data, or start the "
                "service with --log-requests 1 --keep-pictures before it predicts"
            )
        return data

    def is_kept(self, sha256: str) -> bool:
        """Return whether the request log keeps an image of that name, whose content is not read."""
        return (self._kept_dir / sha256).is_file()

    async def on_disk(self, call: Callable[..., _Result], *arguments: object) -> _Result:
        """Call on the thread for the disk, for a limited time: a request holds memory while it waits.

        Raises:
            NotStoredError: The disk did not answer, or hangs: what waits for its thread stays in memory.
        """
        if self._heartbeat.is_hung:
            raise NotStoredError(f"the disk has not answered for {_HUNG_S:g} seconds; try again")

        def work() -> _Result:
            with self._heartbeat.work():
                return call(*arguments)

        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await asyncio.get_running_loop().run_in_executor(self._disk, work)
        except TimeoutError as error:
            raise NotStoredError(f"the disk did not answer within {ANSWER_TIMEOUT_S:g} seconds; try again") from error


_TEXT = {"type": "string"}
_FORM = {
    "type": "object",
    "required": ["image", "label"],
    "properties": {"image": {"type": "string", "format": "binary"}, "label": _TEXT, "model": _TEXT},
    "additionalProperties": False,
}


@endpoint(
    "POST",
    "/v1/feedback",
    answer=FeedbackAnswer,
    success="The label is stored",
    refusals=REFUSALS,
    further={
        "404": describe_answer("No such model, no such image, or the service takes no feedback"),
        **describe_overload(),
        "507": describe_answer("The label cannot be stored: the limit is reached, or the disk full"),
    },
    body={
        "multipart/form-data": {"schema": _FORM},
        "application/json": {"schema": {"$ref": "#/components/schemas/FeedbackRequest"}},
    },
    reads=FeedbackRequest,
)
async def give_feedback(request: Request) -> FeedbackAnswer:
    """Store the true label of an image, or of one that the request log keeps."""
    feedback: FeedbackApi | None = request.app.state.feedback
    if feedback is None:
        raise FeedbackOffError("this service takes no feedback; start it with `darkroom serve --feedback`")
    return await feedback.take(request)
