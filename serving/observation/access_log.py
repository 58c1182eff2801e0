"""The access log: one JSON object in a line of stdout for each answered request."""

import json
import queue
import sys
import threading
from datetime import UTC, datetime
from typing import TextIO

from serving.request_record import AnsweredRequest

# Answers never wait for whoever reads the log: what does not fit is counted and told in the next line.
_MAX_QUEUED = 4096
_STOP_TIMEOUT_S = 2.0


class AccessLog:
    """Writes requests from a thread of its own."""

    def __init__(self, stream: TextIO | None = None, max_queued: int = _MAX_QUEUED) -> None:
        """Start the thread.

        Args:
            stream: Text stream; stdout if None.
            max_queued: Most lines that wait for the stream.
        """
        self._stream = stream or sys.stdout
        self._queue: queue.Queue[tuple[datetime, AnsweredRequest] | None] = queue.Queue(max_queued)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="access log", daemon=True)
        self._thread.start()

    def add(self, request: AnsweredRequest) -> None:
        """Log an answered request; called from one thread."""
        try:
            self._queue.put_nowait((datetime.now(UTC), request))
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write what waits, for at most two seconds."""
        if not self._thread.is_alive():
            return
        try:
            self._queue.put(None, timeout=_STOP_TIMEOUT_S)
        except queue.Full:
            return
        self._thread.join(_STOP_TIMEOUT_S)

    def _write(self) -> None:
        told = 0
        while (entry := self._queue.get()) is not None:
            at, request = entry
            line: dict[str, object] = {"time": at.isoformat(timespec="milliseconds"), **request._asdict()}
            dropped = self._dropped
            if dropped > told:
                line["dropped"] = dropped - told
                told = dropped
            try:
                self._stream.write(json.dumps(line) + "\n")
                self._stream.flush()
            except OSError:  # a full disk behind the stream, or a reader that is gone
                self._dropped += 1
            except ValueError:
                return  # The stream is closed.
