"""Drift, the request log and feedback, asked of the real service; and that whoever does not ask for them has none."""

import contextlib
import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from serving.bundle.manifest import Calibration, Thresholds
from serving.client.client import send_feedback
from serving.errors import ClientError
from tests.contract.test_http import refusal, wait_for
from tests.unit.serving.observation.test_drift import measure
from tests.unit.serving.tiny_bundle import COLOURS, paint, release

IMAGE = {"Content-Type": "image/png"}
FILE = {"image": ("a.png", paint("red"), "image/png")}
SHA256 = hashlib.sha256(paint("red")).hexdigest()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def running(home):
    """A service that keeps everything; its model is always sure, of what it was measured on."""
    from tests.contract.conftest import Service

    thresholds = Thresholds(target_error=0.05, overall=0, per_class=(0,) * 6, selections=(), selections_overall=())
    calibration = Calibration(temperature=1, reliability=(measure([0.99] * 500),), thresholds=thresholds)
    release(home / "bundles", "cifar10", "3", manifest={"calibration": calibration})
    release(home / "bundles", "food", "1", softness=9000.0)
    service = Service(home, "--log-requests", "1", "--keep-pictures", "--feedback")
    yield service
    service.stop()
    assert not [line for line in service.log if "Traceback" in line or "ERROR" in line], service.log


@pytest.fixture
def asked(running):
    with httpx.Client(base_url=running.url, timeout=30, trust_env=False) as session:
        yield session


def give(client, label, data=None, **texts):
    files = {"image": ("a.png", data or paint("red"), "image/png")}
    return client.post("/v1/feedback", files=files, data={"label": label, "model": "cifar10"} | texts)


def read_metric(client, line):
    found = [one for one in client.get("/metrics").text.splitlines() if one.startswith(line)]
    return float(found[0].rsplit(" ", 1)[1]) if found else 0.0


def test_a_service_takes_no_feedback_and_writes_nothing_unless_told_to(client, service):
    response = give(client, "red")
    assert refusal(response) == (404, "feedback_off")
    assert "darkroom serve --feedback" in response.json()["error"]["message"]
    assert client.post("/v1/predict", content=paint(), headers=IMAGE).status_code == 200
    assert [path.name for path in service.bundles_dir.parent.iterdir()] == ["bundles"]
    assert {model["drift_score"] for model in client.get("/v1/models").json()["models"]} == {None}


def test_a_label_is_stored_and_compared_with_what_the_model_says(asked, home):
    before = [
        read_metric(asked, f'darkroom_feedback_total{{agrees="{yes}",name="cifar10"}}') for yes in ("true", "false")
    ]
    response = give(asked, "red")
    assert response.status_code == 200
    assert response.json() == {"picture_sha256": SHA256, "label": "red", "model": "cifar10", "count": 1}
    assert (home / f"feedback/cifar10/red/{SHA256}.png").read_bytes() == paint("red")
    assert give(asked, "blue").json()["count"] == 1
    assert [path.name for path in home.glob("feedback/cifar10/*/*")] == [f"{SHA256}.png"]
    assert (home / f"feedback/cifar10/blue/{SHA256}.png").is_file()
    after = [
        read_metric(asked, f'darkroom_feedback_total{{agrees="{yes}",name="cifar10"}}') for yes in ("true", "false")
    ]
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 1]


def test_a_kept_image_is_named_by_its_hash(asked, home):
    data = paint("green", size=(31, 17))
    (prediction,) = asked.post("/v1/predict?model=food", content=data, headers=IMAGE).json()["predictions"]
    sha256 = prediction["picture_sha256"]
    assert sha256 == hashlib.sha256(data).hexdigest()
    wait_for((home / "requests/pictures" / sha256).is_file)
    answer = asked.post("/v1/feedback", json={"picture_sha256": sha256, "label": "yellow", "model": "food"})
    assert answer.json() == {"picture_sha256": sha256, "label": "yellow", "model": "food", "count": 1}
    assert (home / f"feedback/food/yellow/{sha256}.png").read_bytes() == data
    lines = [json.loads(line) for file in home.glob("requests/*.jsonl") for line in file.read_text().splitlines()]
    (line,) = [line for line in lines if line["picture_sha256"] == sha256]
    assert (line["model"], line["label"], line["is_kept"]) == ("food", "green", True)


@pytest.mark.parametrize("sha256", ["0" * 64, hashlib.sha256(b"").hexdigest()])
def test_an_image_that_is_not_kept(asked, sha256):
    response = asked.post("/v1/feedback", json={"picture_sha256": sha256, "label": "red", "model": "food"})
    assert refusal(response) == (404, "no_such_picture")
    assert "--keep-pictures" in response.json()["error"]["message"]


def test_a_kept_image_that_was_changed_is_not_taken(asked, home):
    file = home / "requests/pictures" / ("ab" * 32)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(paint("green"))
    response = asked.post("/v1/feedback", json={"picture_sha256": file.name, "label": "red", "model": "food"})
    assert refusal(response) == (404, "no_such_picture")


@pytest.mark.parametrize("sha256", ["../../bundles/cifar10/champion.json", "", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_hash_is_never_a_path(asked, sha256):
    response = asked.post("/v1/feedback", json={"picture_sha256": sha256, "label": "red", "model": "food"})
    assert refusal(response) == (422, "bad_parameter")


@pytest.mark.parametrize("label", ["mauve", "", "../red", "Red", "red/../../x", "\0", "ü" * 1000])
def test_a_label_must_be_one_of_the_classes(asked, home, label):
    response = give(asked, label)
    assert refusal(response) == (422, "bad_parameter")
    assert all(colour in response.json()["error"]["message"] for colour in COLOURS)
    assert {path.name for path in (home / "feedback/cifar10").iterdir()} <= set(COLOURS)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"content": b"{}", "headers": {"Content-Type": "application/json"}}, (422, "bad_parameter")),
        ({"content": b"no json", "headers": {"Content-Type": "application/json"}}, (422, "bad_parameter")),
        ({"content": b" " * 9000, "headers": {"Content-Type": "application/json"}}, (413, "too_large")),
        ({"json": {"picture_sha256": "0" * 64, "label": "red", "url": "http://127.0.0.1:1/"}}, (422, "bad_parameter")),
        ({"content": paint(), "headers": IMAGE}, (415, "wrong_type")),
        ({"content": b""}, (415, "wrong_type")),
        ({"files": FILE}, (422, "bad_parameter")),
        (
            {"files": {"image": ("a.png", b"garbage", "image/png")}, "data": {"label": "red", "model": "food"}},
            (400, "not_a_picture"),
        ),
        ({"files": [*FILE.items()] * 2, "data": {"label": "red"}}, (413, "too_large")),
        ({"files": FILE, "data": {"label": "x" * 5000}}, (413, "too_large")),
        ({"files": FILE, "data": {"label": ["red", "red"]}}, (422, "bad_parameter")),
        ({"files": FILE, "data": {"other": "red"}}, (422, "bad_parameter")),
        ({"files": {"label": ("a.png", paint(), "image/png")}}, (422, "bad_parameter")),
        ({"data": {"label": "red", "image": "http://127.0.0.1:1/a.png"}}, (415, "wrong_type")),
        ({"files": FILE, "data": {"label": "red", "model": "dogs"}}, (404, "no_such_model")),
        ({"files": {"image": ("a.png", bytes(10_000_001), "image/png")}, "data": {"label": "red"}}, (413, "too_large")),
    ],
)
def test_what_is_refused(asked, home, body, expected):
    before = sorted(home.glob("feedback/*/*/*"))
    assert refusal(asked.post("/v1/feedback", **body)) == expected
    assert sorted(home.glob("feedback/*/*/*")) == before
    assert give(asked, "red").status_code == 200, "the connection goes on"


def test_predictions_are_counted_against_what_the_model_was_measured_on(asked):
    files = [("image", ("a.png", paint("red"), "image/png"))] * 64
    for _ in range(4):
        assert asked.post("/v1/predict?model=cifar10", files=files).status_code == 200
    models = {model["name"]: model for model in asked.get("/v1/models").json()["models"]}
    assert 0 <= models["cifar10"]["drift_score"] < 0.1
    estimate = models["cifar10"]["estimated_accuracy"]
    assert 0 <= estimate["low"] <= estimate["accuracy_fraction"] <= estimate["high"] <= 1
    assert models["food"]["drift_score"] is None, "it has no calibration"
    assert models["food"]["estimated_accuracy"] is None
    between = httpx.Client(base_url=asked.base_url, trust_env=False)
    grey = paint_between("red", "yellow")
    for _ in range(2):
        assert between.post(
            "/v1/predict?model=cifar10", files=[("image", ("a.png", grey, "image/png"))] * 64
        ).is_success
    score = {model["name"]: model for model in between.get("/v1/models").json()["models"]}["cifar10"]["drift_score"]
    assert score > 0.25
    wait_for(lambda: read_metric(between, 'darkroom_drift_score{name="cifar10",version="3"}') == pytest.approx(score))
    between.close()


def paint_between(one, other):
    """An image whose mean is as far from one colour as from another: the model cannot tell."""
    from PIL import Image

    from tests.unit.serving.tiny_bundle import encode

    mean = tuple((a + b) // 2 for a, b in zip(COLOURS[one], COLOURS[other], strict=True))
    return encode(Image.new("RGB", (12, 12), mean))


def test_many_at_once_lose_nothing(asked, running, home):
    images = [paint("white", size=(20 + number, 9)) for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda data: give(asked, "black", data, model="food").status_code, images))
    assert answers == [200] * 40
    assert len(list((home / "feedback/food/black").iterdir())) == 40


def test_keys_guard_feedback_and_the_client_brings_one(tmp_path, start_service, monkeypatch):
    release(tmp_path / "bundles")
    keys, image = tmp_path / "keys.txt", tmp_path / "a.png"
    keys.write_text("0123456789abcdef\n")
    image.write_bytes(paint("red"))
    url = start_service(tmp_path, "--feedback", "--api-keys", keys).url
    with pytest.raises(ClientError, match="this service wants a key"):
        send_feedback(str(image), "red", url)
    assert not (tmp_path / "feedback").exists()
    monkeypatch.setenv("DARKROOM_API_KEY", "0123456789abcdef")
    assert send_feedback(str(image), "green", url).count == 1
    with pytest.raises(ClientError, match="none of cifar10's classes"):
        send_feedback(str(image), "mauve", url)
    with pytest.raises(ClientError, match="cannot be read"):
        send_feedback(str(tmp_path / "b.png"), "red", url)


def test_a_full_disk_refuses_feedback_and_answers_predictions(mount_disk, start_service):
    home = mount_disk("1m")
    release(home / "bundles")
    service = start_service(home, "--feedback", "--log-requests", "1", "--keep-pictures")
    with (home / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        response = give(client, "red")
        assert refusal(response) == (507, "not_stored")
        assert "No space left on device" in response.json()["error"]["message"]
        start_s = time.perf_counter()
        for _ in range(20):
            assert client.post("/v1/predict", content=paint(), headers=IMAGE).status_code == 200
        assert time.perf_counter() - start_s < 5
        wait_for(lambda: read_metric(client, "darkroom_request_log_dropped_total") == 20)
    assert sum("some requests are not logged" in line for line in service.log) == 1


def test_what_was_answered_before_the_end_is_logged(tmp_path, start_service):
    release(tmp_path / "bundles")
    service = start_service(tmp_path, "--log-requests", "1")
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        for _ in range(50):
            client.post("/v1/predict", content=paint(), headers=IMAGE)
    assert service.stop() == 0
    (file,) = (tmp_path / "requests").iterdir()
    assert len(file.read_text().splitlines()) == 50
