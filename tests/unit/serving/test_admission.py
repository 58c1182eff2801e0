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
    admission = Admission(max_requests=1)
    with admission.wait(), pytest.raises(OverloadedError, match="1 requests are waiting"), admission.wait():
        pass
    assert admission.waiting_requests == 0
    with admission.wait():
        assert admission.waiting_requests == 1
