import contextlib
import re
from contextlib import ExitStack

import pytest

from serving.decoding.work_queue import WorkQueue
from serving.errors import OverloadedError


def test_places_are_given_back():
    queue = WorkQueue(max_images=3)
    with queue.wait(2, 0.1):
        with pytest.raises(OverloadedError, match="2 images are waiting"), queue.wait(2, 0.1):
            pass
        with queue.wait(1, 0.1):
            assert queue.images == 3
        assert queue.images == 2
    assert queue.images == 0


def test_a_request_that_finds_nobody_waiting_is_always_taken():
    with WorkQueue(max_images=3).wait(64, 100.0):
        pass


class Queue:
    """One image after the other, at a clock of its own."""

    def __init__(self, **limits):
        self.now_s = 0.0
        self.queue = WorkQueue(clock=lambda: self.now_s, **limits)

    def work(self, took_s, estimated_s=0.001, times=1):
        for _ in range(times):
            with self.queue.wait(1, estimated_s):
                self.now_s += took_s

    def count_admitted(self, estimated_s=0.001, most=1000):
        """Return how many images are taken on at this moment."""
        with ExitStack() as waiting:
            for count in range(most):
                try:
                    waiting.enter_context(self.queue.wait(1, estimated_s))
                except OverloadedError:
                    return count
        return most


def test_who_would_wait_too_long_is_told_how_long():
    queue = Queue(max_wait_s=2.0)
    queue.work(took_s=0.1, times=100)
    with ExitStack() as waiting:
        for _ in range(40):
            try:
                waiting.enter_context(queue.queue.wait(1, 0.001))
            except OverloadedError as error:
                refused = error
                break
    match = re.fullmatch(r"(\d+) images? (?:is|are) waiting, (\S+) s of work; try again", str(refused))
    assert 20 <= int(match[1]) <= 25, "ten images a second"
    assert (match[2], refused.retry_after_s) == ("2.0", 3)


def test_a_slow_machine_is_known_and_so_is_a_fast_one():
    for took_s in (0.0001, 0.001, 0.01, 0.1):
        queue = Queue()
        queue.work(took_s, times=int(20 / took_s))
        assert queue.count_admitted(most=100_000) == pytest.approx(min(1024, 5.0 / took_s), rel=0.25)


@pytest.mark.parametrize("took_s", [2.0, 60.0])
def test_one_slow_image_is_forgotten_after_a_few_others(took_s):
    """Its cost was estimated far too low, and nothing else ran beside it."""
    queue = Queue()
    queue.work(0.001, times=1000)
    queue.work(took_s)
    queue.work(0.001, times=20)
    assert queue.count_admitted() > 50
    queue.work(0.001, times=300)
    assert queue.count_admitted() > 800


def test_a_slow_image_is_forgotten_with_time_too():
    queue = Queue()
    queue.work(60.0)
    queue.now_s += 20.0
    assert queue.count_admitted() > 100


def test_an_image_that_is_known_to_be_large_does_not_count_as_slow():
    queue = Queue()
    queue.work(0.001, times=5000)
    queue.work(took_s=2.5, estimated_s=2.5)
    assert queue.count_admitted() == 1000


def test_beside_one_large_image_small_ones_are_served_as_ever():
    queue = Queue()
    queue.work(0.001, times=1000)
    with queue.queue.wait(1, 4.0):
        for _ in range(400):
            queue.work(0.001)
            queue.now_s += 0.01
        assert queue.count_admitted() > 50


@pytest.mark.parametrize("passed_s", [1.0, 2.0, 4.0, 8.0])
def test_large_images_that_are_not_finished_do_not_count_as_a_slow_machine(passed_s):
    queue = Queue()
    queue.work(0.001, times=1000)
    with queue.queue.wait(1, 4.0), queue.queue.wait(1, 4.0):
        for _ in range(int(passed_s * 100)):
            queue.now_s += 0.01
            with contextlib.suppress(OverloadedError), queue.queue.wait(1, 4.0):
                pass
        with queue.queue.wait(1, 0.001):
            pass


def test_nobody_is_sent_away_for_longer_than_the_queue_remembers():
    queue = Queue()
    with ExitStack() as waiting:
        for _ in range(60):
            waiting.enter_context(queue.queue.wait(1, 0.004))
        queue.now_s += 30.0
        with pytest.raises(OverloadedError) as caught:
            waiting.enter_context(queue.queue.wait(1, 0.004))
    assert caught.value.retry_after_s == 30


def test_large_images_leave_time_for_small_ones():
    queue = Queue(max_wait_s=4.0)
    with ExitStack() as waiting:
        for _ in range(5):
            waiting.enter_context(queue.queue.wait(1, 1.0))
        with pytest.raises(OverloadedError):
            waiting.enter_context(queue.queue.wait(1, 1.0))
        waiting.enter_context(queue.queue.wait(1, 0.001))


def test_large_images_that_are_refused_at_once_do_not_count_as_done():
    queue = Queue()
    queue.work(0.1, estimated_s=0.001, times=50)
    for _ in range(50):
        with contextlib.suppress(ValueError), queue.queue.wait(1, 4.0):
            queue.now_s += 0.001
            raise ValueError
    assert queue.count_admitted() < 250


def test_requests_that_are_refused_while_they_wait_do_not_count_as_done():
    queue = Queue()
    queue.work(0.1, estimated_s=0.001, times=50)
    for _ in range(50):
        with contextlib.suppress(OverloadedError), queue.queue.wait(1, 0.001):
            queue.now_s += 0.001
            raise OverloadedError("no turn")
    assert queue.count_admitted() < 100


def test_beside_the_only_worker_nobody_is_served():
    queue = Queue(max_wait_s=0.5, workers=1)
    with queue.queue.wait(1, 4.0):
        queue.now_s += 1.0
        with pytest.raises(OverloadedError, match=r"3\.0 s of work"), queue.queue.wait(1, 0.001):
            pass
        queue.now_s += 2.8
        with queue.queue.wait(1, 0.001):
            pass
