"""How much work the service takes on; what is over that is refused at once, with a time to try again."""

from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import OverloadedError
from serving.limits import MAX_HELD_BYTES, MAX_WAITING_REQUESTS


class Admission:
    """Counts bytes held and requests waiting; used from the event loop only, so it needs no lock.

    Attributes:
        held_bytes: Of all bodies that are being read or classified now.
        waiting_requests: Whose pictures wait for decoding or classification, or are in it.
    """

    def __init__(self, max_bytes: int = MAX_HELD_BYTES, max_requests: int = MAX_WAITING_REQUESTS) -> None:
        self._max_bytes = max_bytes
        self._max_requests = max_requests
        self.held_bytes = 0
        self.waiting_requests = 0

    @contextmanager
    def hold(self) -> Iterator["Holding"]:
        """Return an account for one body's bytes, given back at the end of the block."""
        holding = Holding(self)
        try:
            yield holding
        finally:
            self.held_bytes -= holding.size_bytes

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Take one place among the waiting requests, given back at the end of the block.

        Raises:
            OverloadedError: Every place is taken.
        """
        if self.waiting_requests >= self._max_requests:
            raise OverloadedError(f"{self.waiting_requests} requests are waiting; try again")
        self.waiting_requests += 1
        try:
            yield
        finally:
            self.waiting_requests -= 1

    def take(self, size_bytes: int) -> None:
        """Count bytes as held.

        Raises:
            OverloadedError: Together with the other requests they are too many.
        """
        if self.held_bytes + size_bytes > self._max_bytes:
            raise OverloadedError("the requests being read are too large together; try again")
        self.held_bytes += size_bytes


class Holding:
    """The bytes of one body.

    Attributes:
        size_bytes: Held so far.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.size_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Hold so many bytes more.

        Raises:
            OverloadedError: Together with the other requests they are too many.
        """
        self._admission.take(size_bytes)
        self.size_bytes += size_bytes
