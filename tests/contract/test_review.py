"""The review queue, asked of the real service: its order and bounds, and that it shows strangers nothing."""

import base64
import hashlib
import json
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress

import httpx
import psutil
import pytest
from PIL import Image

from serving.http.review_api import MAX_REVIEW_BYTES, MAX_REVIEW_IMAGES
from serving.limits import MAX_HELD_BYTES, MAX_IMAGE_BYTES
from tests.contract.conftest import ROOT
from tests.contract.test_http import refusal, wait_for
from tests.unit.serving.tiny_bundle import COLOURS, encode, paint, release

IMAGE = {"Content-Type": "image/png"}
KEEPING = ("--log-requests", "1", "--keep-pictures", "--feedback")
# From hardly sure to sure.
REDS = (128, 150, 180, 210, 240)


@pytest.fixture
def home(tmp_path):
    release(tmp_path / "bundles", "cifar10", "3")
    return tmp_path


def paint_red(red, size=(12, 9), **options):
    return encode(Image.new("RGB", size, (red, 0, 0)), **options)


def predict(client, home, *images):
    for data in images:
        assert client.post("/v1/predict", content=data, headers=IMAGE).status_code == 200
    wait_for(lambda: all((home / "requests/pictures" / hash_of(data)).is_file() for data in images))
    wait_for(lambda: count_lines(home) >= len(images))


def count_lines(home):
    return sum(len(file.read_bytes().splitlines()) for file in home.glob("requests/*.jsonl"))


def hash_of(data):
    return hashlib.sha256(data).hexdigest()


def read_to_the_end(connection):
    """Return the number of bytes until the end, or until nothing comes for a second."""
    connection.settimeout(1)
    size = 0
    with suppress(OSError):
        while piece := connection.recv(1_000_000):
            size += len(piece)
    return size


def review(client, after=None, **more):
    response = client.post("/v1/review", json={"after": after} | more)
    assert response.status_code == 200, response.text
    return response.json()


def connect(service, **options):
    return httpx.Client(base_url=service.url, timeout=30, trust_env=False, **options)


def test_the_least_sure_come_first_until_they_have_a_label(home, start_service):
    images = [paint_red(red) for red in REDS]
    with connect(start_service(home, *KEEPING, "--review")) as client:
        predict(client, home, *reversed(images))
        answer = review(client)
        assert (answer["model"], answer["left"], answer["next"]) == ("cifar10", 0, None)
        entries = answer["entries"]
        probabilities = [one["probability"] for one in entries]
        assert probabilities == sorted(probabilities)
        assert {one["picture_sha256"] for one in entries} == {hash_of(data) for data in images}
        for one in entries:
            assert hash_of(base64.b64decode(one["image"])) == one["picture_sha256"]
            assert one["top"][0] == {"label": one["label"], "probability": pytest.approx(one["probability"], abs=1e-5)}
            assert {each["label"] for each in one["top"]} == set(COLOURS)
        first = entries[0]["picture_sha256"]
        given = client.post("/v1/feedback", json={"picture_sha256": first, "label": "black", "model": "cifar10"})
        assert given.status_code == 200
        assert [one["picture_sha256"] for one in review(client)["entries"]] == [
            one["picture_sha256"] for one in entries[1:]
        ]
        assert refusal(client.post("/v1/review", json={"model": "food"})) == (404, "no_such_model")


def test_an_answer_has_a_bounded_number_of_images_and_the_next_goes_on_behind_them(home, start_service):
    images = [paint_red(red) for red in range(100, 100 + MAX_REVIEW_IMAGES + 3)]
    with connect(start_service(home, *KEEPING, "--review")) as client:
        predict(client, home, *images)
        first = review(client)
        assert (len(first["entries"]), first["left"]) == (MAX_REVIEW_IMAGES, 3)
        second = review(client, first["next"])
        assert (len(second["entries"]), second["left"], second["next"]) == (3, 0, None)
        seen = [one["picture_sha256"] for one in first["entries"] + second["entries"]]
        assert sorted(seen) == sorted(map(hash_of, images))


def test_an_answer_has_a_bounded_size(home, start_service):
    images = [paint_red(red, size=(2, 2), kind="BMP") + bytes(MAX_REVIEW_BYTES // 2) for red in (200, 210, 220)]
    assert max(map(len, images)) <= MAX_IMAGE_BYTES < sum(map(len, images[:2]))
    with connect(start_service(home, *KEEPING, "--review")) as client:
        predict(client, home, *images)
        after, found = None, []
        for left in (2, 1, 0):
            answer = review(client, after)
            assert (len(answer["entries"]), answer["left"]) == (1, left)
            found.append(answer["entries"][0]["picture_sha256"])
            after = answer["next"]
        assert after is None
        assert sorted(found) == sorted(map(hash_of, images))


@pytest.mark.slow
def test_answers_that_nobody_reads_hold_a_bounded_part_of_the_memory(home, start_service):
    image = paint_red(200, size=(2, 2), kind="BMP") + bytes(MAX_REVIEW_BYTES - 100)
    service = start_service(home, *KEEPING, "--review")
    process = psutil.Process(service.process.pid)
    processes = [process, *process.children(recursive=True)]
    address = httpx.URL(service.url)
    head = f"POST /v1/review HTTP/1.1\r\nHost: {address.netloc.decode()}\r\nContent-Type: application/json\r\n"
    with connect(service) as client, ExitStack() as stack:
        predict(client, home, image)
        before = sum(one.memory_info().rss for one in processes)
        silent = []
        for _ in range(40):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect((address.host, address.port))
            one.sendall(f"{head}Content-Length: 2\r\n\r\n{{}}".encode())
            assert one.recv(12) == b"HTTP/1.1 200"
            silent.append(one)
        assert sum(one.memory_info().rss for one in processes) - before < 1.5 * MAX_HELD_BYTES
        large = paint_red(100, size=(2, 2), kind="BMP") + bytes(5_000_000)
        for data in (paint(), large):
            assert client.post("/v1/predict", content=data, headers=IMAGE).status_code == 200
        sizes = [read_to_the_end(one) for one in silent]
        whole = [size for size in sizes if size > 4 / 3 * len(image)]
        assert 0 < len(whole) <= MAX_HELD_BYTES / (4 / 3 * len(image)), "the oldest were given up for the others"
        assert sizes[-1] in whole
        assert client.post("/v1/review", json={}).status_code == 200


def test_images_that_are_gone_or_were_changed_are_passed_over(home, start_service):
    gone, changed, there = (paint_red(red) for red in (150, 160, 170))
    with connect(start_service(home, *KEEPING, "--review")) as client:
        predict(client, home, gone, changed, there)
        (home / "requests/pictures" / hash_of(gone)).unlink()
        (home / "requests/pictures" / hash_of(changed)).write_bytes(paint("blue"))
        answer = review(client)
    assert [one["picture_sha256"] for one in answer["entries"]] == [hash_of(there)]


def test_what_is_left_counts_images_that_can_still_be_shown(home, start_service):
    images = [paint_red(red) for red in range(100, 100 + MAX_REVIEW_IMAGES + 3)]
    with connect(start_service(home, *KEEPING, "--review")) as client:
        predict(client, home, *images)
        shown = {one["picture_sha256"] for one in review(client)["entries"]}
        first, *others = sorted({hash_of(data) for data in images} - shown)
        (home / "requests/pictures" / first).unlink()
        answer = review(client)
        assert answer["left"] == len(others)
        assert len(review(client, answer["next"])["entries"]) == len(others)
        for name in others:
            (home / "requests/pictures" / name).unlink()
        answer = review(client)
        assert (len(answer["entries"]), answer["left"], answer["next"]) == (MAX_REVIEW_IMAGES, 0, None)


@pytest.mark.parametrize("options", [(), KEEPING], ids=["nothing is kept", "images are kept"])
def test_no_image_is_shown_unless_asked_for(home, start_service, options):
    with connect(start_service(home, *options)) as client:
        client.post("/v1/predict", content=paint(), headers=IMAGE)
        response = client.post("/v1/review", json={})
        assert refusal(response) == (404, "review_off")
        assert "--keep-pictures" in response.json()["error"]["message"]
        assert client.get("/v1/models").status_code == 200, "the connection goes on"


@pytest.mark.parametrize(
    ("options", "reached"),
    [
        (("--host", "0.0.0.0"), "0.0.0.0"),
        (("--allow-host", "photos.example.org"), "photos.example.org"),
        (("--allow-origin", "https://example.org"), "https://example.org"),
        (("--root-path", "/ml/darkroom"), "/ml/darkroom"),
    ],
)
def test_a_service_that_others_reach_shows_images_only_with_keys(home, options, reached):
    command = [sys.executable, "-m", "serving.launcher", "--port", "0", "--home", str(home), *KEEPING, "--review"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert f"everybody who reaches {reached}: give --api-keys FILE too" in " ".join(done.stderr.split())


def test_a_review_needs_what_it_shows_and_stores(home):
    command = [sys.executable, "-m", "serving.launcher", "--home", str(home), "--log-requests", "1", "--review"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "give --log-requests SHARE, --keep-pictures and --feedback too" in " ".join(done.stderr.split())


def test_keys_and_origins_guard_the_images(home, start_service):
    keys = home / "keys.txt"
    keys.write_text("a-key-of-the-service\n")
    service = start_service(home, *KEEPING, "--review", "--api-keys", keys)
    with connect(service) as client:
        assert refusal(client.post("/v1/review", json={})) == (401, "unauthorized")
        allowed = {"X-API-Key": "a-key-of-the-service"}
        assert client.post("/v1/review", json={}, headers=allowed).status_code == 200
        foreign = allowed | {"Origin": "https://evil.example"}
        assert refusal(client.post("/v1/review", json={}, headers=foreign)) == (403, "foreign_page")
        assert client.get("/v1/review", headers=allowed).status_code == 405, "browsers state the origin of a POST"


def test_a_page_under_a_name_that_was_made_to_resolve_to_the_service_sees_nothing(home, start_service):
    service = start_service(home, *KEEPING, "--review")
    rebound = {"Host": "evil.example:3000", "Origin": "http://evil.example:3000"}
    with connect(service) as client:
        assert refusal(client.post("/v1/review", json={}, headers=rebound)) == (403, "foreign_page")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"content": b"{}"}, (415, "wrong_type")),
        ({"json": []}, (422, "bad_parameter")),
        ({"json": {"limit": 10_000}}, (422, "bad_parameter")),
        ({"json": {"after": {"probability": 2, "picture_sha256": "0" * 64}}}, (422, "bad_parameter")),
        ({"json": {"after": {"probability": False, "picture_sha256": "0" * 64}}}, (422, "bad_parameter")),
        ({"json": {"after": {"probability": 0, "picture_sha256": "../keys"}}}, (422, "bad_parameter")),
        ({"content": b" " * 5000, "headers": {"Content-Type": "application/json"}}, (413, "too_large")),
        (
            {"content": json.dumps({}).encode()[:1], "headers": {"Content-Type": "application/json"}},
            (422, "bad_parameter"),
        ),
    ],
)
def test_what_is_refused(reviewing, body, expected):
    assert refusal(reviewing.post("/v1/review", **body)) == expected
    assert reviewing.post("/v1/review", json={}).status_code == 200, "the connection goes on"


@pytest.fixture(scope="module")
def reviewing(tmp_path_factory):
    from tests.contract.conftest import Service

    home = tmp_path_factory.mktemp("home")
    release(home / "bundles", "cifar10", "3")
    service = Service(home, *KEEPING, "--review")
    with connect(service) as client:
        yield client
    service.stop()
    assert not [line for line in service.log if "Traceback" in line or "ERROR" in line], service.log
