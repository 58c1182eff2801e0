"""The address under which a client reached the service, behind a proxy too."""

import re

from starlette.requests import Request

from serving.options import is_root_path

DEFAULT_URL = "http://127.0.0.1:3000"
_HOST = re.compile(r"([\w.-]+|\[[\da-fA-F:.]+\])(:\d{1,5})?", re.ASCII)


def find_root_path(request: Request) -> str:
    """Return the prefix that a proxy strips: that of the options, or the one that the proxy states; empty without."""
    forwarded = request.headers.get("x-forwarded-prefix", "").rstrip("/")
    root_path: str = request.app.state.root_path
    return root_path or (forwarded if is_root_path(forwarded) else "")


def find_url(request: Request) -> str:
    """Return scheme, host and prefix, without a slash at the end; the default address for a strange host."""
    host = request.headers.get("host", "")
    root = f"{request.scope['scheme']}://{host}" if _HOST.fullmatch(host) else DEFAULT_URL
    return root + find_root_path(request)
