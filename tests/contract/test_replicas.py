"""Replicas behind nginx: a rolling restart fails no request, and each of them draws the canary.

`DARKROOM_REQUESTS=50000` restarts four replicas in turn; without it one of two is restarted.
"""

import os
import shutil
import socket
import subprocess
import threading

import httpx
import pytest

from serving.bundle.store import ChallengerReference, hash_file, write_challenger
from tests.contract.test_http import wait_for
from tests.unit.serving.tiny_bundle import COLOURS, make_bundle, paint, release

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
REQUESTS = int(os.environ.get("DARKROOM_REQUESTS", "600"))
REPLICAS = 4 if REQUESTS >= 10_000 else 2
RESTARTED = REPLICAS if REQUESTS >= 10_000 else 1
CLIENTS = 6
SHARE = 0.1
CONFIG = """
{user}daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  upstream replicas {{ {servers} }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://replicas; proxy_next_upstream error timeout http_503 non_idempotent; }}
  }}
}}
"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which(NGINX), reason="nginx is not installed")]


def find_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def replicas(tmp_path, start_service):
    """(port of the proxy, the services, function that starts one again)."""
    release(tmp_path / "bundles")
    folder = make_bundle(tmp_path / "bundles", softness=9000.0)
    sha256 = hash_file(folder / "manifest.json")
    canary = ChallengerReference(version="2", bundle=folder.name, manifest_sha256=sha256, share=SHARE)
    write_challenger(tmp_path / "bundles", "cifar10", canary)
    port, *ports = find_ports(REPLICAS + 1)

    def start(number):
        return start_service(tmp_path, "--port", ports[number], "--shadow-share", "0")

    services = [start(number) for number in range(REPLICAS)]
    servers = " ".join(f"server 127.0.0.1:{one} max_fails=1 fail_timeout=1s;" for one in ports)
    config = tmp_path / "nginx.conf"
    user = "user root; " if os.geteuid() == 0 else ""
    config.write_text(CONFIG.format(user=user, folder=tmp_path, port=port, servers=servers))
    process = subprocess.Popen([NGINX, "-p", str(tmp_path), "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        yield port, services, start
    finally:
        process.terminate()
        process.wait(20)


def is_open(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_a_rolling_restart_fails_no_request_and_the_canary_answers_its_share(replicas):
    port, services, start = replicas
    images = [paint(colour) for colour in COLOURS]
    answers, is_done = [], threading.Event()

    def ask():
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            while not (is_done.is_set() and len(answers) >= REQUESTS):
                image = images[len(answers) % len(images)]
                try:
                    response = client.post("/v1/predict", content=image, headers={"Content-Type": "image/png"})
                except httpx.HTTPError as error:
                    answers.append(repr(error))
                    continue
                answers.append(response.json()["model"]["version"] if response.status_code == 200 else response.text)

    wait_for(lambda: is_open(port))
    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        for number in range(RESTARTED):
            answered = len(answers)
            assert services[number].stop() == 0
            services[number] = start(number)
            wait_for(lambda: len(answers) > answered + 20)  # noqa: B023
    finally:
        is_done.set()
        for thread in threads:
            thread.join()
    assert set(answers) == {"1", "2"}
    # Of 50,000 the share is within a point, which is 7 standard deviations; of few within 5.
    tolerance = max(0.01, 5 * (SHARE * (1 - SHARE) / len(answers)) ** 0.5)
    assert answers.count("2") / len(answers) == pytest.approx(SHARE, abs=tolerance)
