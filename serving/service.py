"""The BentoML service: the HTTP contract mounted beside BentoML's /livez, /readyz and /metrics.

`darkroom serve` runs it in one process (`serving/launcher.py`); `bentoml serve serving.service:Darkroom` runs
it under BentoML's supervisor.
"""

from collections.abc import Sequence

import bentoml
from starlette.exceptions import HTTPException

from serving.bundle.manifest import Manifest
from serving.bundle.session import has_cuda
from serving.decoding.decoder import SILENT_S
from serving.decoding.encoded import EncodedImage
from serving.http.api import create_app
from serving.http.feedback_api import FeedbackApi
from serving.http.prediction_api import PredictionApi
from serving.http.review_api import ReviewApi
from serving.models.classifier import NO_GPU
from serving.models.model_set import ModelSet, find_bundles_dir, find_inbox_dir
from serving.models.predictions import ModelsAnswer, PredictAnswer
from serving.models.registry import RegistryFollower
from serving.observation.access_log import AccessLog
from serving.observation.drift import DriftWatch
from serving.observation.feedback import FEEDBACK_FOLDER, FeedbackStore
from serving.observation.metrics import (
    count_answer,
    count_batch,
    count_comparison,
    count_dropped,
    count_feedback,
    count_request,
    publish_drift,
    publish_models,
)
from serving.observation.request_log import IMAGES_FOLDER, REQUESTS_FOLDER, RequestLog
from serving.options import read_options
from serving.request_record import AnsweredRequest

options = read_options()


def _tell(request: AnsweredRequest) -> None:
    count_request(request)
    if app.state.access_log is not None:
        app.state.access_log.add(request)


app = create_app(options, on_request=_tell)


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
    """Class probabilities of images, from the released models."""

    def __init__(self) -> None:
        bundles_dir = find_bundles_dir()
        inbox_dir = find_inbox_dir(bundles_dir.parent)
        requests_dir = inbox_dir / REQUESTS_FOLDER
        self._drift = DriftWatch(publish_drift)
        self._log = (
            RequestLog(requests_dir, options.log_share, options.keeps_images, on_drop=count_dropped)
            if options.log_share
            else None
        )
        self._models = ModelSet(
            bundles_dir,
            precision=options.precision,
            requires_cuda=options.requires_cuda,
            registry=RegistryFollower(options.registry, bundles_dir) if options.registry else None,
            on_change=self._publish,
        )
        self._lacks_gpu = options.requires_cuda and not has_cuda()
        self._models.refresh()
        self._models.watch()
        self._api = api = PredictionApi(
            self._models,
            on_batch=count_batch,
            on_answer=self._observe,
            shadow_share=options.shadow_share,
            on_comparison=count_comparison,
            allows_uncommon=options.allows_uncommon_formats,
        )
        app.state.api = api
        app.state.explain_dead, app.state.explain_unready = self._explain_dead, self._explain_unready
        app.state.drift = self._drift
        app.state.log = self._log
        app.state.access_log = AccessLog() if options.logs_access else None
        if options.takes_feedback:
            store = FeedbackStore(inbox_dir / FEEDBACK_FOLDER)
            app.state.feedback = FeedbackApi(api, store, requests_dir / IMAGES_FOLDER, count_feedback)
            if options.shows_review:
                app.state.review = ReviewApi(api, app.state.feedback, requests_dir)

    def _publish(self, answer: ModelsAnswer) -> None:
        publish_models(answer)
        self._drift.keep(answer.answering)

    def _observe(
        self, manifest: Manifest, answer: PredictAnswer, images: Sequence[EncodedImage], is_drawn: bool
    ) -> None:
        count_answer(answer)
        self._drift.add(manifest, answer)
        if self._log is not None:
            self._log.add(answer, images, is_drawn=is_drawn)

    # On the event loop: on a thread they would wait for one, and an event loop that hangs answers neither.
    async def __is_ready__(self) -> bool:
        _refuse(self._explain_unready())
        return True

    async def __is_alive__(self) -> bool:
        _refuse(self._explain_dead())
        return True

    def _explain_unready(self) -> str:
        """Return why predictions are not answered; empty if they are."""
        if self._lacks_gpu:
            return NO_GPU
        if not self._models.names:
            return "no model is loaded; the log and /v1/models say why"
        if not self._api.is_decoding:
            return f"no decoding process has answered for {SILENT_S:g} s"
        if app.state.keys is not None and app.state.keys.problem:
            return "the file of API keys cannot be read; the log says why"
        return ""

    def _explain_dead(self) -> str:
        """Return which thread has ended or hangs; empty if none.

        Request log and feedback do not count: a new process would hang on the same disk.
        """
        parts = {
            "the batch on the device": self._api.is_alive,
            "a thread that follows releases or the registry": self._models.is_alive,
        }
        dead = [name for name, is_alive in parts.items() if not is_alive]
        return f"{' and '.join(dead)} hangs or has ended" if dead else ""


def _refuse(problem: str) -> None:
    """Have BentoML answer a probe with 503 and the problem, if there is one."""
    if problem:
        raise HTTPException(503, problem)
