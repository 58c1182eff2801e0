"""The Open Inference Protocol (v2, REST), asked of the real service."""

import base64
import json

import httpx
import numpy as np
import pytest

from tests.unit.serving.tiny_bundle import COLOURS, IMAGE_SIZE, paint, release

INFER = "/v2/models/cifar10/infer"


def pixels(*names, size=IMAGE_SIZE):
    images_NHWC = np.stack([np.full((size, size, 3), COLOURS[name], dtype=np.uint8) for name in names])
    return {"name": "images", "datatype": "UINT8", "shape": images_NHWC.shape, "data": images_NHWC.tolist()}


def files(*contents):
    data = [base64.b64encode(content).decode() for content in contents]
    return {"name": "images", "datatype": "BYTES", "shape": [len(data)], "data": data}


def test_server_and_models_are_described(client):
    assert client.get("/v2").json()["name"] == "darkroom"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/cifar10/ready").json() == {"name": "cifar10", "ready": True}
    assert client.get("/v2/models/cifar10/versions/3/ready").status_code == 200
    described = client.get("/v2/models/cifar10").json()
    assert described == client.get("/v2/models/cifar10/versions/3").json()
    assert (described["name"], described["versions"]) == ("cifar10", ["3"])
    assert described["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    outputs = {one["name"]: (one["datatype"], one["shape"]) for one in described["outputs"]}
    assert outputs == {"probabilities": ("FP32", [-1, len(COLOURS)]), "labels": ("BYTES", [-1])}


@pytest.mark.parametrize("size", [IMAGE_SIZE, 20])
@pytest.mark.parametrize("is_flat", [True, False])
def test_pixels_are_classified_in_order(client, size, is_flat):
    tensor = pixels("blue", "red", "white", size=size)
    if is_flat:
        tensor["data"] = np.ravel(tensor["data"]).tolist()
    answer = client.post(INFER, json={"id": "7", "inputs": [tensor]}).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("cifar10", "3", "7")
    probabilities, labels = answer["outputs"]
    assert (labels["name"], labels["shape"], labels["data"]) == ("labels", [3], ["blue", "red", "white"])
    assert (probabilities["datatype"], probabilities["shape"]) == ("FP32", [3, len(COLOURS)])
    values_NK = np.reshape(probabilities["data"], (3, -1))
    assert [list(COLOURS)[index] for index in values_NK.argmax(axis=1)] == labels["data"]
    assert values_NK.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_files_have_the_answer_of_v1(client):
    image = paint("yellow", (40, 30), "JPEG")
    of_v1 = client.post("/v1/predict", content=image, headers={"Content-Type": "image/jpeg"}).json()["predictions"][0]
    body = {"inputs": [files(image, paint("green"))], "outputs": [{"name": "probabilities"}]}
    (output,) = client.post("/v2/models/cifar10/versions/3/infer", json=body).json()["outputs"]
    assert max(output["data"][: len(COLOURS)]) == pytest.approx(of_v1["probability"], abs=1e-6)
    metrics = client.get("/metrics").text
    assert 'route="/v2/models/{model}/versions/{version}/infer"' in metrics


@pytest.mark.parametrize(
    ("change", "status", "problem"),
    [
        ({"shape": [1, 8, 8]}, 422, "send [N, height, width, 3]"),
        ({"shape": [2, 8, 8, 3]}, 422, "must be 384 whole numbers"),
        ({"shape": [1, 2**62, 8, 3]}, 422, "must be"),
        ({"shape": [0, 8, 8, 3], "data": []}, 422, "send [N, height, width, 3]"),
        ({"shape": [65, 8, 8, 3]}, 413, "at most 64"),
        ({"data": [256] * 192}, 422, "from 0 to 255"),
        ({"data": [-1] * 192}, 422, "from 0 to 255"),
        ({"data": [0.5] * 192}, 422, "from 0 to 255"),
        ({"data": [True] * 192}, 422, "from 0 to 255"),
        ({"data": [2**70] * 192}, 422, "from 0 to 255"),
        ({"data": [[1], [1, 2]]}, 422, "from 0 to 255"),
        ({"data": ["http://here"] * 192}, 422, "from 0 to 255"),
        ({"datatype": "FP32"}, 422, "'FP32'"),
        ({"name": "pixels"}, 422, "called 'images'"),
        (files(b"no image"), 400, "no image of the accepted formats"),
        (files(b""), 400, "empty"),
        ({**files(b"x"), "data": ["?"]}, 422, "not base64"),
        ({**files(b"x"), "data": [7]}, 422, "not base64"),
        ({**files(b"x"), "shape": [2]}, 422, "of 1 files"),
    ],
)
def test_bad_tensors_are_one_line(client, change, status, problem):
    answer = client.post(INFER, json={"inputs": [pixels("red") | change]})
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert problem in answer.json()["error"]


ASKED_TWICE = {"inputs": [pixels("red")], "outputs": [{"name": "labels"}, {"name": "labels"}]}


@pytest.mark.parametrize(
    ("path", "content", "kind", "status"),
    [
        (INFER, b"{", "application/json", 422),
        (INFER, b"[" * 100_000, "application/json", 422),
        (INFER, b"{}", "application/json", 422),
        (INFER, b'{"inputs": [], "outputs": [{"name": "x"}]}', "application/json", 422),
        (INFER, json.dumps(ASKED_TWICE).encode(), "application/json", 422),
        (INFER, b" " * 14_000_001, "application/json", 413),
        (INFER, b'{"inputs": [' + b"0," * 500_001 + b"0]}", "application/json", 413),
        (INFER, b'{"inputs": [' + b"[]," * 110_000 + b"0]}", "application/json", 413),
        (INFER, b"{}", "application/octet-stream", 415),
        ("/v2/models/dogs/infer", b"{}", "application/json", 404),
        ("/v2/models/cifar10/versions/4/infer", b"{}", "application/json", 404),
        ("/v2/models/cifar10/nothing", b"{}", "application/json", 404),
        ("/v2/health/live", b"{}", "application/json", 405),
    ],
)
def test_refusals_have_the_form_of_the_protocol(client, path, content, kind, status):
    answer = client.post(path, content=content, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert isinstance(answer.json()["error"], str)
    assert answer.headers["x-request-id"]


def test_keys_log_and_feedback_know_it(tmp_path, start_service):
    release(tmp_path / "bundles")
    (tmp_path / "keys").write_text("a-key-of-this-test-that-is-long-enough\n")
    options = ("--log-requests", "1", "--keep-pictures", "--feedback", "--api-keys", tmp_path / "keys")
    service = start_service(tmp_path, *options)
    body = {"inputs": [pixels("red")]}
    refused = httpx.post(f"{service.url}{INFER}", json=body, trust_env=False)
    assert (refused.status_code, list(refused.json())) == (401, ["error"])
    assert list(httpx.get(f"{service.url}/v2", trust_env=False).json()) == ["error"]
    headers = {"X-API-Key": "a-key-of-this-test-that-is-long-enough"}
    assert httpx.post(f"{service.url}{INFER}", json=body, headers=headers, trust_env=False).status_code == 200
    assert service.stop() == 0
    (line,) = next((tmp_path / "requests").glob("*.jsonl")).read_text().splitlines()
    assert '"red"' in line
    assert len(list((tmp_path / "requests/pictures").iterdir())) == 1
