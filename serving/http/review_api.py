"""Review over HTTP: kept images, to be given their true labels: those first of which a model was least sure."""

import base64
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from serving.bundle.manifest import Manifest
from serving.decoding.encoded import EncodedImage
from serving.errors import NoSuchImageError, NotAnImageError, ReviewOffError, TooLargeError
from serving.http.endpoint import REFUSALS, describe_answer, describe_overload, endpoint
from serving.http.feedback_api import FeedbackApi
from serving.http.prediction_api import PredictionApi
from serving.http.request_body import RequestBody
from serving.limits import MAX_IMAGE_BYTES
from serving.models.predictions import LabelProbability, rank_classes
from serving.observation.review import LoggedAnswer, ReviewQueue

# Limits of one answer.
MAX_REVIEW_IMAGES = 8
MAX_REVIEW_BYTES = MAX_IMAGE_BYTES
_TOP_K = 10


class ReviewPosition(BaseModel):
    """A place in the queue.

    Attributes:
        probability: Probability of the answer there.
        picture_sha256: Image there.
        is_by_hash: True if the queue is in the order of the images' hashes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    probability: float = Field(ge=0, le=1)
    picture_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    is_by_hash: bool = False


class ReviewRequest(BaseModel):
    """The JSON body.

    Attributes:
        model: Registered name; as `POST /v1/predict` chooses when None.
        after: `next` of the answer before; None for the images of which the model was least sure.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    after: ReviewPosition | None = None


class ReviewEntry(BaseModel):
    """An image without a true label, and what the model answered.

    Attributes:
        picture_sha256: SHA-256 of the file, lower-case hexadecimal: `POST /v1/feedback` takes it.
        time: Time of the answer, ISO 8601 in UTC.
        version: Version of the model that answered.
        label: Answer of that version.
        probability: Probability of `label`, in [0, 1].
        top: Most probable classes as the model that is served now finds them, most probable first.
        image: The file as it was sent, in base64.
    """

    model_config = ConfigDict(frozen=True)

    picture_sha256: str
    time: str
    version: str
    label: str
    probability: float
    top: tuple[LabelProbability, ...]
    image: str


class ReviewAnswer(BaseModel):
    """Answer to `POST /v1/review`.

    Attributes:
        model: Registered name.
        entries: Images by ascending probability, by their hash while a canary answers; at most 8, with 10 MB of files.
        left: Number of images behind them that are still kept.
        next: Place to go on from; None where nothing is left.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    entries: tuple[ReviewEntry, ...]
    left: int
    next: ReviewPosition | None


class ReviewApi:
    """The review queue of the models that answer."""

    def __init__(self, predictions: PredictionApi, feedback: FeedbackApi, requests_dir: Path) -> None:
        """Read nothing yet.

        Args:
            predictions: Classifies the images.
            feedback: Knows which images have a label, and reads the kept ones.
            requests_dir: Folder of the request log.
        """
        self._predictions = predictions
        self._feedback = feedback
        self._queue = ReviewQueue(requests_dir)

    async def answer(self, request: Request) -> ReviewAnswer:
        """Answer the request.

        Raises:
            ServingError: It is refused.
            starlette.requests.ClientDisconnect: The client went away.
        """
        body: RequestBody = request.state.body
        with self._predictions.admission.hold() as holding:
            asked = await body.read_json(ReviewRequest, holding)
            classifier = self._predictions.models.select(asked.model)
            manifest = classifier.manifest
            # By probability the version that is less sure of itself would be corrected more often.
            is_by_hash = self._predictions.models.get_canary(manifest.name) is not None
            found, left = await self._feedback.on_disk(self._read, manifest, asked.after, is_by_hash)
            # The files, their text, and the answer made of it.
            holding.take(4 * sum(len(data) for _, data in found))
            entries = []
            for logged, data in found:
                image = EncodedImage(data, None)
                try:
                    (probabilities_K,) = await self._predictions.classify(classifier, [image])
                except (NotAnImageError, TooLargeError):
                    continue  # of a format that is not decoded any more
                top = rank_classes(probabilities_K, manifest, min(_TOP_K, len(manifest.classes)), None).top
                known = logged.model_dump(include={"picture_sha256", "time", "version", "label", "probability"})
                entries.append(ReviewEntry(**known, top=top, image=base64.b64encode(data).decode()))
        last = found[-1][0] if found and left else None
        position = last and ReviewPosition(
            probability=last.probability, picture_sha256=last.picture_sha256, is_by_hash=is_by_hash
        )
        return ReviewAnswer(model=manifest.name, entries=tuple(entries), left=left, next=position)

    def _read(
        self, manifest: Manifest, after: ReviewPosition | None, is_by_hash: bool
    ) -> tuple[list[tuple[LoggedAnswer, bytes]], int]:
        """Return the next answers with their images, and how many behind them are still kept."""
        labelled = self._feedback.store.list_labels(manifest.name)
        queue = self._queue.list_unsure(manifest.name)
        if is_by_hash:
            queue = sorted(queue, key=lambda one: one.picture_sha256)
        if after is not None and after.is_by_hash != is_by_hash:
            after = None  # the order has changed: from the beginning
        waiting = [
            one
            for one in queue
            if one.label in manifest.classes
            and one.picture_sha256 not in labelled
            and (after is None or _is_behind(one, after))
        ]
        found: list[tuple[LoggedAnswer, bytes]] = []
        size_bytes = 0
        for number, one in enumerate(waiting):
            if len(found) == MAX_REVIEW_IMAGES:
                return found, self._count_kept(waiting[number:])
            try:
                data = self._feedback.read_kept(one.picture_sha256)
            except NoSuchImageError:
                continue  # removed meanwhile as the oldest
            size_bytes += len(data)
            if found and size_bytes > MAX_REVIEW_BYTES:
                return found, self._count_kept(waiting[number:])
            found.append((one, data))
        return found, 0

    def _count_kept(self, waiting: Sequence[LoggedAnswer]) -> int:
        return sum(self._feedback.is_kept(one.picture_sha256) for one in waiting)


def _is_behind(one: LoggedAnswer, after: ReviewPosition) -> bool:
    if after.is_by_hash:
        return one.picture_sha256 > after.picture_sha256
    return one.position > (after.probability, after.picture_sha256)


@endpoint(
    "POST",
    "/v1/review",
    answer=ReviewAnswer,
    success="The images of which the model was least sure",
    refusals=REFUSALS,
    further={
        "404": describe_answer("No such model, or the service shows no review"),
        **describe_overload(),
        "507": describe_answer("The disk does not answer"),
    },
    body={"application/json": {"schema": {"$ref": "#/components/schemas/ReviewRequest"}}},
    reads=ReviewRequest,
)
async def list_unsure(request: Request) -> ReviewAnswer:
    """The logged images without a true label of which a model was least sure."""
    review: ReviewApi | None = request.app.state.review
    if review is None:
        raise ReviewOffError(
            "this service shows no review, and keeps images only with --keep-pictures; start it with "
            "`darkroom serve --log-requests 1 --keep-pictures --feedback --review`"
        )
    return await review.answer(request)
