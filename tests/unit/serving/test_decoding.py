import threading
import time

import pytest

from serving import decoding
from serving.decoding import PixelRoom
from serving.errors import OverloadedError
from serving.request_body import EncodedPicture


def test_what_does_not_fit_waits_until_there_is_room():
    room, order = PixelRoom(100), []

    def decode(name, pixels, seconds):
        with room.enter() as place:
            place.take(pixels)
            order.append(f"{name} in")
            time.sleep(seconds)
            order.append(f"{name} out")

    threads = [threading.Thread(target=decode, args=("first", 60, 0.3))]
    threads[0].start()
    while not order:
        time.sleep(0.01)
    for arguments in (("small", 40, 0.0), ("huge", 1000, 0.0)):
        threads.append(threading.Thread(target=decode, args=arguments))
        threads[-1].start()
    for thread in threads:
        thread.join(10)
    assert order == ["first in", "small in", "small out", "first out", "huge in", "huge out"]


def test_who_finds_no_room_in_time_is_told_when_to_come_back(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_WAIT_S", 0.05)
    room = PixelRoom(100)
    with room.enter() as place:
        place.take(100)
        with room.enter() as other, pytest.raises(OverloadedError, match="other large images") as caught:
            other.take(1)
        assert caught.value.retry_after_s == 2
    with room.enter() as later:
        later.take(100)


def test_the_name_of_an_image_keeps_when_to_try_again():
    decoder = object.__new__(decoding.Decoder)
    decoder._room = PixelRoom(100)

    def refuse(data, take_pixels):
        raise OverloadedError("no room", 7)

    part = [(0, EncodedPicture(b"x", "a.png"))]
    outcomes = decoder._decode_part(part, refuse, decoding._PixelBudget(2), True)
    assert str(outcomes[0]) == "picture 1 of 2, 'a.png': no room"
    assert outcomes[0].retry_after_s == 7
