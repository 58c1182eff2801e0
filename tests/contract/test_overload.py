"""What the service answers when it has too much to do: held in one process, so that the load is exact."""

import asyncio
import struct

import httpx
import pytest

from serving.decoding.cost import Cost
from serving.http.admission import Admission
from serving.http.request_body import RequestBody
from serving.models.model_set import ModelSet
from tests.unit.serving.tiny_bundle import paint

IMAGE = {"Content-Type": "image/png"}


@pytest.fixture
def app(make_app):
    return make_app(Admission(max_bytes=1000), 1)


def ask(app, content, headers=IMAGE):
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


def _bmp(compression):
    header = struct.pack("<IiiHHII", 40, 32, 32, 1, 8, compression, 0) + bytes(16)
    return b"BM" + struct.pack("<IHHI", 154, 0, 0, 54) + header + bytes(100)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (_bmp(compression=1), "a BMP with an uncommon compression"),
        (b"P6 8 8 255 " + bytes(192), "203 bytes that are no image"),
        (b"\0\0\0\x20ftypheic" + bytes(40), "a file in the format HEIC"),
    ],
)
def test_what_no_queue_would_make_acceptable_is_refused_at_once(app, content, problem):
    queues = app.state.api.queues
    with queues[Cost.CHEAP].wait(1, 0.001), queues[Cost.ORDINARY].wait(1, 0.001), queues[Cost.LARGE].wait(1, 0.001):
        response = ask(app, content)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(problem)


def test_too_many_bytes_at_once_say_when_to_come_back(app):
    with app.state.api.admission.hold() as other:
        other.take(990)
        response = ask(app, paint())
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert ask(app, paint()).status_code == 200


def test_a_small_image_alone_takes_one_hop(app, monkeypatch):
    api = app.state.api

    async def fail(*_):
        raise AssertionError("a hop to the threads that decode")

    monkeypatch.setattr(api._decoder, "decode", fail)
    answer = ask(app, paint("blue"))
    assert answer.json()["predictions"][0]["label"] == "blue"
    image = paint("blue")
    damaged = ask(app, image[:43] + bytes(8) + image[51:])
    assert (damaged.status_code, damaged.json()["error"]["code"]) == (400, "not_a_picture")


def test_a_shortage_of_memory_anywhere_is_overload(app, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("serving.http.prediction_api.rank_classes", fail)
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
            asking = asyncio.create_task(client.post("/v1/predict", content=drip(), headers=IMAGE))
            await asyncio.sleep(0.2)
            asking.cancel()
            return await asking

    response = asyncio.run(run())
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "the service is stopping; try again"
    assert response.headers["retry-after"] == "5"
