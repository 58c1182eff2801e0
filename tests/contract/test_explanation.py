"""Occlusion maps of the real service: the grid, its place in the queue, refusals."""

import asyncio

import httpx
import pytest
from PIL import Image

from serving.decoding.cost import Cost
from serving.http.admission import Admission
from serving.models.occlusion import GRID, VARIANTS
from tests.contract.test_feedback import read_metric
from tests.contract.test_http import refusal
from tests.unit.serving.tiny_bundle import encode, paint, release

IMAGE = {"Content-Type": "image/png"}


def draw():
    """An image that is red, and not black, only because of a part near its corner."""
    image = Image.new("RGB", (70, 70), (126, 0, 0))
    image.paste((255, 0, 0), (7, 7, 14, 14))  # where the square begins that the model sees
    return encode(image)


def explain(client, data, **params):
    return client.post("/v1/explain", content=data, headers=IMAGE, params={"model": "cifar10"} | params)


def test_what_decided_has_the_largest_drop(client):
    answer = explain(client, draw()).json()
    assert sorted(answer) == ["drops", "label", "model", "probability", "provider", "seen_fraction"]
    assert answer["model"]["name"] == "cifar10"
    assert answer["seen_fraction"] == pytest.approx(8 / 10)
    predicted = client.post("/v1/predict?model=cifar10", content=draw(), headers=IMAGE).json()["predictions"][0]
    assert (answer["label"], answer["probability"]) == (predicted["label"], pytest.approx(predicted["probability"]))
    assert [len(row) for row in answer["drops"]] == [GRID] * GRID
    flat = [drop for row in answer["drops"] for drop in row]
    assert all(-1 <= drop <= 1 for drop in flat)
    assert answer["label"] == "red"
    assert max(flat) == answer["drops"][0][0] > 0.01


def test_an_image_of_one_colour_has_no_part_that_decided(client):
    answer = explain(client, paint("blue")).json()
    assert answer["label"] == "blue"
    assert {drop for row in answer["drops"] for drop in row} == {0.0}


def test_a_form_of_one_image(client):
    files = {"image": ("a.png", draw(), "image/png")}
    assert client.post("/v1/explain?model=cifar10", files=files).json() == explain(client, draw()).json()


@pytest.mark.parametrize(
    ("body", "params", "expected"),
    [
        ({"files": [("image", ("a.png", paint(), "image/png"))] * 2}, {}, (413, "too_large")),
        ({"files": {"file": ("a.png", paint(), "image/png")}}, {}, (422, "bad_parameter")),
        ({"content": b"no image", "headers": IMAGE}, {}, (400, "not_a_picture")),
        ({"content": b"", "headers": IMAGE}, {}, (400, "not_a_picture")),
        ({"content": paint(), "headers": {"Content-Type": "text/plain"}}, {}, (415, "wrong_type")),
        ({"content": paint(), "headers": IMAGE}, {"model": "dogs"}, (404, "no_such_model")),
        ({"content": bytes(10_000_001), "headers": IMAGE}, {}, (413, "too_large")),
        ({"files": {"image": ("a.png", bytes(10_100_000), "image/png")}}, {}, (413, "too_large")),
        (
            {"content": paint(), "headers": IMAGE},
            [("model", "cifar10"), *[("a", "b")] * 30],
            (422, "bad_parameter"),
        ),
    ],
)
def test_what_is_refused(client, body, params, expected):
    params = {"model": "cifar10"} | params if isinstance(params, dict) else params
    assert refusal(client.post("/v1/explain", **body, params=params)) == expected
    assert explain(client, paint()).status_code == 200, "the connection goes on"


def test_it_is_neither_counted_nor_logged_as_a_prediction(tmp_path, start_service):
    release(tmp_path / "bundles", "cifar10", "3")
    service = start_service(tmp_path, "--log-requests", "1", "--keep-pictures")
    with httpx.Client(base_url=service.url, timeout=30, trust_env=False) as client:
        assert explain(client, draw()).status_code == 200
        assert read_metric(client, "darkroom_predictions_total") == 0
        assert read_metric(client, "darkroom_batch_pictures_sum") == VARIANTS
    assert service.stop() == 0
    assert not (tmp_path / "requests").exists()


@pytest.fixture
def app(make_app):
    return make_app(Admission(), VARIANTS + 1)


def ask(app, path="/v1/explain"):
    async def post():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://darkroom") as client:
            return await client.post(path, content=draw(), headers=IMAGE)

    return asyncio.run(post())


def test_it_counts_as_that_many_images_and_says_when_to_come_back(app):
    queue = app.state.api.queues[Cost.CHEAP]
    with queue.wait(2, 0.001):
        response = ask(app)
        assert refusal(response) == (503, "overloaded")
        assert response.headers["retry-after"] == "1"
        assert ask(app, "/v1/predict").status_code == 200, "one image has room"
    with queue.wait(1, 0.001):
        assert ask(app).status_code == 200
    assert (queue.images, app.state.api.admission.held_bytes) == (0, 0)
