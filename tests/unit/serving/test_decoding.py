import threading
import time

from serving.decoding import PixelRoom


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
