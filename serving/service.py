"""The BentoML service: the HTTP contract mounted beside BentoML's /livez, /readyz and /metrics.

`darkroom serve` runs it in one process (`serving/launcher.py`); `bentoml serve serving.service:Darkroom` runs
it under BentoML's supervisor.
"""

import bentoml

from serving.http_api import create_app
from serving.metrics import count_answer, count_batch, count_comparison, count_request, publish_models
from serving.model_set import ModelSet, find_bundles_dir
from serving.options import read_options
from serving.prediction_api import PredictionApi
from serving.registry import RegistryFollower

options = read_options()
app = create_app(options, on_request=count_request)


# The timeout covers receiving and classifying the largest request; bodies have a shorter one of their own.
@bentoml.service(
    name="darkroom",
    workers=1,
    traffic={"timeout": 300},
    logging={"access": {"enabled": False}},
    metrics={"enabled": True},
)
@bentoml.asgi_app(app, path="/")
class Darkroom:
    """Class probabilities of pictures, from the released models."""

    def __init__(self) -> None:
        bundles_dir = find_bundles_dir()
        self._models = ModelSet(
            bundles_dir,
            precision=options.precision,
            requires_cuda=options.requires_cuda,
            registry=RegistryFollower(options.registry, bundles_dir) if options.registry else None,
            on_change=publish_models,
        )
        self._models.refresh()
        self._models.watch()
        app.state.api = PredictionApi(
            self._models,
            on_batch=count_batch,
            on_answer=count_answer,
            shadow_share=options.shadow_share,
            on_comparison=count_comparison,
        )

    def __is_ready__(self) -> bool:
        return bool(self._models.names)
