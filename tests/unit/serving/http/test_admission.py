from contextlib import ExitStack

import pytest

from serving.errors import OverloadedError
from serving.http.admission import Admission
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


def test_large_bodies_leave_room_for_small_ones():
    admission = Admission(max_bytes=8 * LARGE_BODY_BYTES)
    with admission.hold() as large, admission.hold() as another, admission.hold() as small:
        large.take(6 * LARGE_BODY_BYTES)
        with pytest.raises(OverloadedError):
            another.take(LARGE_BODY_BYTES + 1)
        small.take(LARGE_BODY_BYTES)


def test_the_body_that_holds_most_for_longest_is_given_up():
    now_s, given_up = 0.0, []
    admission = Admission(max_bytes=100, clock=lambda: now_s)
    with ExitStack() as opened:

        def begin(name, size_bytes):
            holding = opened.enter_context(admission.hold())
            opened.enter_context(holding.read(lambda: given_up.append(name)))
            holding.take(size_bytes)
            return holding

        begin("small and old", 1)
        now_s = 10.0
        begin("large and old", 60)
        now_s = 20.0
        newest = begin("large and new", 30)
        now_s = 21.0
        newest.take(10)
        assert given_up == ["large and old"]
        assert admission.held_bytes == 41
        with pytest.raises(OverloadedError):
            newest.take(100)
    assert admission.held_bytes == 0


def test_what_is_being_classified_is_never_given_up():
    admission = Admission(max_bytes=100)
    with admission.hold() as classified, admission.hold() as another:
        with classified.read(lambda: pytest.fail("given up")):
            classified.take(90)
        with another.read(lambda: None), pytest.raises(OverloadedError):
            another.take(20)
