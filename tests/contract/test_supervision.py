"""Dead, stopped and busy parts of the running service, as a client sees them."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.exceptions import HTTPException

from tests.contract.conftest import Service
from tests.unit.serving.image_bombs import bmps, encode
from tests.unit.serving.tiny_bundle import paint, release

pytestmark = pytest.mark.slow

PNG, BMP = {"Content-Type": "image/png"}, {"Content-Type": "image/bmp"}
BOMB = dict(bmps())["BMP, run-length, ends of lines"]
# As large as an ordinary image may be, and transparent: some tenths of a second.
ORDINARY = encode(Image.new("RGBA", (2048, 2048), (90, 60, 30, 128)), "PNG")
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 1_200, 3), dtype=np.uint8))


def list_children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def list_workers(pid):
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


def has_ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def is_answered(url, data=None):
    try:
        answer = httpx.post(f"{url}/v1/predict", content=data or paint(), headers=PNG, timeout=5, trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def wait_for(is_true, seconds):
    deadline = time.monotonic() + seconds
    while not (result := is_true()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return result


@pytest.fixture
def busy(tmp_path, start_service):
    """A service whose decoding processes are all kept busy with images that take their whole CPU time."""
    release(tmp_path / "bundles")
    service = start_service(tmp_path, "--uncommon-formats")
    assert is_answered(service.url)

    is_over = threading.Event()

    def send(bomb, is_refused):
        with httpx.Client(timeout=60, trust_env=False) as client, contextlib.suppress(httpx.HTTPError):
            while not is_over.is_set():
                answer = client.post(f"{service.url}/v1/predict", content=bomb, headers=BMP)
                if answer.status_code == 503:
                    is_refused.set()

    refusals = [threading.Event() for _ in range(2)]
    threads = [
        threading.Thread(target=send, args=(bomb, is_refused), daemon=True)
        for bomb, is_refused in zip((BOMB, ORDINARY), refusals, strict=True)
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    assert all(is_refused.wait(60) for is_refused in refusals)
    yield service
    is_over.set()
    if service.process.poll() is None:
        # They hold its output open until their image is done.
        for process in list_workers(service.process.pid):
            os.kill(process, signal.SIGKILL)
        service.stop(signal.SIGKILL)
    for thread in threads:
        thread.join(20)


def test_photographs_are_answered_or_refused_at_once_while_costly_ones_are_decoded(busy):
    taken_s = []
    with httpx.Client(timeout=20, trust_env=False) as client:
        for _ in range(10):
            start_s = time.monotonic()
            answer = client.post(f"{busy.url}/v1/predict", content=encode(PHOTO, "JPEG"), headers=BMP)
            if answer.status_code != 200:
                assert (answer.status_code, answer.headers["retry-after"].isdecimal()) == (503, True)
                taken_s.append(time.monotonic() - start_s)
    # A machine with other work to do may delay some of them, or leave time for others.
    assert not taken_s or sorted(taken_s)[len(taken_s) // 2] < 1


def test_small_images_are_answered_while_costly_ones_are_decoded(busy):
    assert is_answered(busy.url)
    assert httpx.get(f"{busy.url}/livez", timeout=5, trust_env=False).status_code == 200
    assert httpx.get(f"{busy.url}/readyz", timeout=5, trust_env=False).status_code == 200


def test_sigterm_ends_it_whatever_is_decoded(busy):
    start_s = time.monotonic()
    assert busy.stop(signal.SIGTERM) == 0
    assert time.monotonic() - start_s < 12 + 3, "the limit, and what a busy machine needs to end a process"


def test_without_the_option_the_bomb_is_refused_at_once(service, client):
    response = client.post("/v1/predict", content=BOMB, headers=BMP)
    assert response.status_code == 400
    assert "uncommon compression" in response.json()["error"]["message"]


def test_a_folder_of_temporary_files_that_is_emptied_does_not_matter(tmp_path):
    release(tmp_path / "home" / "bundles")
    folder = tmp_path / "tmp"
    folder.mkdir()
    service = Service(tmp_path / "home", TMPDIR=str(folder))
    try:
        assert is_answered(service.url)
        assert [file for file in folder.rglob("*.db") if file.is_file()] == []
        os.rename(folder, tmp_path / "gone")  # noqa: PTH104
        assert is_answered(service.url)
        metrics = httpx.get(f"{service.url}/metrics", timeout=5, trust_env=False).text
        assert 'darkroom_requests_total{route="/v1/predict",status="200"} 2.0' in metrics
    finally:
        assert service.stop() == 0


def test_a_full_disk_of_temporary_files_does_not_matter(tmp_path, mount_disk):
    release(tmp_path / "home" / "bundles")
    folder = mount_disk("1m")
    service = Service(tmp_path / "home", TMPDIR=str(folder))
    try:
        with (folder / "filler").open("wb") as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(65_536))
                filler.flush()
        with pytest.raises(OSError, match="No space left"):
            (folder / "more").write_bytes(bytes(65_536))
        (folder / "more").unlink(missing_ok=True)
        for _ in range(5):
            assert is_answered(service.url)
            assert is_answered(service.url, ORDINARY), "decoded by a process"
        metrics = httpx.get(f"{service.url}/metrics", timeout=5, trust_env=False).text
        assert 'darkroom_requests_total{route="/v1/predict",status="200"} 10.0' in metrics
    finally:
        assert service.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_supervised_service_is_started_again(tmp_path, start_service, number):
    release(tmp_path / "bundles")
    supervisor = start_service(tmp_path, "--supervise")
    (before,) = list_children(supervisor.process.pid)
    os.kill(before, number)
    assert wait_for(lambda: list_children(supervisor.process.pid) not in ([before], []), 30)
    assert wait_for(lambda: is_answered(supervisor.url), 60)
    assert supervisor.stop() == 0


async def ask(app, path):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await client.get(path)


@pytest.mark.filterwarnings("ignore:bentoml.metrics")
def test_a_dead_thread_is_told_and_named(monkeypatch, tmp_path):
    release(tmp_path / "bundles")
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    from serving import service  # which reads the environment

    darkroom = service.Darkroom.inner()
    try:
        assert asyncio.run(darkroom.__is_alive__())
        # Not an Exception: those end no thread.
        monkeypatch.setattr(darkroom._models, "refresh", sys.exit)
        assert wait_for(lambda: not darkroom._models.is_alive, 30)
        with pytest.raises(HTTPException, match="a thread that follows releases or the registry hangs or has ended"):
            asyncio.run(darkroom.__is_alive__())
        answer = asyncio.run(ask(service.app, "/v2/health/live"))
        assert (answer.status_code, "hangs or has ended" in answer.json()["error"]) == (503, True)
    finally:
        darkroom._api.close()


def test_a_service_ends_with_its_supervisor(tmp_path, start_service):
    release(tmp_path / "bundles")
    supervisor = start_service(tmp_path, "--supervise")
    (service,) = list_children(supervisor.process.pid)
    supervisor.stop(signal.SIGKILL)
    assert wait_for(lambda: has_ended(service), 30)


def test_a_service_that_cannot_start_is_not_started_again(tmp_path):
    with pytest.raises(AssertionError, match="no model is released"):
        Service(tmp_path, "--supervise")
