import pytest

from serving.admission import Admission
from serving.errors import OverloadedError


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
    admission = Admission(max_wait_s=2.0)
    with admission.wait(100):
        with admission.wait(1, pictures_per_s=50.0):
            pass
        with pytest.raises(OverloadedError, match=r"100 pictures are waiting, 10\.0 s of work") as refused:
            admission.wait(1, pictures_per_s=10.0).__enter__()
        assert refused.value.retry_after_s == 10
