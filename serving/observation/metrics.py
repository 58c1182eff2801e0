"""Figures for Prometheus: requests, batches, which models answer on what, and what they answer.

Import it only once BentoML's environment is set (`serving/launcher.py`).
"""

import math
import os
from pathlib import Path

import bentoml

from serving.limits import MAX_GONE_VERSIONS, MAX_IMAGES
from serving.models.model_set import REGISTRY_PROBLEM
from serving.models.predictions import ModelsAnswer, PredictAnswer
from serving.observation.drift import DriftWindow
from serving.request_record import AnsweredRequest

NVIDIA_DEVICE = Path("/dev/nvidiactl")

_requests = bentoml.metrics.Counter(
    "darkroom_requests_total", "Answered requests by route and HTTP status", labelnames=["route", "status"]
)
_request_seconds = bentoml.metrics.Histogram(
    "darkroom_request_seconds",
    "From the request's headers to the last byte of its answer",
    labelnames=["route"],
    buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_model_info = bentoml.metrics.Gauge(
    "darkroom_model_info",
    "1 for each model that answers now, 0 for one that did",
    labelnames=["name", "version", "sha256", "precision", "provider"],
    multiprocess_mode="mostrecent",
)
_has_gpu = bentoml.metrics.Gauge(
    "darkroom_gpu_present", "Whether this machine shows the process an NVIDIA device", multiprocess_mode="mostrecent"
)
_swaps = bentoml.metrics.Counter(
    "darkroom_model_swaps_total", "Releases that were loaded, or refused", labelnames=["name", "outcome"]
)
_refused = bentoml.metrics.Gauge(
    "darkroom_release_refused",
    "1 while what is released under a name is not what answers, because it cannot be loaded",
    labelnames=["name"],
    multiprocess_mode="mostrecent",
)
_registry_answers = bentoml.metrics.Gauge(
    "darkroom_registry_answers", "Whether the followed registry answered the last time", multiprocess_mode="mostrecent"
)
_comparisons = bentoml.metrics.Counter(
    "darkroom_shadow_predictions_total",
    "Images that champion and challenger have labelled, alike or not",
    labelnames=["name", "champion", "challenger", "agrees"],
)
_batch_images = bentoml.metrics.Histogram(
    "darkroom_batch_pictures", "Images of one batch on the device", buckets=(1, 2, 4, 8, 16, 32, MAX_IMAGES)
)
_predictions = bentoml.metrics.Counter(
    "darkroom_predictions_total",
    "Predictions by label, and whether they are accepted",
    labelnames=["name", "version", "label", "confident"],
)
_probability = bentoml.metrics.Histogram(
    "darkroom_prediction_probability",
    "Probability of the most probable class",
    labelnames=["name", "version"],
    buckets=tuple(step / 20 for step in range(1, 21)),
)
_drift_score = bentoml.metrics.Gauge(
    "darkroom_drift_score",
    "Population stability index of the last predictions beside the images that calibrated the model",
    labelnames=["name", "version"],
    multiprocess_mode="mostrecent",
)
_estimated_accuracy = bentoml.metrics.Gauge(
    "darkroom_estimated_accuracy",
    "Accuracy on the last predictions, estimated from their probabilities",
    labelnames=["name", "version"],
    multiprocess_mode="mostrecent",
)
_feedback = bentoml.metrics.Counter(
    "darkroom_feedback_total",
    "True labels that were given, by whether the model says the same",
    labelnames=["name", "agrees"],
)
_log_dropped = bentoml.metrics.Counter(
    "darkroom_request_log_dropped_total", "Images that the request log should have written and did not"
)
_published: set[tuple[str, ...]] = set()
_counted: set[tuple[str, ...]] = set()  # versions that answered; one may answer after it was forgotten
_gone: dict[tuple[str, ...], None] = {}  # the one that has been gone for longest first
_seen: set[tuple[str, str, str]] = set()


def count_request(request: AnsweredRequest) -> None:
    """Count one answered request."""
    _requests.labels(request.route, str(request.status)).inc()
    _request_seconds.labels(request.route).observe(request.seconds)


def publish_models(answer: ModelsAnswer) -> None:
    """Publish what `GET /v1/models` answers now; what was published before and is not there any more becomes 0.

    Of the versions that are gone the last `MAX_GONE_VERSIONS` are kept: `/metrics` does not grow with releases.
    """
    _has_gpu.set(NVIDIA_DEVICE.exists())
    current = {(one.name, one.version, one.sha256, one.precision, one.provider) for one in answer.answering}
    for labels in _published - current:
        _model_info.labels(*labels).set(0)
    for labels in current:
        _model_info.labels(*labels).set(1)
    _published.update(current)
    served = {labels[:2] for labels in current}
    for version in served:
        _gone.pop(version, None)
    for known in {labels[:2] for labels in _published} | _counted:
        if known not in served:
            _gone.setdefault(known)
    # Files of several processes cannot be shortened.
    while len(_gone) > MAX_GONE_VERSIONS and "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        _forget(*next(iter(_gone)))
    outcomes = {(model.name, "loaded", model.version) for model in answer.models}
    outcomes |= {
        (problem.name, "refused", problem.message) for problem in answer.problems if problem.name != REGISTRY_PROBLEM
    }
    refused = {name for name, outcome, _ in outcomes if outcome == "refused"}
    for name in refused | {name for name, outcome, _ in _seen if outcome == "refused"}:
        _refused.labels(name).set(name in refused)
    _registry_answers.set(all(problem.name != REGISTRY_PROBLEM for problem in answer.problems))
    for name, outcome, _ in outcomes - _seen:
        _swaps.labels(name, outcome).inc()
    _seen.clear()
    _seen.update(outcomes)


def _forget(name: str, version: str) -> None:
    """Remove the figures of a version."""
    for metric in (_model_info, _predictions, _probability, _drift_score, _estimated_accuracy):
        metric.remove_by_labels({"name": name, "version": version})
    for role in ("champion", "challenger"):
        _comparisons.remove_by_labels({"name": name, role: version})
    del _gone[name, version]
    _counted.discard((name, version))
    _published.difference_update([labels for labels in _published if labels[:2] == (name, version)])


def count_batch(images: int) -> None:
    """Count one batch on the device."""
    _batch_images.observe(images)


def count_comparison(name: str, champion: str, challenger: str, alike: int, different: int) -> None:
    """Count how a challenger labelled some images."""
    _comparisons.labels(name, champion, challenger, "true").inc(alike)
    _comparisons.labels(name, champion, challenger, "false").inc(different)


def count_answer(answer: PredictAnswer) -> None:
    """Count the predictions of one answer."""
    name, version = answer.model.name, answer.model.version
    _counted.add((name, version))
    for prediction in answer.predictions:
        _predictions.labels(name, version, prediction.label, str(prediction.is_confident).lower()).inc()
        _probability.labels(name, version).observe(prediction.probability)


def publish_drift(name: str, version: str, window: DriftWindow | None) -> None:
    """Publish a model's drift and estimated accuracy; NaN where it is None, or says too little."""
    score, accuracy = (None, None) if window is None else (window.score, window.accuracy)
    _drift_score.labels(name, version).set(math.nan if score is None else score)
    _estimated_accuracy.labels(name, version).set(math.nan if accuracy is None else accuracy.accuracy_fraction)


def count_feedback(name: str, agrees: bool) -> None:
    """Count one true label, and whether the model agrees with it."""
    _feedback.labels(name, str(agrees).lower()).inc()


def count_dropped(images: int) -> None:
    """Count images that the request log left out."""
    _log_dropped.inc(images)
