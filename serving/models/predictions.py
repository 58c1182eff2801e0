"""Answers of the service: the service fills these models, OpenAPI publishes them, the client reads them.

Shape suffix: K = the classes of the model.
"""

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from serving.bundle.manifest import Manifest

# Form field of an image in multipart/form-data.
FIELD_NAME = "image"


class ModelIdentity(BaseModel):
    """Which model answered.

    Attributes:
        name: Registered name, e.g. `cifar10`.
        version: Version in the registry, e.g. `3`.
        sha256: SHA-256 of the file of the variant that answers, lower-case hexadecimal.
        precision: Precision of the variant that answers: `fp32`, `int8`.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    sha256: str
    precision: str


class LabelProbability(BaseModel):
    """One class and how probable the model finds it, in [0, 1]."""

    model_config = ConfigDict(frozen=True)

    label: str
    probability: float = Field(ge=0, le=1)


class Prediction(BaseModel):
    """What the model sees in one image.

    Attributes:
        filename: Name that the client gave the image; None for an image sent as the raw body.
        label: Most probable class.
        probability: Probability of `label`, in [0, 1].
        is_confident: True if the prediction is accepted: its probability reaches the threshold of its class. False
            below it and for a class without one: show "don't know" instead. True for a model without calibration.
        top: The `top_k` most probable classes, most probable first.
        picture_sha256: Of the file as it was sent, lower-case hexadecimal: `POST /v1/feedback` knows the image by it.
            None in the answers of earlier services.
    """

    model_config = ConfigDict(frozen=True)

    filename: str | None
    label: str
    probability: float = Field(ge=0, le=1)
    is_confident: bool
    top: tuple[LabelProbability, ...]
    picture_sha256: str | None = None


class PredictAnswer(BaseModel):
    """Answer to `POST /v1/predict`: one prediction per image, in the order they were sent.

    Attributes:
        model: Which model answered.
        provider: onnxruntime's execution provider that is really active.
        predictions: One per image.
    """

    model_config = ConfigDict(frozen=True)

    model: ModelIdentity
    provider: str
    predictions: tuple[Prediction, ...]


class ChallengerState(ModelIdentity):
    """A model that gets shadow traffic and, as a canary, answers some requests in the champion's place.

    Attributes:
        provider: onnxruntime's execution provider that is really active.
        share: Share of the requests that it answers, in [0, 1].
        count: Images of the champion's answers that both have labelled since both are loaded.
        agreement_fraction: Share of them with the same label, in [0, 1]; None without images.
    """

    # Services of earlier versions name none of the three.
    name: str = ""
    provider: str = ""
    share: float = 0.0
    count: int = 0
    agreement_fraction: float | None = None


class AccuracyEstimate(BaseModel):
    """Accuracy on the last predictions, estimated without labels by `serving/observation/drift.py`.

    Attributes:
        accuracy_fraction: In [0, 1]; right only as far as the probabilities are.
        low: Lower end of its 95 % interval.
        high: Upper end.
        count: Predictions.
    """

    model_config = ConfigDict(frozen=True)

    accuracy_fraction: float
    low: float
    high: float
    count: int


class ServedModel(ModelIdentity):
    """A loaded model.

    Attributes:
        provider: onnxruntime's execution provider that is really active.
        choice: Why this variant answers, as it was measured when the model was loaded.
        target_error: Target error among confident predictions; None without calibration.
        thresholds: Least probability of a confident prediction, by class; no prediction of a class left out is
            confident. None without calibration, and in the answers of earlier services.
        classes: Labels in the order of the network's outputs.
        image_size: Height and width that the network reads, pixels.
        accuracy_fraction: Test accuracy in [0, 1]; None if it was not measured.
        recipe: Recipe that trained it.
        run_id: MLflow run that trained it.
        created: ISO 8601 time in UTC.
        challenger: Model that gets shadow traffic; None for none.
        drift_score: Distance of the last predictions from the images that the model was measured on: the population
            stability index of `serving/observation/drift.py`, 0.1 small, 0.25 large; None without enough of them.
        estimated_accuracy: Accuracy on these predictions, estimated without labels; None without enough of them, or
            without calibration.
    """

    provider: str
    choice: str
    target_error: float | None
    classes: tuple[str, ...]
    image_size: int
    accuracy_fraction: float | None
    recipe: str
    run_id: str
    created: str
    thresholds: dict[str, float] | None = None
    challenger: ChallengerState | None = None
    drift_score: float | None = None
    estimated_accuracy: AccuracyEstimate | None = None


class ModelProblem(BaseModel):
    """Why what is released under a name is not what is served, or why nothing is."""

    model_config = ConfigDict(frozen=True)

    name: str
    message: str


class ModelsAnswer(BaseModel):
    """Answer to `GET /v1/models`: the loaded models, and the releases that could not be loaded."""

    model_config = ConfigDict(frozen=True)

    models: tuple[ServedModel, ...]
    problems: tuple[ModelProblem, ...]

    @property
    def answering(self) -> tuple[ServedModel | ChallengerState, ...]:
        """All that answer requests: champions and canaries."""
        canaries = (one.challenger for one in self.models if one.challenger is not None and one.challenger.share)
        return (*self.models, *canaries)


class FeedbackAnswer(BaseModel):
    """Answer to `POST /v1/feedback`.

    Attributes:
        picture_sha256: Picture sha256 of the image, lower-case hexadecimal.
        label: Its true label, as it is stored now.
        model: Registered name that it was given for.
        count: Images with feedback for that name, this one included.
    """

    model_config = ConfigDict(frozen=True)

    picture_sha256: str
    label: str
    model: str
    count: int


class FormExamples(BaseModel):
    """Lines that send a form as the endpoint reads it; in JavaScript `input` is an `<input type="file">`."""

    model_config = ConfigDict(frozen=True)

    curl: str
    python: str
    javascript: str


class ErrorDetail(BaseModel):
    """What went wrong: a stable machine-readable code, one line for a person, and the request's id in the logs.

    With `--examples` the answer to a wrong form has `examples`; others leave it out.
    """

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    request_id: str = ""
    examples: FormExamples | None = None


class ErrorAnswer(BaseModel):
    """Body of every answer that is not 200."""

    model_config = ConfigDict(frozen=True)

    error: ErrorDetail


class InferenceError(BaseModel):
    """Body of every refusal under /v2, as the Open Inference Protocol has it: one line for a person."""

    model_config = ConfigDict(frozen=True)

    error: str


def rank_classes(
    probabilities_K: npt.NDArray[np.float32],
    manifest: Manifest,
    top_k: int,
    filename: str | None,
    picture_sha256: str | None = None,
) -> Prediction:
    """Return the `top_k` most probable classes of one image; equal ones stay in the order of the classes."""
    order = (-probabilities_K).argsort(kind="stable")[:top_k]
    # float32 softmax may exceed 1 by one rounding step.
    probabilities = probabilities_K[order].clip(max=1.0).tolist()
    top = tuple(
        LabelProbability(label=manifest.classes[index], probability=probability)
        for index, probability in zip(order.tolist(), probabilities, strict=True)
    )
    return Prediction(
        filename=filename,
        label=top[0].label,
        probability=top[0].probability,
        is_confident=manifest.is_confident(int(order[0]), top[0].probability),
        top=top,
        picture_sha256=picture_sha256,
    )
