import pytest

from serving.admission import Admission
from serving.errors import OverloadedError
from serving.limits import LARGE_BODY_BYTES


def test_bytes_are_given_back():
    admission = Admission(max_bytes=100)
    with admission.hold() as first, admission.hold() as second:
        first.take(60)
        with pytest.raises(OverloadedError):
            second.take(41)
        second.take(40)
        assert admission.held_bytes == 100
    assert admission.held_bytes == 0


def test_places_are_given_back():
    admission = Admission(max_pictures=3)
    with admission.wait(2):
        with pytest.raises(OverloadedError, match="2 pictures are waiting"), admission.wait(2):
            pass
        with admission.wait(1):
            assert admission.waiting_pictures == 3
        assert admission.waiting_pictures == 2
    assert admission.waiting_pictures == 0


def test_a_request_that_finds_nobody_waiting_is_always_taken():
    with Admission(max_pictures=3).wait(64):
        pass


def test_who_would_wait_too_long_is_told_how_long():
    """Ten pictures a second, however they are made up: slow decoding counts as slow classification does."""
    now_s = 0.0
    admission = Admission(max_wait_s=2.0, clock=lambda: now_s)
    for _ in range(3):
        with admission.wait(100):
            now_s += 10.0
    assert admission.pictures_per_s == pytest.approx(10.0)
    with (
        admission.wait(20),
        admission.wait(1),
        pytest.raises(OverloadedError, match=r"21 pictures .* 2\.1 s") as refused,
    ):
        admission.wait(1).__enter__()
    assert refused.value.retry_after_s == 3


def test_time_without_pictures_does_not_count():
    now_s = 0.0
    admission = Admission(clock=lambda: now_s)
    with admission.wait(100):
        now_s += 10.0
    now_s += 1000.0
    with admission.wait(100):
        now_s += 10.0
    assert admission.pictures_per_s == pytest.approx(10.0)


def test_a_single_picture_in_a_moment_says_little():
    now_s = 0.0
    admission = Admission(clock=lambda: now_s)
    with admission.wait(1):
        now_s += 0.001
    assert admission.pictures_per_s is None


def test_large_bodies_leave_room_for_small_ones():
    admission = Admission(max_bytes=8 * LARGE_BODY_BYTES)
    with admission.hold() as large, admission.hold() as another, admission.hold() as small:
        large.take(6 * LARGE_BODY_BYTES)
        with pytest.raises(OverloadedError):
            another.take(LARGE_BODY_BYTES + 1)
        small.take(LARGE_BODY_BYTES)
