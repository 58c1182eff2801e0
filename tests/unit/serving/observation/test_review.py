import json
import os

import pytest

from serving.observation.request_log import RequestLog
from serving.observation.review import ReviewQueue
from tests.unit.serving.observation.test_request_log import log_all, make_images


def write(folder, day, *answers, model="cifar10", **more):
    folder.mkdir(exist_ok=True)
    with (folder / f"{day}.jsonl").open("a") as file:
        for number, probability in answers:
            line = {
                "time": f"{day}T00:00:00.000+00:00",
                "picture_sha256": f"{number:064x}",
                "model": model,
                "version": "3",
                "label": "cat",
                "probability": probability,
                "is_confident": False,
                "is_kept": True,
            }
            file.write(json.dumps(line | more) + "\n")


def list_numbers(queue, name="cifar10"):
    return [int(one.picture_sha256, 16) for one in queue.list_unsure(name)]


def test_the_least_sure_come_first_whatever_their_day(tmp_path):
    write(tmp_path, "2026-01-02", (1, 0.9), (2, 0.3))
    write(tmp_path, "2026-01-01", (3, 0.5), (4, 0.3))
    write(tmp_path, "2026-01-02", (5, 0.1), model="food")
    assert list_numbers(ReviewQueue(tmp_path)) == [2, 4, 3, 1]
    assert list_numbers(ReviewQueue(tmp_path), "food") == [5]
    assert list_numbers(ReviewQueue(tmp_path), "none") == []


def test_an_image_comes_once_as_it_was_answered_last(tmp_path):
    write(tmp_path, "2026-01-01", (1, 0.2))
    write(tmp_path, "2026-01-02", (1, 0.8), (2, 0.5), (1, 0.7))
    (first, second) = ReviewQueue(tmp_path).list_unsure("cifar10")
    assert (int(second.picture_sha256, 16), second.probability) == (1, 0.7)
    assert int(first.picture_sha256, 16) == 2


def test_images_that_are_not_kept_are_left_out(tmp_path):
    write(tmp_path, "2026-01-01", (1, 0.2), is_kept=False)
    assert list_numbers(ReviewQueue(tmp_path)) == []
    assert list_numbers(ReviewQueue(tmp_path / "nothing")) == []


@pytest.mark.parametrize(
    "line",
    [b'{"time": "20', b"[]", b"\xff\xfe", b"", b'{"picture_sha256": "../../etc/passwd"}'],
    ids=["cut", "no object", "no text", "empty", "a path"],
)
def test_a_bad_line_spoils_no_other(tmp_path, line):
    write(tmp_path, "2026-01-01", (1, 0.2))
    with (tmp_path / "2026-01-01.jsonl").open("ab") as file:
        file.write(line + b"\n")
    write(tmp_path, "2026-01-01", (2, 0.3))
    assert list_numbers(ReviewQueue(tmp_path)) == [1, 2]


def test_a_hash_that_is_a_path_is_no_hash(tmp_path):
    write(tmp_path, "2026-01-01", (1, 0.2), picture_sha256="../" * 21 + "a")
    assert list_numbers(ReviewQueue(tmp_path)) == []


def test_no_more_than_the_end_of_the_log_is_read(tmp_path):
    write(tmp_path, "2026-01-01", *((number, 0.1) for number in range(100)))
    write(tmp_path, "2026-01-02", *((number, 0.1) for number in range(100, 110)))
    line_bytes = (tmp_path / "2026-01-02.jsonl").stat().st_size // 10
    queue = ReviewQueue(tmp_path, max_bytes=15 * line_bytes + line_bytes // 2)
    assert list_numbers(queue) == list(range(95, 110))


def test_what_is_no_file_is_passed_over(tmp_path):
    write(tmp_path, "2026-01-01", (1, 0.2))
    os.mkfifo(tmp_path / "2026-01-02.jsonl")
    assert list_numbers(ReviewQueue(tmp_path)) == [1]


def test_it_reads_what_the_request_log_writes(tmp_path):
    images = make_images(3)
    log_all(RequestLog(tmp_path, 1, keeps_images=True), images)
    assert {one.picture_sha256 for one in ReviewQueue(tmp_path).list_unsure("cifar10")} == {
        image.sha256 for image in images
    }
