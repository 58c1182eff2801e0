"""A request's identity, by which its answer, its error and the lines of the logs are found together, and its record."""

import random
import re
from contextvars import ContextVar
from typing import NamedTuple

# That of the request which the current task answers; empty elsewhere.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def choose_request_id(given: str | None) -> str:
    """Return the client's or proxy's own id, or a new one where it gives none or one unfit for logs."""
    # No secret. The system's random bytes would cost a wait for the interpreter's lock with each request.
    return given if given and _ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


def read_traceparent(given: str | None) -> str | None:
    """Return a W3C trace context that is well formed; None for any other text."""
    return given if given and _TRACEPARENT.fullmatch(given) else None


class AnsweredRequest(NamedTuple):
    """Record of a request whose answer is sent.

    Attributes:
        request_id: Identity, also in the answer's header, in errors and in other log lines.
        traceparent: W3C trace context of the caller; None without.
        client: Address of the peer: of the proxy behind one; None where it is not known.
        method: HTTP method.
        path: Path as it was asked for, its first 200 characters.
        route: Route that answered, or `other`.
        status: HTTP status.
        seconds: From the head of the request to the end of the answer.
    """

    request_id: str
    traceparent: str | None
    client: str | None
    method: str
    path: str
    route: str
    status: int
    seconds: float
