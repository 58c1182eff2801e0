"""The client of the prediction service: images in, predictions out, one clear line for whatever fails."""

import csv
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Any, Protocol, TextIO

import httpx
from pydantic import ValidationError

from serving.client.sources import SourceImage, SourceProblem, read_sources
from serving.errors import ClientError
from serving.limits import MAX_BODY_BYTES, MAX_IMAGES
from serving.listing import Column
from serving.models.predictions import FIELD_NAME, ErrorAnswer, FeedbackAnswer, ModelIdentity, PredictAnswer, Prediction
from serving.printable import show, show_cell

DEFAULT_SERVER = "http://127.0.0.1:3000"
KEY_VARIABLE = "DARKROOM_API_KEY"
TIMEOUT_S = 120.0
_MAX_TRIES = 4
_MAX_WAIT_S = 10.0
# Boundaries and part headers come on top of the images.
_MAX_GROUP_BYTES = MAX_BODY_BYTES - MAX_IMAGES * 1024
_ABOUT_ONE_IMAGE = (400, 413)
_TRY_AGAIN = (429, 503)


class _Sleep(Protocol):
    def __call__(self, seconds: float, /) -> None: ...


@dataclass(frozen=True)
class PredictResult:
    """What came of all sources.

    Attributes:
        model: Which model answered last; None when no image was answered.
        provider: onnxruntime's execution provider of the server; None when no image was answered.
        predictions: One per answered image, in the order of the sources; `filename` is the source.
        models: Which model made each of them: it may be replaced meanwhile.
        problems: One per source without a prediction.
    """

    model: ModelIdentity | None
    provider: str | None
    predictions: tuple[Prediction, ...]
    models: tuple[ModelIdentity, ...]
    problems: tuple[SourceProblem, ...]


def predict(
    sources: Sequence[str],
    server: str = DEFAULT_SERVER,
    model: str | None = None,
    top_k: int | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    sleep: _Sleep = time.sleep,
    on_progress: Callable[[int], None] | None = None,
) -> PredictResult:
    """Classify images on a server.

    Args:
        sources: Files, folders and zip archives of images, and http(s) addresses, which are fetched here.
        server: Address of the service.
        model: Registered name; the server's choice when None.
        top_k: Classes per image; the server's choice when None.
        timeout_s: For one request, seconds.
        sleep: Waits before another try when the server is overloaded, seconds.
        on_progress: Told how many images are done, after each request.

    Returns:
        A prediction or a problem for every image.

    Raises:
        ClientError: No server answers there, it is not Darkroom, or it refuses the model or `top_k`.
    """
    parameters = {key: str(value) for key, value in (("model", model), ("top_k", top_k)) if value is not None}
    answers: list[PredictAnswer] = []
    problems: list[SourceProblem] = []
    with _connect(server, timeout_s, parameters, sleep) as connection:
        for group in _group(sources, problems):
            for answer in connection.classify(group):
                if isinstance(answer, SourceProblem):
                    problems.append(answer)
                else:
                    answers.append(answer)
            if on_progress is not None:
                on_progress(sum(len(answer.predictions) for answer in answers) + len(problems))
    return PredictResult(
        model=answers[-1].model if answers else None,
        provider=answers[-1].provider if answers else None,
        predictions=tuple(prediction for answer in answers for prediction in answer.predictions),
        models=tuple(answer.model for answer in answers for _ in answer.predictions),
        problems=tuple(problems),
    )


def send_feedback(
    source: str,
    label: str,
    server: str = DEFAULT_SERVER,
    model: str | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    sleep: _Sleep = time.sleep,
) -> FeedbackAnswer:
    """Tell a server the true label of one image.

    Args:
        source: A file or an http(s) address, which is fetched here.
        label: One of the model's classes.
        server: Address of the service.
        model: Registered name; the server's choice when None.
        timeout_s: For one request, seconds.
        sleep: Waits before another try when the server is overloaded, seconds.

    Raises:
        ClientError: The image cannot be read, no server answers there, or it refuses.
    """
    (image, *others) = [*read_sources([source])]
    if isinstance(image, SourceProblem):
        raise ClientError(f"{source}: {image.message}")
    if others:
        raise ClientError(f"{source} holds {1 + len(others)} images; give feedback on one at a time")
    texts = {"label": label} | ({} if model is None else {"model": model})
    files = [(FIELD_NAME, (PurePath(image.source).name, image.data, "application/octet-stream"))]
    with _connect(server, timeout_s, {}, sleep) as connection:
        return connection.send_feedback(files, texts)


PREDICTION_COLUMNS = (
    Column("image", "source"),
    Column("label", "answer"),
    Column("probability", "probability", lambda value: "" if value is None else f"{value:.1%}"),
    Column("also", "top", lambda top: ", ".join(f"{label} {value:.1%}" for label, value in [*(top or {}).items()][1:])),
    Column("error", "error", is_prose=True),
)


def describe_model(result: PredictResult) -> str:
    """Return model, version, precision and provider in one line; empty when no image was answered."""
    model = result.model
    return show(f"{model.name} version {model.version}, {model.precision}, {result.provider}") if model else ""


def list_records(result: PredictResult) -> list[dict[str, Any]]:
    """Return a record for each answered image, then one with `error` for each problem: what `--format json` prints."""
    answered: list[dict[str, Any]] = [
        {
            "source": prediction.filename,
            "label": prediction.label,
            "probability": prediction.probability,
            "is_confident": prediction.is_confident,
            "model": model.name,
            "version": model.version,
            "sha256": model.sha256,
            "precision": model.precision,
            "top": {one.label: one.probability for one in prediction.top},
        }
        for prediction, model in zip(result.predictions, result.models, strict=True)
    ]
    return answered + [{"source": problem.source, "error": problem.message} for problem in result.problems]


def flatten_records(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return records for CSV: `top` becomes `label_2`, `probability_2` and so on; all have `error`."""
    flat = []
    for record in records:
        others = [*record.get("top", {}).items()][1:]
        one = {key: value for key, value in record.items() if key != "top"} | {"error": record.get("error")}
        for number, (label, probability) in enumerate(others, start=2):
            one |= {f"label_{number}": label, f"probability_{number}": probability}
        flat.append(one)
    return flat


def name_answers(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return records for the table, with the answer in words where the model is not confident."""
    return [
        record | {"answer": record["label"] if record["is_confident"] else f"don't know ({record['label']}?)"}
        if "label" in record
        else record
        for record in records
    ]


def write_submission(result: PredictResult, stream: TextIO) -> None:
    """Write `id,label` for images named by number, such as 17.png, by ascending number: a file for Kaggle.

    Raises:
        ClientError: An image has no prediction or no number, or two have the same one; nothing is written.
    """
    if result.problems:
        count = len(result.problems)
        images = "1 image has" if count == 1 else f"{count} images have"
        raise ClientError(f"{images} no label: a submission needs all of them")
    labels: dict[int, str] = {}
    for prediction in result.predictions:
        stem = PurePath(prediction.filename or "").stem
        if not (stem.isascii() and stem.isdecimal()):
            raise ClientError(f"{prediction.filename}: a submission needs images named by number, such as 17.png")
        if int(stem) in labels:
            raise ClientError(f"{prediction.filename}: two images have the number {stem}; give one folder or archive")
        labels[int(stem)] = prediction.label
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("id", "label"))
    writer.writerows((number, show_cell(label)) for number, label in sorted(labels.items()))


@contextmanager
def _connect(server: str, timeout_s: float, parameters: dict[str, str], sleep: _Sleep) -> Iterator["_Connection"]:
    """Open a client of a server; DARKROOM_API_KEY is its key where it wants one.

    Raises:
        ClientError: That is not an address.
    """
    if not server.lower().startswith(("http://", "https://")):
        raise ClientError(f"server {server!r} is not an address; give one such as --server {DEFAULT_SERVER}")
    try:
        host = httpx.URL(server).host
    except httpx.InvalidURL as error:
        raise ClientError(
            f"server {server!r} is not an address ({error}); give one such as {DEFAULT_SERVER}"
        ) from error
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and (key.isprintable() or not key)):
        raise ClientError(f"{KEY_VARIABLE} has characters that no key has; set it to one line of the service's file")
    # A proxy of the environment cannot reach this machine's own loopback.
    is_local = host in ("127.0.0.1", "localhost", "::1")
    with httpx.Client(
        base_url=server,
        timeout=timeout_s,
        params=parameters,
        headers={"X-API-Key": key} if key else {},
        trust_env=not is_local,
    ) as client:
        yield _Connection(client, server, sleep)


@dataclass(frozen=True)
class _Connection:
    client: httpx.Client
    server: str
    sleep: _Sleep

    def classify(self, group: list[SourceImage]) -> Iterator[PredictAnswer | SourceProblem]:
        """Send a group as one request; if one image spoils it, send each alone to learn which."""
        response = self._insist(partial(self._send, group))
        if response.status_code in _ABOUT_ONE_IMAGE and len(group) > 1:
            for image in group:
                yield from self.classify([image])
            return
        if response.status_code in _ABOUT_ONE_IMAGE:
            yield SourceProblem(group[0].source, self._read_error(response))
            return
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise ClientError(f"{self.server} refused: {self._read_error(response)}; set {KEY_VARIABLE} to a key")
        if response.status_code != httpx.codes.OK:
            raise ClientError(f"{self.server} refused: {self._read_error(response)}")
        yield self._read_answer(response, group)

    def send_feedback(self, files: list[tuple[str, tuple[str, bytes, str]]], texts: dict[str, str]) -> FeedbackAnswer:
        response = self._insist(partial(self.client.post, "/v1/feedback", files=files, data=texts))
        if response.status_code != httpx.codes.OK:
            raise ClientError(f"{self.server} refused: {self._read_error(response)}")
        try:
            return FeedbackAnswer.model_validate_json(response.content)
        except ValidationError as error:
            raise ClientError(f"what answers at {self.server} is not Darkroom; check --server URL") from error

    def _insist(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        for tries_left in reversed(range(_MAX_TRIES)):
            try:
                response = send()
            except httpx.ConnectError as error:
                raise ClientError(
                    f"no server at {self.server}; start one with `darkroom serve`, or give --server URL"
                ) from error
            except httpx.TimeoutException as error:
                raise ClientError(f"{self.server} did not answer in time; send fewer images at once") from error
            except httpx.HTTPError as error:
                raise ClientError(f"{self.server} closed the connection ({error}); is it Darkroom?") from error
            if response.status_code not in _TRY_AGAIN or not tries_left:
                break
            self.sleep(_read_wait(response))
        return response

    def _send(self, group: list[SourceImage]) -> httpx.Response:
        if len(group) == 1:
            headers = {"Content-Type": "application/octet-stream"}
            return self.client.post("/v1/predict", content=group[0].data, headers=headers)
        files = [(FIELD_NAME, (PurePath(image.source).name, image.data, "application/octet-stream")) for image in group]
        return self.client.post("/v1/predict", files=files)

    def _read_answer(self, response: httpx.Response, group: list[SourceImage]) -> PredictAnswer:
        try:
            answer = PredictAnswer.model_validate_json(response.content)
        except ValidationError as error:
            raise ClientError(f"what answers at {self.server} is not Darkroom; check --server URL") from error
        if len(answer.predictions) != len(group):
            raise ClientError(f"{self.server} answered {len(answer.predictions)} predictions for {len(group)} images")
        named = tuple(
            prediction.model_copy(update={"filename": image.source})
            for prediction, image in zip(answer.predictions, group, strict=True)
        )
        return answer.model_copy(update={"predictions": named})

    def _read_error(self, response: httpx.Response) -> str:
        try:
            return ErrorAnswer.model_validate_json(response.content).error.message
        except ValidationError as error:
            raise ClientError(
                f"what answers at {self.server} is not Darkroom (it answered {response.status_code}); "
                "check --server URL"
            ) from error


def _group(sources: Sequence[str], problems: list[SourceProblem]) -> Iterator[list[SourceImage]]:
    """Yield images in groups that fit one request; what could not be read goes to `problems`."""
    group: list[SourceImage] = []
    group_bytes = 0
    for item in read_sources(sources):
        if isinstance(item, SourceProblem):
            problems.append(item)
            continue
        if group and (len(group) == MAX_IMAGES or group_bytes + len(item.data) > _MAX_GROUP_BYTES):
            yield group
            group, group_bytes = [], 0
        group.append(item)
        group_bytes += len(item.data)
    if group:
        yield group


def _read_wait(response: httpx.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return min(float(text), _MAX_WAIT_S) if text.isdecimal() else 1.0
