import json
from types import SimpleNamespace

import httpx
import pytest

from flows.operations import prediction_watch, upkeep
from flows.operations.prediction_watch import DRIFT, ENOUGH_FEEDBACK, Told, judge_drift, judge_feedback, tell_causes
from model_code.errors import ServiceError
from model_code.settings import Settings
from tests.unit.serving.tiny_bundle import paint, release


@pytest.fixture
def settings(tmp_path):
    return Settings(
        home=tmp_path, tracking_uri="sqlite://", has_mlflow_server=False, service_url="http://service", service_key="k"
    )


@pytest.fixture
def service(monkeypatch):
    """What the service says, an error to raise, and the events that were raised."""

    service = SimpleNamespace(models=[], error=None, told=[])

    def get(url, headers, timeout):
        assert (url, headers, timeout) == ("http://service/v1/models", {"X-API-Key": "k"}, upkeep.TIMEOUT_S)
        if service.error:
            raise service.error
        return httpx.Response(200, json={"models": service.models}, request=httpx.Request("GET", url))

    monkeypatch.setattr(upkeep.httpx, "get", get)
    monkeypatch.setattr(prediction_watch, "raise_event", service.told.append)
    return service


def give(settings, count, name="cifar10"):
    for number in range(count):
        file = settings.feedback_dir / name / "red" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(paint())


def test_each_cause_is_told_once(settings, service):
    release(settings.bundles_dir, "cifar10", "3")
    service.models = [{"name": "cifar10", "version": "3", "drift_score": 0.31}]
    give(settings, 5)
    for _ in range(3):
        lines = tell_causes(settings, 0.25, 5)
    assert [cause.event for cause in service.told] == [DRIFT, ENOUGH_FEEDBACK]
    assert "version 3 drift: their confidence is 0.31 away" in service.told[0].why
    assert "5 more images to cifar10, 5 are enough" in service.told[1].why
    assert lines == ["cifar10: drift 0.31, 5 images with feedback, 5 of them told before"]
    assert json.loads((settings.retraining_dir / "cifar10.told.json").read_text()) == {
        "drifted_version": "3",
        "feedback": 5,
    }


def test_drift_counts_anew_after_it_went_away_or_with_another_version():
    told = Told()
    outcomes = []
    for version, score in (
        *(("1", 0.2), ("1", 0.3), ("1", 0.9), ("1", None), ("1", 0.3)),
        *(("1", 0.25), ("1", 0.26), ("2", 0.26), ("2", None), ("2", 0.3)),
    ):
        cause, told = judge_drift("cifar10", told, version, score, 0.25)
        outcomes.append(cause is not None)
    assert outcomes == [False, True, False, False, False, False, True, True, False, False]


def test_feedback_counts_anew_after_as_many_more():
    told = Told()
    outcomes = []
    for count in (199, 200, 201, 399, 400, 100, 299, 300):
        cause, told = judge_feedback("cifar10", told, count, 200)
        outcomes.append(cause is not None)
    assert outcomes == [False, True, False, False, True, False, False, True]


def test_an_event_that_nobody_took_is_raised_again(settings, service, monkeypatch):
    release(settings.bundles_dir)
    give(settings, 5)

    def refuse(_):
        raise ConnectionError("no server")

    with monkeypatch.context() as broken:
        broken.setattr(prediction_watch, "raise_event", refuse)
        with pytest.raises(ConnectionError):
            tell_causes(settings, 0.25, 5)
    tell_causes(settings, 0.25, 5)
    assert [cause.event for cause in service.told] == [ENOUGH_FEEDBACK]


def test_without_the_service_feedback_still_counts_and_the_run_fails(settings, service):
    release(settings.bundles_dir)
    give(settings, 5)
    service.error = httpx.ConnectError("refused")
    with pytest.raises(ServiceError, match="the service at http://service does not answer: refused"):
        tell_causes(settings, 0.25, 5)
    assert [cause.event for cause in service.told] == [ENOUGH_FEEDBACK]


def test_a_damaged_note_is_as_none(settings, service):
    release(settings.bundles_dir)
    give(settings, 5)
    settings.retraining_dir.mkdir(exist_ok=True)
    (settings.retraining_dir / "cifar10.told.json").write_text("{")
    tell_causes(settings, 0.25, 5)
    assert len(service.told) == 1


def test_without_an_address_only_feedback_is_looked_at(settings, service):
    release(settings.bundles_dir)
    lines = tell_causes(settings.model_copy(update={"service_url": None}), 0.25, 5)
    assert lines[0].startswith("DARKROOM_SERVICE_URL is not set")
    assert lines[1] == "cifar10: drift unknown, 0 images with feedback, 0 of them told before"
    assert not settings.feedback_dir.exists()
