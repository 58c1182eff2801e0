"""Worker processes: what they decode, refuse and survive, and what they may not do."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from serving.bundle.preprocess import FORMATS, decode_picture
from serving.decoding import pool as decoder_pool
from serving.decoding.pool import DecoderPool
from serving.decoding.worker import allow_cpu_s
from serving.errors import NotAnImageError, OverloadedError, ServingError, TooLargeError
from tests.unit.serving.image_bombs import all_bombs, bmps, compose, encode, measure, progressive

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
MOST_MEMORY_KB = 700_000
RUN_LENGTH_BOMB = "BMP, run-length, ends of lines"


@pytest.fixture
def pool():
    running = DecoderPool(1, allows_uncommon=True)
    yield running
    running.close()


def decode(pool, data=None):
    return pool.decode(data or encode(PHOTO, "PNG"), 32, 36, lambda _: None)


def wait_for(is_true, seconds):
    deadline = time.monotonic() + seconds
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_true()


@pytest.mark.parametrize("kind", FORMATS)
def test_workers_decode_the_same_pixels(pool, kind):
    data = encode(PHOTO, kind)
    assert np.array_equal(decode(pool, data), decode_picture(data, 32, 36))


def test_workers_decode_deep_and_mended_images_the_same(pool):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "x" * 2_000_000, zip=True)
    grey = np.asarray(PHOTO.convert("L"))
    for data in (
        encode(PHOTO, "JPEG")[:-2],
        encode(PHOTO, "PNG", pnginfo=texts),
        encode(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"),
        encode(Image.fromarray(grey.astype(np.uint16) * 16), "TIFF", tiffinfo={281: 4095}),
    ):
        assert np.array_equal(decode(pool, data), decode_picture(data, 32, 36))
    with pytest.raises(NotAnImageError, match="nearly black"):
        decode(pool, encode(Image.fromarray(grey.astype(np.uint16) * 16), "PNG"))


@pytest.mark.slow
def test_every_bomb_costs_no_more_than_its_pixels_allow(pool):
    killed = []
    for name, data in all_bombs():
        if name == RUN_LENGTH_BOMB:
            continue
        pid = pool.pids
        outcome, cpu_s, pixels = measure(pool, data)
        assert outcome == "decoded" or outcome.startswith(("NotAnImageError", "TooLargeError")), (name, outcome)
        # The kernel looks at the limit at its own ticks only.
        assert cpu_s <= 1.1 * allow_cpu_s(pixels) + 0.1, (name, outcome)
        killed += [name] if pool.pids != pid else []
    peak = next(line for line in Path(f"/proc/{pool.pids[0]}/status").read_text().splitlines() if "VmHWM" in line)
    assert int(peak.split()[1]) < MOST_MEMORY_KB
    # What the structure shows is refused before it is decoded: no process is lost over it.
    assert killed == []
    assert np.array_equal(decode(pool), decode_picture(encode(PHOTO, "PNG"), 32, 36))


@pytest.mark.slow
def test_costly_images_behind_costly_beginnings_cost_no_more_than_their_pixels_allow(pool):
    decoded = set()
    for name, data in compose():
        outcome, cpu_s, pixels = measure(pool, data)
        assert outcome == "decoded" or outcome.startswith(("NotAnImageError", "TooLargeError")), (name, outcome)
        assert cpu_s <= 1.1 * allow_cpu_s(pixels) + 0.1, (name, outcome)
        decoded |= {name.split(",")[0]} if outcome == "decoded" else set()
    # The beginnings do not only damage the files.
    assert decoded >= {"JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"}
    assert np.array_equal(decode(pool), decode_picture(encode(PHOTO, "PNG"), 32, 36))


def test_what_exceeds_its_cpu_time_is_ended_and_named(pool):
    # Pillow reads comments byte by byte, before any size is known.
    comments = b"#\n" * 9_000_000
    with pytest.raises(TooLargeError, match=r"more than the 1\.0 s of CPU time that its pixels allow"):
        decode(pool, b"P3 " + comments + b"9 9 255 " + b"1 " * 243)
    assert decode(pool).shape == (32, 32, 3)


def test_a_killed_worker_is_not_blamed_on_the_image(pool):
    def kill(_):
        os.kill(pool.pids[0], signal.SIGKILL)

    with pytest.raises(OverloadedError, match="the decoding process ended"):
        pool.decode(encode(PHOTO, "PNG"), 32, 32, kill)
    assert decode(pool).shape == (32, 32, 3)


def test_a_worker_that_died_idle_is_replaced_before_the_next_image(pool):
    decode(pool)
    before = pool.pids
    os.kill(before[0], signal.SIGKILL)
    assert wait_for(lambda: Path(f"/proc/{before[0]}/stat").read_text().split()[2] == "Z" or pool.pids != before, 5)
    assert decode(pool).shape == (32, 32, 3)
    assert pool.pids != before


@pytest.mark.slow
def test_a_stopped_worker_is_noticed_and_replaced(pool):
    decode(pool)
    before = pool.pids
    os.kill(before[0], signal.SIGSTOP)
    assert wait_for(lambda: pool.pids not in (before, []), 60)
    assert decode(pool).shape == (32, 32, 3)


def test_no_worker_outlives_a_killed_service_not_even_a_stopped_one():
    code = "from serving.decoding.pool import DecoderPool; pool = DecoderPool(1); pool._greet(pool._workers[0]); "
    code += "print(pool.pids[0], flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as service:
        pid = int(service.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        service.kill()
    try:
        # Nobody may collect it where the first process of a container does not.
        assert wait_for(lambda: not is_there(pid), 5)
    finally:
        if is_there(pid):
            os.kill(pid, signal.SIGKILL)


def is_there(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def unwatched(monkeypatch):
    """A pool that nothing but the test talks to."""
    monkeypatch.setattr(decoder_pool, "WATCH_INTERVAL_S", 600.0)
    running = DecoderPool(1)
    decode(running)
    yield running
    running.close()


def test_a_stopped_worker_is_noticed_after_one_idle_timeout(unwatched, monkeypatch):
    pool = unwatched
    (worker,) = pool._workers
    monkeypatch.setattr(decoder_pool, "IDLE_TIMEOUT_S", 1.0)
    waits, real = [], decoder_pool.select.select

    def count(*arguments):
        waits.append(arguments[3])
        return real(*arguments)

    monkeypatch.setattr(decoder_pool.select, "select", count)
    os.kill(pool.pids[0], signal.SIGSTOP)
    assert wait_for(lambda: Path(f"/proc/{pool.pids[0]}/stat").read_text().split()[2] == "T", 5)
    with pytest.raises(TimeoutError):
        worker.ping()
    assert waits == [1.0]


def test_refusals_and_killed_workers_are_signs_of_life(unwatched):
    pool = unwatched
    for data in (b"junk", encode(PHOTO, "JPEG")[:2] + b"\xff" * 9_000_000):
        for worker in pool._workers:
            worker.heard_s -= 100
        assert pool.count_silent_s() > 50
        with pytest.raises(ServingError):
            decode(pool, data)
        with pytest.raises(ServingError):
            decode(pool, b"junk")
        assert pool.count_silent_s() < 50


def test_no_room_is_the_error_of_who_has_none(pool):
    def refuse(pixels):
        raise TooLargeError(f"{pixels} pixels are too many")

    decode(pool)
    before = pool.pids
    with pytest.raises(TooLargeError, match="120000 pixels are too many"):
        pool.decode(encode(PHOTO, "PNG"), 32, 32, refuse)
    assert pool.pids == before


def test_close_does_not_wait_for_an_image():
    pool = DecoderPool(1, allows_uncommon=True)
    decode(pool)
    has_begun, errors = threading.Event(), []

    def ask():
        try:
            pool.decode(dict(bmps())[RUN_LENGTH_BOMB], 32, 32, lambda _: has_begun.set())
        except OverloadedError as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert has_begun.wait(20)
    pool.close()
    asking.join(30)
    # At its end the image would have been refused as too costly.
    assert ["ended" in str(error) for error in errors] == [True]


def test_a_shortage_of_memory_is_not_blamed_on_the_image(monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "copy", fail)
    with pytest.raises(OverloadedError, match="not enough memory"):
        decode_picture(encode(PHOTO, "PNG"), 8)


def test_a_process_that_cannot_be_started_is_overload(monkeypatch):
    def fail(*_, **__):
        raise OSError("Resource temporarily unavailable")

    monkeypatch.setattr(decoder_pool.subprocess, "Popen", fail)
    pool = DecoderPool(1)
    with pytest.raises(OverloadedError, match="no decoding process could be started"):
        decode(pool)
    pool.close()


def test_progressive_images_of_many_scans_are_refused_at_once(pool):
    outcome, cpu_s, _ = measure(pool, progressive(3_500, 1_000))
    assert "JPEG scans" in outcome
    assert cpu_s < 0.5
