"""Every promise of the HTTP contract, asked of the real service over a real connection."""

import contextlib
import hashlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from serving.bundle.store import MODEL_FILE, hash_file
from serving.http.openapi import describe_api
from serving.limits import MAX_BODY_BYTES, MAX_IMAGE_BYTES
from serving.models.predictions import ModelsAnswer, PredictAnswer
from tests.unit.serving.tiny_bundle import COLOURS, encode, make_bundle, paint, paint_bomb, point_at, release

NVIDIA_DEVICE = Path("/dev/nvidiactl")

IMAGE = {"Content-Type": "image/png"}
MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}


def post(client, data, headers=IMAGE, **params):
    return client.post("/v1/predict", content=data, headers=headers, params=params)


def post_form(client, *images, **params):
    files = [("image", (name, data, "image/png")) for name, data in images]
    return client.post("/v1/predict", files=files, params=params)


def refusal(response):
    """Return status and code of a refusal, having checked that its body has the shape of the contract."""
    body = response.json()
    assert list(body) == ["error"]
    assert sorted(body["error"]) == ["code", "message", "request_id"]
    assert body["error"]["message"]
    assert response.headers["content-type"] == "application/json"
    return response.status_code, body["error"]["code"]


def wait_for(condition, timeout_s=15.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def part(data, disposition='form-data; name="image"; filename="a.png"', kind="image/png"):
    head = f"--b\r\nContent-Disposition: {disposition}\r\nContent-Type: {kind}\r\n\r\n"
    return head.encode() + data + b"\r\n"


def test_one_image(client, service):
    response = post(client, paint("red"))
    assert response.status_code == 200
    body = response.json()
    assert sorted(body) == ["model", "predictions", "provider"]
    (model_file,) = (service.bundles_dir / "cifar10").glob(f"*/{MODEL_FILE}")
    assert body["model"] == {
        "name": "cifar10",
        "version": "3",
        "sha256": hash_file(model_file),
        "precision": "fp32",
    }
    assert body["provider"] in ("CPUExecutionProvider", "CUDAExecutionProvider")
    (prediction,) = body["predictions"]
    assert sorted(prediction) == ["filename", "is_confident", "label", "picture_sha256", "probability", "top"]
    assert prediction["filename"] is None
    assert prediction["picture_sha256"] == hashlib.sha256(paint("red")).hexdigest()
    assert prediction["label"] == prediction["top"][0]["label"] == "red"
    assert prediction["probability"] == prediction["top"][0]["probability"] > 0.99
    assert len(prediction["top"]) == 5
    probabilities = [one["probability"] for one in prediction["top"]]
    assert probabilities == sorted(probabilities, reverse=True)


@pytest.mark.parametrize("kind", ["image/jpeg", "image/x-anything", "IMAGE/PNG", "application/octet-stream"])
def test_accepted_content_types(client, kind):
    assert post(client, paint("blue"), {"Content-Type": kind}).json()["predictions"][0]["label"] == "blue"


def test_images_are_answered_in_order(client):
    names = [*COLOURS, *reversed(COLOURS)]
    answer = PredictAnswer.model_validate_json(
        post_form(client, *((f"{name}.png", paint(name)) for name in names)).content
    )
    assert [one.label for one in answer.predictions] == names
    assert [one.filename for one in answer.predictions] == [f"{name}.png" for name in names]


def test_64_images_are_one_batch(client):
    response = post_form(client, *[("a.png", paint("green"))] * 64)
    assert [one["label"] for one in response.json()["predictions"]] == ["green"] * 64


def test_a_form_without_part_types_and_with_a_strange_name(client):
    name = "Zürich 🐈 .png"
    body = part(paint("red"), f'form-data; name="image"; filename="{name}"').replace(
        b"Content-Type: image/png\r\n", b""
    )
    response = post(client, body + b"--b--\r\n", MULTIPART)
    assert response.json()["predictions"][0]["filename"] == name


@pytest.mark.parametrize(
    ("image", "label"),
    [
        (Image.new("RGBA", (9, 9), (255, 0, 0, 0)), "white"),
        (Image.new("RGBA", (9, 9), (255, 0, 0, 255)), "red"),
        (Image.new("L", (9, 9), 5), "black"),
        (Image.new("P", (9, 9), 0), "black"),
        (Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "red"),
    ],
)
def test_every_mode_of_image(client, image, label):
    kind = "TIFF" if image.mode == "CMYK" else "PNG"
    assert post(client, encode(image, kind)).json()["predictions"][0]["label"] == label


def test_exif_orientation_is_obeyed(client):
    image = Image.new("RGB", (30, 10), "red")
    image.paste((0, 0, 255), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert post(client, encode(image, "JPEG", exif=exif, quality=95)).json()["predictions"][0]["label"] == "red"


@pytest.mark.parametrize(
    "data",
    [b"", b"garbage", paint(kind="JPEG")[:300], paint()[:50], b"<svg xmlns='http://www.w3.org/2000/svg'/>"],
    ids=["empty", "garbage", "cut jpeg", "cut png", "svg"],
)
def test_what_is_not_a_picture(client, data):
    assert refusal(post(client, data)) == (400, "not_a_picture")


def test_the_bad_image_of_a_batch_is_named(client):
    response = post_form(client, ("good.png", paint()), ("bad.png", b"garbage"))
    assert refusal(response) == (400, "not_a_picture")
    assert "image 2 of 2, 'bad.png'" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"--b\r\n",
        part(paint()),
        b"--b\r\nno header here\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\nX: " + b"x" * 40_000 + b"\r\n\r\n\r\n--b--\r\n",
    ],
    ids=["empty", "nonsense", "only a boundary", "no last boundary", "bad header", "long header"],
)
def test_a_malformed_form(client, body):
    assert refusal(post(client, body, MULTIPART)) == (400, "bad_request")


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary="])
def test_a_form_without_boundary(client, kind):
    assert refusal(post(client, part(paint()), {"Content-Type": kind})) == (400, "bad_request")


def test_an_empty_part(client):
    assert refusal(post_form(client, ("a.png", b""))) == (400, "not_a_picture")


def test_a_form_without_parts(client):
    assert refusal(post(client, b"--b--\r\n", MULTIPART)) in ((400, "bad_request"), (422, "bad_parameter"))


@pytest.mark.parametrize("value", ["http://127.0.0.1:1/a.png", "file:///etc/passwd", "x"])
def test_a_string_is_never_an_image(client, value):
    body = part(value.encode(), 'form-data; name="image"', "text/plain") + b"--b--\r\n"
    assert refusal(post(client, body, MULTIPART)) == (422, "bad_parameter")


def test_a_url_is_never_fetched(client):
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/a.png"
        client.post("/v1/predict", data={"image": url})
        client.post("/v1/predict", json={"image": url})
        post(client, url.encode())
        post(client, part(url.encode()) + b"--b--\r\n", MULTIPART)
        post(client, part(url.encode(), 'form-data; name="image"') + b"--b--\r\n", MULTIPART)
        with pytest.raises(TimeoutError):
            trap.accept()


def test_another_form_field(client):
    response = client.post("/v1/predict", files={"picture": ("a.png", paint(), "image/png")})
    assert refusal(response) == (422, "bad_parameter")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": ""},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "imagepng"},
        {"Content-Type": "image/png", "Content-Encoding": "gzip"},
    ],
)
def test_wrong_types(client, headers):
    assert refusal(post(client, paint(), headers)) == (415, "wrong_type")


def test_a_part_of_a_wrong_type(client):
    body = part(paint(), kind="text/html") + b"--b--\r\n"
    assert refusal(post(client, body, MULTIPART)) == (415, "wrong_type")


@pytest.mark.parametrize("top_k", ["0", "-1", "7", "1.5", "", "many", "\uff11", "9" * 30])
def test_bad_top_k(client, top_k):
    response = post(client, paint(), top_k=top_k)
    assert refusal(response) == (422, "bad_parameter")
    assert "from 1 to 6" in response.json()["error"]["message"]


@pytest.mark.parametrize("top_k", [1, 6])
def test_good_top_k(client, top_k):
    assert len(post(client, paint(), top_k=top_k).json()["predictions"][0]["top"]) == top_k


@pytest.mark.parametrize("name", ["dogs", "", "../food", "Cifar10"])
def test_an_unknown_model(client, name):
    response = post(client, paint(), model=name)
    assert refusal(response) == (404, "no_such_model")
    assert "food" in response.json()["error"]["message"]


def test_a_named_model(client):
    assert post(client, paint(), model="food").json()["model"]["name"] == "food"


@pytest.mark.parametrize(
    "data",
    [paint_bomb(10_000, 5_001), paint_bomb(20_000, 20_000), encode(Image.new("L", (1, 600_000)))],
    ids=["over the limit", "bomb", "line"],
)
def test_too_many_pixels(client, data):
    assert refusal(post(client, data)) == (413, "too_large")


@pytest.mark.parametrize("announced", [True, False])
def test_too_many_bytes_in_one_image(client, announced):
    data = bytes(MAX_IMAGE_BYTES + 1)
    assert refusal(post(client, data if announced else iter([data]))) == (413, "too_large")
    assert refusal(post_form(client, ("a.png", data))) == (413, "too_large")


def test_an_endless_body_is_cut_off(service):
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    sent = 0
    address = httpx.URL(service.url)
    with socket.create_connection((address.host, address.port), timeout=20) as connection:
        connection.sendall(head)
        with contextlib.suppress(ConnectionError):
            while sent < 4 * MAX_BODY_BYTES:
                connection.sendall(chunk)
                sent += len(chunk)
    assert sent < 2 * MAX_BODY_BYTES


def test_too_many_parts(client):
    assert refusal(post_form(client, *[("a.png", paint())] * 65)) == (413, "too_large")


def test_a_refused_upload_can_read_the_reason_and_go_on(service):
    with httpx.Client(base_url=service.url, trust_env=False) as session:
        for _ in range(3):
            assert refusal(post(session, bytes(5_000_000), {"Content-Type": "text/plain"}))[0] == 415
            assert post(session, paint()).status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_predict_answers_only_post(client, method):
    response = client.request(method, "/v1/predict")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    if method != "HEAD":
        assert refusal(response) == (405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_probes_answer_only_get(client, path):
    response = client.post(path, content=b"a")
    assert refusal(response) == (405, "method_not_allowed")
    assert response.headers["allow"] == "GET, HEAD"
    assert client.head(path).status_code == 200


def test_an_unknown_path(client):
    assert refusal(client.get("/v2/predict")) == (404, "no_such_route")


def test_models_are_listed(client):
    answer = ModelsAnswer.model_validate_json(client.get("/v1/models").content)
    by_name = {model.name: model for model in answer.models}
    assert by_name["cifar10"].version == "3"
    assert by_name["cifar10"].classes == tuple(COLOURS)
    assert by_name["food"].sha256 != by_name["cifar10"].sha256


def test_probes_and_metrics(client):
    assert post(client, paint()).status_code == 200
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 200
    metrics = client.get("/metrics").text
    assert 'darkroom_requests_total{route="/v1/predict",status="200"}' in metrics
    assert 'darkroom_request_seconds_count{route="/v1/predict"}' in metrics
    for model in ModelsAnswer.model_validate_json(client.get("/v1/models").content).models:
        labels = f'name="{model.name}",precision="fp32",provider="{model.provider}",sha256="{model.sha256}"'
        assert f'darkroom_model_info{{{labels},version="{model.version}"}} 1.0' in metrics
    assert 'darkroom_model_swaps_total{name="cifar10",outcome="loaded"}' in metrics
    assert f"darkroom_gpu_present {float(NVIDIA_DEVICE.exists())}" in metrics


def test_paths_that_nothing_answers_make_no_labels(client):
    for path in ("/v1/nothing", "/a?b=c", "/{path:path}"):
        assert client.get(path).status_code == 404
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith("darkroom_requests_total")]
    routes = {line.split('route="')[1].split('"')[0] for line in lines}
    documented = client.get("/openapi.json").json()["paths"].keys()
    assert "other" in routes <= {"other", "/", "/openapi.json", "/docs.json", *documented}


def test_every_answer_carries_the_security_headers(client):
    for response in (client.get("/"), client.get("/v1/models"), client.get("/nothing"), post(client, b"no image")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "server" not in response.headers


def test_predictions_and_batches_are_counted(client):
    def read(start):
        lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(start)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    red = 'darkroom_predictions_total{confident="true",label="red",name="cifar10",version="3"}'
    names = (red, "darkroom_batch_pictures_sum", "darkroom_batch_pictures_count")
    probability = 'darkroom_prediction_probability_count{name="cifar10",version="3"}'
    before = [read(name) for name in (*names, probability)]
    assert post_form(client, *[(f"{number}.png", paint("red")) for number in range(5)]).status_code == 200
    assert [read(name) - old for name, old in zip((*names, probability), before, strict=True)] == [5, 5, 1, 5]


def test_the_page_needs_nothing_from_elsewhere(client):
    response = client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert '<html lang="en">' in response.text
    assert "http://" not in response.text
    assert "https://" not in response.text


@pytest.mark.parametrize("path", ["/openapi.json", "/docs.json"])
def test_openapi_describes_the_contract(client, path):
    document = client.get(path).json()
    assert document["openapi"].startswith("3.1")
    predict = document["paths"]["/v1/predict"]["post"]
    assert set(predict["responses"]) >= {"200", "400", "401", "404", "413", "415", "422", "503"}
    assert [one["name"] for one in predict["parameters"]] == ["model", "top_k"]
    assert set(document["paths"]) >= {"/v1/predict", "/v1/feedback", "/v1/models", "/livez", "/readyz", "/metrics", "/"}

    def find_references(node):
        if isinstance(node, dict):
            yield from ([node["$ref"]] if "$ref" in node else [])
            node = list(node.values())
        if isinstance(node, list):
            for child in node:
                yield from find_references(child)

    names = {reference.removeprefix("#/components/schemas/") for reference in find_references(document)}
    assert {"PredictAnswer", "ModelsAnswer", "ErrorAnswer"} <= names == set(document["components"]["schemas"])


@pytest.mark.parametrize(
    ("prefix", "servers"),
    [
        ("/ml/darkroom", [{"url": "/ml/darkroom"}]),
        ("/ml/", [{"url": "/ml"}]),
        ("", None),
        ("ml", None),
        ("//elsewhere.example", None),
        ('/a"b', None),
        ("/x" * 200, None),
    ],
)
def test_openapi_names_the_prefix_that_a_proxy_strips(client, prefix, servers):
    answer = client.get("/openapi.json", headers={"X-Forwarded-Prefix": prefix})
    assert answer.json().get("servers") == servers
    assert answer.headers["vary"] == "X-Forwarded-Prefix"


def test_every_prefix_has_the_same_description_but_for_itself():
    """Clients may send any prefix: building the schemas anew for each took the event loop a tenth of a second."""
    plain, first, second = (describe_api(prefix) for prefix in ("", "/a", "/b"))
    assert first == plain | {"servers": [{"url": "/a"}]}
    assert "servers" not in plain
    assert first["components"] is second["components"]


def test_openapi_names_the_prefix_that_the_service_is_told(tmp_path, start_service):
    release(tmp_path / "bundles")
    told = start_service(tmp_path, "--root-path", "/ml/darkroom")
    headers = {"X-Forwarded-Prefix": "/other"}
    answer = httpx.get(f"{told.url}/openapi.json", headers=headers, trust_env=False)
    assert answer.json()["servers"] == [{"url": "/ml/darkroom"}]


@pytest.mark.parametrize(
    "name", ["filename*=UTF-8''K%C3%A4se.png", "filename*=utf-8'de'cat.png", "FileName* = iso-8859-1''K%E4se.png"]
)
def test_a_file_whose_name_is_encoded_is_a_file(client, name):
    part = f"--b\r\nContent-Disposition: form-data; name=image; {name}\r\nContent-Type: image/png\r\n\r\n".encode()
    body = part + paint("red") + b"\r\n--b--\r\n"
    answer = client.post("/v1/predict", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["label"] == "red"


@pytest.mark.parametrize("name", ["x=filename*", "filename*=utf-16''a", "filename*=utf-8''", "filename*0=a"])
def test_a_text_stays_a_text(client, name):
    body = f"--b\r\nContent-Disposition: form-data; name=image; {name}\r\n\r\nhttp://here\r\n--b--\r\n".encode()
    answer = client.post("/v1/predict", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 422
    assert "must be a file" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "field"), [("multipart/form-data; boundary=b", "file"), ("application/x-www-form-urlencoded", "image")]
)
def test_a_wrong_form_is_told_the_command_that_works(client, kind, field):
    head = f"--b\r\nContent-Disposition: form-data; name={field}; filename=a.png\r\n\r\n".encode()
    answer = client.post("/v1/predict", content=head + b"data\r\n--b--\r\n", headers={"Content-Type": kind})
    assert answer.status_code in (415, 422)
    message = answer.json()["error"]["message"]
    assert message.endswith(f"for example: curl -F image=@cat.jpg {str(client.base_url).rstrip('/')}/v1/predict")


def test_many_clients_at_once_get_their_own_answers(service):
    names = [*COLOURS] * 20

    def ask(name):
        return post(session, paint(name)).json()["predictions"][0]["label"]

    with httpx.Client(base_url=service.url, timeout=30, trust_env=False) as session, ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, names)) == names


def test_a_client_that_leaves_does_no_harm(client, service):
    address = httpx.URL(service.url)
    for _ in range(5):
        with socket.create_connection((address.host, address.port), timeout=10) as connection:
            connection.sendall(
                b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nabc"
            )
    assert post(client, paint()).status_code == 200


def test_a_new_release_is_followed_while_requests_go_on(client, service):
    release(service.bundles_dir, "switching", "1")
    wait_for(lambda: post(client, paint(), model="switching").status_code == 200)
    release(service.bundles_dir, "switching", "2", softness=9000.0)
    seen = []

    def ask():
        response = post(client, paint(), model="switching")
        assert response.status_code == 200
        seen.append(response.json()["model"]["version"])
        return seen[-1] == "2"

    wait_for(ask)
    assert seen == sorted(seen)
    assert seen[0] == "1"


def test_a_damaged_release_keeps_the_old_one(client, service):
    release(service.bundles_dir, "steady", "1")
    wait_for(lambda: post(client, paint(), model="steady").status_code == 200)
    folder = make_bundle(service.bundles_dir, "steady", softness=9000.0)
    with (folder / MODEL_FILE).open("r+b") as file:
        file.write(b"\xff\xff\xff")
    point_at(service.bundles_dir, "steady", "2", folder)

    def find_problems():
        return [one["message"] for one in client.get("/v1/models").json()["problems"] if one["name"] == "steady"]

    wait_for(find_problems)
    assert "was changed after its release" in find_problems()[0]
    assert post(client, paint(), model="steady").json()["model"]["version"] == "1"
    metrics = client.get("/metrics").text
    assert 'darkroom_model_swaps_total{name="steady",outcome="refused"} 1.0' in metrics
    assert 'darkroom_release_refused{name="steady"} 1.0' in metrics
    release(service.bundles_dir, "steady", "3", softness=9500.0)
    wait_for(lambda: 'darkroom_release_refused{name="steady"} 0.0' in client.get("/metrics").text)


def test_unknown_paths_leave_nothing_behind(client):
    for number in range(50):
        assert refusal(client.get(f"/nowhere/{number}")) == (404, "no_such_route")
    assert "nowhere" not in client.get("/metrics").text


def test_many_large_images_in_one_request(client):
    large = encode(Image.new("L", (6000, 6000)))
    assert post(client, large).status_code == 200
    answer = post_form(client, *[(f"{number}.png", large) for number in range(3)])
    assert refusal(answer) == (413, "too_large")
    assert answer.json()["error"]["message"].startswith("3 images of more than 100,000,000 pixels together")
