"""Memory and `/metrics` over many swaps and requests of mixed sizes: bounded, and no request fails.

`DARKROOM_SWAPS=1000 DARKROOM_REQUESTS=1000000` asks what the project promises; a few keep the whole suite short.
"""

import os
import random
import threading
import time

import httpx
import psutil
import pytest
from PIL import Image

from serving.limits import MAX_GONE_VERSIONS
from tests.contract.test_http import wait_for
from tests.unit.serving.tiny_bundle import COLOURS, encode, make_bundle, paint, point_at

pytestmark = pytest.mark.slow

SWAPS = int(os.environ.get("DARKROOM_SWAPS", "30"))
REQUESTS = int(os.environ.get("DARKROOM_REQUESTS", "5000"))
CLIENTS = 4
MAX_GROWTH_BYTES = 50_000_000
BUNDLES = 4
# By then allocator and threads have what they need, and as many versions are gone as are shown.
WARM_SHARE = 0.4
SMALL = [paint(colour) for colour in COLOURS]
ONE = (SMALL[0], {"Content-Type": "application/octet-stream"})
# Not cheap: decoded in a process of its own.
PHOTO = encode(Image.effect_noise((700, 500), 60).convert("RGB"), "JPEG")


def measure_bytes(process):
    """Return the resident bytes of a service and its helpers."""
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))


def draw_request(number):
    """Return the body and headers of a request: four of five have one image, the others up to 64."""
    chance = random.Random(number)
    kind = chance.random()
    if kind < 0.8:
        return PHOTO if kind < 0.02 else chance.choice(SMALL), {"Content-Type": "application/octet-stream"}
    images = [chance.choice(SMALL) for _ in range(chance.randint(2, 64))]
    form = httpx.Request("POST", "http://service", files=[("image", ("a.png", data, "image/png")) for data in images])
    return form.read(), {"Content-Type": form.headers["Content-Type"]}


def post(client, body, headers):
    return client.post("/v1/predict", content=body, headers=headers)


def test_memory_and_metrics_are_bounded_and_no_request_fails(tmp_path, start_service):
    assert int(SWAPS * WARM_SHARE) > MAX_GONE_VERSIONS + 1
    bundles_dir = tmp_path / "bundles"
    folders = [make_bundle(bundles_dir, softness=4000.0 + 500 * number) for number in range(BUNDLES)]
    point_at(bundles_dir, "cifar10", "1", folders[0])
    service = start_service(tmp_path, "--log-requests", "0.1")
    process = psutil.Process(service.process.pid)
    # Made before, so that a million of them cost the service's time and little of the client's.
    requests = [draw_request(number) for number in range(min(REQUESTS, 1000))]
    numbers, failures, done, refused = iter(range(REQUESTS)), [], [0], [0]
    lock = threading.Lock()

    def ask():
        with httpx.Client(base_url=service.url, timeout=60, trust_env=False) as client:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                request = requests[number % len(requests)]
                response = post(client, *request)
                while response.status_code == 503:  # told when to come back
                    refused[0] += 1
                    time.sleep(int(response.headers["Retry-After"]))
                    response = post(client, *request)
                with lock:
                    done[0] += 1
                    if response.status_code != 200:
                        failures.append((number, response.status_code, response.text[:200]))

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    sizes, lines = [], []
    with httpx.Client(base_url=service.url, timeout=60, trust_env=False) as client:
        for number in range(2, SWAPS + 2):
            wait_for(lambda: done[0] * SWAPS >= REQUESTS * (number - 2), 600)  # noqa: B023
            point_at(bundles_dir, "cifar10", str(number), folders[number % BUNDLES])
            wait_for(lambda: client.get("/v1/models").json()["models"][0]["version"] == str(number), 60)  # noqa: B023
            assert post(client, *ONE).json()["model"]["version"] == str(number)
            if number - 2 >= int(SWAPS * WARM_SHARE):
                sizes.append(measure_bytes(process))
                lines.append(len(client.get("/metrics").text.splitlines()))
        for thread in threads:
            thread.join()
        sizes.append(measure_bytes(process))
        text = client.get("/metrics").text
    assert failures == []
    assert refused[0] <= REQUESTS / 1000
    assert done[0] == REQUESTS
    assert max(sizes) - sizes[0] < MAX_GROWTH_BYTES, sizes
    # Less than one version has: one that served for a moment only may not have given every label.
    assert max(lines) - lines[0] < lines[0] / MAX_GONE_VERSIONS, lines
    versions = {line.split('version="')[1].split('"')[0] for line in text.splitlines() if 'version="' in line}
    assert len(versions - {""}) <= MAX_GONE_VERSIONS + 2, versions
    assert str(SWAPS + 1) in versions
