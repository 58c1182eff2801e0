"""Explanations over HTTP: which parts of an image decided."""

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from serving.http.endpoint import REFUSALS, describe_overload, describe_parameter, endpoint
from serving.http.prediction_api import PredictionApi, check_parameters, describe_image_body
from serving.http.request_body import RequestBody
from serving.models.occlusion import GRID, VARIANTS, cover_cells, measure_drops
from serving.models.predictions import ModelIdentity, rank_classes


class ExplanationAnswer(BaseModel):
    """Answer to `POST /v1/explain`.

    Attributes:
        model: Which model answered.
        provider: onnxruntime's execution provider that is really active.
        label: Most probable class.
        probability: Probability of `label`, in [0, 1].
        drops: How much less probable `label` is where a cell of the grid has the image's mean colour, by row, in
            [-1, 1]; negative where it is more probable.
        seen_fraction: Side of the square in the middle of the upright image that the model sees, and the grid divides,
            as a share of the image's short side.
    """

    model_config = ConfigDict(frozen=True)

    model: ModelIdentity
    provider: str
    label: str
    probability: float = Field(ge=0, le=1)
    drops: tuple[tuple[float, ...], ...]
    seen_fraction: float = Field(gt=0, le=1)


@endpoint(
    "POST",
    "/v1/explain",
    answer=ExplanationAnswer,
    success=f"What each cell of a grid of {GRID} x {GRID} contributes; queues as {VARIANTS} images",
    parameters=[describe_parameter("model", "query", "Registered name; when left out: the only model, or cifar10")],
    refusals=REFUSALS,
    further=describe_overload(),
    body=describe_image_body(max_images=1),
)
async def explain(request: Request) -> ExplanationAnswer:
    """Which parts of one image decided."""
    api: PredictionApi = request.app.state.api
    body: RequestBody = request.state.body
    with api.admission.hold() as holding:
        check_parameters(request, "model")
        classifier = api.models.select(request.query_params.get("model"))
        images = await body.read_images(holding, max_images=1)
        probabilities_NK = await api.classify(classifier, images, cover_cells)
    manifest = classifier.manifest
    prediction = rank_classes(probabilities_NK[0], manifest, 1, None)
    return ExplanationAnswer(
        model=classifier.identity,
        provider=classifier.provider,
        label=prediction.label,
        probability=prediction.probability,
        drops=tuple(map(tuple, measure_drops(probabilities_NK).tolist())),
        seen_fraction=min(1.0, manifest.image_size / manifest.resize_size),
    )
