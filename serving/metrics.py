"""Figures for Prometheus beside the counts of requests that BentoML keeps: which models answer, and on what.

Import it only once BentoML's environment is set (`serving/launcher.py`).
"""

from pathlib import Path

import bentoml

from serving.predictions import ModelsAnswer

NVIDIA_DEVICE = Path("/dev/nvidiactl")

_model_info = bentoml.metrics.Gauge(
    "darkroom_model_info",
    "1 for each model that answers now, 0 for one that did",
    labelnames=["name", "version", "precision", "provider"],
    multiprocess_mode="mostrecent",
)
_has_gpu = bentoml.metrics.Gauge(
    "darkroom_gpu_present", "Whether this machine shows the process an NVIDIA device", multiprocess_mode="mostrecent"
)
_published: set[tuple[str, str, str, str]] = set()


def publish_models(answer: ModelsAnswer) -> None:
    """Publish what `GET /v1/models` answers now; what was published before and is not there any more becomes 0."""
    _has_gpu.set(NVIDIA_DEVICE.exists())
    current = {(model.name, model.version, model.precision, model.provider) for model in answer.models}
    for labels in _published - current:
        _model_info.labels(*labels).set(0)
    for labels in current:
        _model_info.labels(*labels).set(1)
    _published.update(current)
