"""What the service answers when it has too much to do: held in one process, so that the load is exact."""

import asyncio

import httpx
import pytest

from serving.admission import Admission
from serving.decode_cost import Cost
from serving.http_api import create_app
from serving.model_set import ModelSet
from serving.prediction_api import PredictionApi
from serving.request_body import RequestBody
from tests.unit.serving.tiny_bundle import paint, release

PICTURE = {"Content-Type": "image/png"}


@pytest.fixture
def app(tmp_path):
    release(tmp_path / "bundles")
    models = ModelSet(tmp_path / "bundles", threads=1)
    models.refresh()
    created = create_app()
    created.state.api = PredictionApi(models, Admission(max_bytes=1000), max_images=1)
    yield created
    created.state.api.close()


def ask(app, content, headers=PICTURE):
    async def post():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://darkroom") as client:
            return await client.post("/v1/predict", content=content, headers=headers)

    return asyncio.run(post())


def test_a_full_queue_says_when_to_come_back(app):
    api = app.state.api
    with api.queues[Cost.CHEAP].wait(1, 0.001):
        response = ask(app, paint())
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "overloaded"
    assert response.headers["retry-after"] == "1"
    assert ask(app, paint()).status_code == 200
    assert (api.admission.held_bytes, api.queues[Cost.CHEAP].images) == (0, 0)


def test_too_many_bytes_at_once_say_when_to_come_back(app):
    with app.state.api.admission.hold() as other:
        other.take(990)
        response = ask(app, paint())
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert ask(app, paint()).status_code == 200


def test_a_shortage_of_memory_anywhere_is_overload(app, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("serving.prediction_api.rank_classes", fail)
    response = ask(app, paint())
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert "not enough memory" in response.json()["error"]["message"]


def test_no_model_yet(app, tmp_path):
    app.state.api.models = ModelSet(tmp_path / "nothing")
    response = ask(app, paint())
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"


def test_a_slow_body_is_given_up(app, monkeypatch):
    monkeypatch.setattr(RequestBody.__init__, "__defaults__", (0.05,))

    async def drip():
        yield paint()[:10]
        await asyncio.sleep(1)
        yield paint()[10:]

    response = ask(app, drip())
    assert response.status_code == 408
    assert response.json()["error"]["code"] == "timeout"


def test_a_request_that_the_end_of_the_process_cuts_off_is_told(app):
    async def run():
        transport = httpx.ASGITransport(app)

        async def drip():
            yield paint()[:10]
            await asyncio.sleep(30)

        async with httpx.AsyncClient(transport=transport, base_url="http://darkroom") as client:
            asking = asyncio.create_task(client.post("/v1/predict", content=drip(), headers=PICTURE))
            await asyncio.sleep(0.2)
            asking.cancel()
            return await asking

    response = asyncio.run(run())
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "the service is stopping; try again"
    assert response.headers["retry-after"] == "5"
