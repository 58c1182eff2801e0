"""Models are swapped under load: no request fails, and no answer mixes two models.

DARKROOM_SWAPS=30 swaps as often as the project promises to survive; a few keep the whole suite short.
"""

import os
import threading
import time

import httpx
import pytest
from PIL import Image

from serving.bundle.store import MODEL_FILE
from serving.models.classifier import Classifier
from tests.unit.serving.tiny_bundle import encode, make_bundle, make_two_variants, point_at

pytestmark = pytest.mark.slow

SWAPS = int(os.environ.get("DARKROOM_SWAPS", "4"))
CORRUPTED = max(1, SWAPS // 6)
CLIENTS = 8
# Between the classes: its probability tells the models apart.
IMAGE = encode(Image.new("RGB", (12, 9), (140, 90, 60)))


@pytest.fixture
def versions(tmp_path):
    """{version: (folder, probability of the image)} of bundles that answer differently."""
    found = {}
    for number in range(1, SWAPS + 2):
        folder = make_bundle(tmp_path / "bundles", softness=4000.0 + 500 * number)
        classifier = Classifier(folder, str(number))
        found[str(number)] = folder, float(classifier.classify(classifier.decode(IMAGE)[None]).max())
    assert len({round(probability, 5) for _, probability in found.values()}) == SWAPS + 1
    return found


def test_no_request_fails_and_every_answer_is_of_one_model(tmp_path, start_service, versions):
    bundles_dir = tmp_path / "bundles"
    point_at(bundles_dir, "cifar10", "1", versions["1"][0])
    service = start_service(tmp_path)
    answers, is_done = [], threading.Event()

    def ask():
        with httpx.Client(base_url=service.url, timeout=30, trust_env=False) as client:
            while not is_done.is_set():
                response = client.post("/v1/predict", content=IMAGE, headers={"Content-Type": "image/png"})
                answers.append((response.status_code, response.json()))

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        with httpx.Client(base_url=service.url, timeout=30, trust_env=False) as client:
            for number in range(2, SWAPS + 2):
                if (number - 2) % max(1, SWAPS // CORRUPTED) == 0:
                    refuse_a_corrupted_one(client, bundles_dir, number)
                point_at(bundles_dir, "cifar10", str(number), versions[str(number)][0])
                wait_for(lambda: str(number) in [body["model"]["version"] for _, body in answers[-100:]])  # noqa: B023
    finally:
        is_done.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in answers} == {200}
    served = [body["model"]["version"] for _, body in answers]
    assert set(served) == set(versions), "each version has answered, and no corrupted one"
    for _, body in answers:
        expected = versions[body["model"]["version"]][1]
        assert body["predictions"][0]["probability"] == pytest.approx(expected, abs=1e-6)


def refuse_a_corrupted_one(client, bundles_dir, number):
    """Each second one is whole, and answers its golden images otherwise than at its release."""
    if number % 4:
        folder, why = (
            make_two_variants(bundles_dir, fp32_golden_error=0.5, softness=50_000.0 + number),
            "golden images",
        )
    else:
        folder, why = make_bundle(bundles_dir, softness=50_000.0 + number), "was changed after"
        with (folder / MODEL_FILE).open("r+b") as file:
            file.seek(200)
            file.write(b"\xff\xff\xff")
    point_at(bundles_dir, "cifar10", str(1000 + number), folder)
    wait_for(lambda: why in str(client.get("/v1/models").json()["problems"]))


def wait_for(condition, timeout_s=20.0):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.05)
