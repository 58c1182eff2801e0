"""Check of the web pages that may change the service's state; other clients are let through."""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from serving.errors import ForeignPageError

_DEFAULT_PORTS = {"http": 80, "https": 443}


class PageCheck:
    """Refuses requests of pages of other origins.

    Browsers state the page's origin in `Origin` and `Sec-Fetch-Site`, which pages cannot change. A page whose own name
    was made to resolve to this service (DNS rebinding) counts as one of this origin for the browser; its name is not
    one of `allowed_hosts`. Such names have a dot: addresses and names without one are always allowed.
    """

    def __init__(self, allowed_origins: Collection[str], allowed_hosts: Collection[str], has_keys: bool) -> None:
        """Keep what is allowed.

        Args:
            allowed_origins: Other origins whose pages may call, e.g. `https://example.org`.
            allowed_hosts: Names under which browsers reach this service, without ports.
            has_keys: True if requests need an API key. A page of a rebound name has none, so any name is allowed.
        """
        self._allowed_origins = frozenset(map(normalise_origin, allowed_origins))
        self._allowed_hosts = frozenset(host.lower().rstrip(".") for host in allowed_hosts)
        self._has_keys = has_keys

    def check(self, headers: Headers) -> None:
        """Check one request that changes something.

        Raises:
            ForeignPageError: It comes from a page that may not call.
        """
        origin, site = headers.get("origin"), ", ".join(headers.getlist("sec-fetch-site")).lower()
        if origin is None and not site:
            return
        if len(headers.getlist("origin")) > 1:
            raise ForeignPageError("a page has one origin, and this request has several")
        if origin is not None and normalise_origin(origin) in self._allowed_origins:
            return
        if site not in ("", "same-origin", "none") or (origin is not None and not _is_same(origin, headers, site)):
            raise ForeignPageError(
                f"a page of {repr(origin[:80]) if origin else 'another site'} may not call; start the service with "
                "--allow-origin ORIGIN"
            )
        hosts = headers.getlist("host")
        if not self._has_keys and not (len(hosts) == 1 and self._is_own_name(hosts[0])):
            raise ForeignPageError(
                f"this service is not known as {', '.join(hosts)[:80]!r}; start it with --allow-host NAME, or use "
                "an address or localhost"
            )

    def _is_own_name(self, host: str) -> bool:
        name = (_split(f"//{host}") or ("", None))[0].rstrip(".")
        return bool(name and "@" not in host) and (
            name in self._allowed_hosts or "." not in name or name.endswith(".localhost") or _is_address(name)
        )


def _is_same(origin: str, headers: Headers, site: str) -> bool:
    """True if the browser says so, or the origin is that of the Host header, but for the scheme: proxies change it."""
    if site == "same-origin":
        return True
    stated, asked = _split(origin), _split(f"{origin.partition(':')[0]}://{headers.get('host', '')}")
    return stated is not None and stated == asked


def normalise_origin(origin: str) -> str:
    """Return an origin as browsers write it: in lower case, without the port that its scheme has anyway."""
    scheme, _, rest = origin.lower().partition("://")
    return f"{scheme}://{rest.removesuffix(f':{_DEFAULT_PORTS.get(scheme)}')}"


def _split(address: str) -> tuple[str, int | None] | None:
    """Return host, in lower case, and port of an address; None if it has none."""
    try:
        parts = urlsplit(address)
        return (parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)) if parts.hostname else None
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
