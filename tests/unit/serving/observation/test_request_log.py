import hashlib
import json
import os
import threading
import time
from datetime import UTC, datetime

import pytest

from serving.decoding.encoded import EncodedImage
from serving.models.predictions import ModelIdentity, PredictAnswer, Prediction
from serving.observation import request_log
from serving.observation.request_log import RequestLog, is_sampled


def make_images(count, size=100, start=0):
    return [EncodedImage(number.to_bytes(4, "big") * (size // 4), None) for number in range(start, start + count)]


def answer_to(images):
    return PredictAnswer(
        model=ModelIdentity(name="cifar10", version="3", sha256="ab", precision="int8"),
        provider="CPUExecutionProvider",
        predictions=[
            Prediction(filename="a.png", label="cät", probability=0.75, is_confident=False, top=()) for _ in images
        ],
    )


def log_all(log, images):
    log.add(answer_to(images), images)
    log.close()


def read_lines(folder):
    text = "".join(file.read_text() for file in sorted(folder.glob("*.jsonl")))
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_says_what_was_answered(tmp_path):
    log = RequestLog(tmp_path / "requests", 1)
    (image,) = make_images(1)
    log_all(log, [image])
    (line,) = read_lines(tmp_path / "requests")
    assert (tmp_path / "requests").stat().st_mode & 0o777 == 0o700, "images of other people"
    assert abs((datetime.now(UTC) - datetime.fromisoformat(line.pop("time"))).total_seconds()) < 30
    assert len(line.pop("request")) == 16
    assert line == {
        "is_drawn": True,
        "picture_sha256": hashlib.sha256(image.data).hexdigest(),
        "model": "cifar10",
        "version": "3",
        "model_sha256": "ab",
        "precision": "int8",
        "label": "cät",
        "probability": 0.75,
        "is_confident": False,
        "is_kept": False,
    }
    assert [path.name for path in (tmp_path / "requests").iterdir()] == [f"{datetime.now(UTC).date()}.jsonl"]


def test_images_are_kept_when_asked_for_each_once(tmp_path):
    images = make_images(3)
    log_all(RequestLog(tmp_path, 1, keeps_images=True), [*images, *images])
    lines = read_lines(tmp_path)
    assert len(lines) == 6
    assert all(line["is_kept"] for line in lines)
    assert {file.name: file.read_bytes() for file in (tmp_path / "pictures").iterdir()} == {
        image.sha256: image.data for image in images
    }


def test_the_sample_has_its_size_and_an_image_is_always_in_or_out(tmp_path):
    images = make_images(4000)
    log = RequestLog(tmp_path, 0.1)
    log.add(answer_to(images), images)
    log_all(log, images)
    hashes = [line["picture_sha256"] for line in read_lines(tmp_path)]
    assert 330 < len(set(hashes)) < 470
    assert len(hashes) == 2 * len(set(hashes))
    assert all(is_sampled(one, 0.2) for one in hashes)
    assert is_sampled("f" * 64, 1)
    assert not is_sampled("0" * 64, 0)


def test_a_full_disk_is_told_once_and_delays_nothing(mount_disk, caplog):
    folder = mount_disk("1m")
    dropped = []
    log = RequestLog(folder / "requests", 1, keeps_images=True, on_drop=dropped.append)
    start_s = time.perf_counter()
    for number in range(20):
        images = make_images(2, size=100_000, start=2 * number)
        log.add(answer_to(images), images)
    assert time.perf_counter() - start_s < 1
    log.close()
    assert 20 < log.dropped == sum(dropped) < 40
    assert [record.getMessage().split(": ")[-1] for record in caplog.records] == ["No space left on device"]
    lines = read_lines(folder / "requests")
    assert len(lines) == 40 - log.dropped
    kept = {file.name for file in (folder / "requests" / "pictures").iterdir()}
    assert kept == {line["picture_sha256"] for line in lines}
    assert all((folder / "requests/pictures" / name).stat().st_size == 100_000 for name in kept)


def test_a_folder_that_cannot_be_made_costs_nothing_else(tmp_path, caplog):
    (tmp_path / "requests").write_text("a file")
    log = RequestLog(tmp_path / "requests", 1)
    log.add(answer_to([]), [])
    for _ in range(3):
        log.add(answer_to(make_images(1)), make_images(1))
        time.sleep(0.02)
    log.close()
    assert log.dropped == 3
    assert len(caplog.records) == 1


def test_a_disk_that_hangs_delays_no_answer(tmp_path, monkeypatch):
    free = threading.Event()
    monkeypatch.setattr(request_log, "_append", lambda *_: free.wait(30) and 0)
    log = RequestLog(tmp_path, 1, keeps_images=True)
    images = make_images(64, size=100_000)
    start_s = time.perf_counter()
    for _ in range(100):
        log.add(answer_to(images), images)
    assert time.perf_counter() - start_s < 2
    # At most one batch is being written beside what is queued.
    assert log._queued_bytes <= request_log._MAX_QUEUED_BYTES
    assert log.dropped > 0
    free.set()
    log.close()


def test_a_hung_disk_is_told_and_what_would_wait_for_it_is_left_out(tmp_path, monkeypatch, caplog):
    free = threading.Event()
    monkeypatch.setattr(request_log, "_append", lambda *_: free.wait(30) and 0)
    monkeypatch.setattr(request_log, "_HUNG_S", 0.2)
    log = RequestLog(tmp_path, 1)
    log.add(answer_to(make_images(1)), make_images(1))
    time.sleep(0.5)
    log.add(answer_to(make_images(3)), make_images(3))
    assert log.dropped == 3
    assert "the disk has not answered for 0.2 s" in caplog.text
    free.set()
    log.close()


def test_a_large_folder_on_a_slow_disk_does_not_count_as_a_hung_disk(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    for number in range(50):
        (tmp_path / "pictures" / str(number)).write_bytes(b"x")
    measured = threading.Event()

    def count(status):
        time.sleep(0.02)
        measured.set()
        return 4096

    monkeypatch.setattr(request_log, "count_disk_bytes", count)
    monkeypatch.setattr(request_log, "_HUNG_S", 0.4)
    log = RequestLog(tmp_path, 1)
    log.add(answer_to(make_images(1)), make_images(1))
    assert measured.wait(10)
    time.sleep(0.6)
    log.add(answer_to(make_images(2, start=5)), make_images(2, start=5))
    log.close()
    assert (log.dropped, len(read_lines(tmp_path))) == (0, 3)


def test_an_error_that_nobody_expected_costs_its_own_lines_only(tmp_path, caplog):
    log = RequestLog(tmp_path, 1)
    wrong = answer_to(make_images(1))
    wrong = wrong.model_copy(update={"model": wrong.model.model_copy(update={"version": "\udc80"})})
    log.add(wrong, make_images(1))
    while not log.dropped:
        time.sleep(0.01)
    log_all(log, make_images(2, start=5))
    assert (log.dropped, len(read_lines(tmp_path))) == (1, 2)
    assert "UnicodeEncodeError" in caplog.text


def test_the_oldest_files_make_room(tmp_path):
    folder = tmp_path / "requests"
    (folder / "pictures").mkdir(parents=True)
    for age_days, name in enumerate(("2026-01-03.jsonl", "2026-01-02.jsonl", "pictures/old", "2026-01-01.jsonl")):
        (folder / name).write_bytes(bytes(28_672))
        os.utime(folder / name, (1_700_000_000 - 86_400 * age_days,) * 2)
    log_all(RequestLog(folder, 1, keeps_images=True, max_bytes=100_000), make_images(1, size=20_000))
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert "2026-01-01.jsonl" not in left
    assert "old" not in left
    assert "2026-01-03.jsonl" in left
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 90_000


def test_tiny_images_count_as_the_blocks_that_they_take(tmp_path):
    limit = 100 * 4096
    log = RequestLog(tmp_path, 1, keeps_images=True, max_bytes=limit)
    for number in range(30):
        images = make_images(10, size=4, start=10 * number)
        log.add(answer_to(images), images)
        while log._queue:
            time.sleep(0.01)
    log.close()
    files = [path.stat() for path in tmp_path.rglob("*") if path.is_file()]
    assert 50 < len(files) <= 100
    assert sum(max(status.st_blocks * 512, 4096) for status in files) <= limit


def test_services_of_one_folder_stay_below_the_limit_together(tmp_path):
    limit = 100 * 4096
    logs = [RequestLog(tmp_path, 1, keeps_images=True, max_bytes=limit) for _ in range(3)]
    for number in range(60):
        images = make_images(4, size=4, start=4 * number)
        log = logs[number % 3]
        log.add(answer_to(images), images)
        while log._queued_bytes or log._queue:
            time.sleep(0.005)
    for log in logs:
        log.close()
        assert log.dropped == 0
    files = [path.stat() for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(max(status.st_blocks * 512, 4096) for status in files) <= 1.25 * limit


def test_a_line_that_was_cut_short_spoils_no_other(tmp_path):
    file = tmp_path / f"{datetime.now(UTC).date()}.jsonl"
    file.write_text('{"time": "2026')
    log_all(RequestLog(tmp_path, 1), make_images(2))
    first, *others = file.read_text().splitlines()
    assert first == '{"time": "2026'
    assert len([json.loads(line) for line in others]) == 2


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_closing_leaves_no_thread(tmp_path, share):
    log_all(RequestLog(tmp_path, share), make_images(10))
    assert not any(thread.name == "request log" and thread.is_alive() for thread in threading.enumerate())
