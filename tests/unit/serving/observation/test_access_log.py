import json
import threading
import time

from serving.observation.access_log import AccessLog
from serving.request_record import AnsweredRequest

REQUEST = AnsweredRequest("id", None, "127.0.0.1", "GET", "/", "/", 200, 0.001)


class StuckStream:
    """A pipe whose reader has stopped."""

    def __init__(self):
        self.goes_on = threading.Event()
        self.text = ""

    def write(self, text):
        self.goes_on.wait(10)
        self.text += text

    def flush(self):
        pass


def test_answers_do_not_wait_for_a_reader_that_has_stopped_and_losses_are_told():
    stream = StuckStream()
    log = AccessLog(stream, max_queued=5)
    start_s = time.perf_counter()
    for _ in range(100):
        log.add(REQUEST)
    assert time.perf_counter() - start_s < 1
    stream.goes_on.set()
    log.close()
    lines = [json.loads(line) for line in stream.text.splitlines()]
    assert len(lines) in (5, 6)
    assert len(lines) + sum(line.get("dropped", 0) for line in lines) == 100


def test_a_reader_that_is_gone_stops_nothing():
    class ClosedStream:
        def write(self, _):
            raise BrokenPipeError

    log = AccessLog(ClosedStream(), max_queued=2)
    for _ in range(100):
        log.add(REQUEST)
    log.close()
