"""The Prefect server of `darkroom deploy` and `darkroom heal`: what PREFECT_API_URL names, never one of our own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from model_code.errors import UsageError

EXAMPLE = "http://127.0.0.1:4200/api"


def get_server_address() -> str:
    """Return PREFECT_API_URL; UsageError if it is not set: Prefect would start a server that nobody knows."""
    if address := os.environ.get("PREFECT_API_URL"):
        return address
    raise UsageError(f"PREFECT_API_URL is not set; name the Prefect server, e.g. {EXAMPLE}")


@contextmanager
def naming_the_password() -> Iterator[None]:
    """Say in one line that the server wants another password.

    Raises:
        UsageError: PREFECT_API_AUTH_STRING is missing or wrong.
    """
    try:
        yield
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.UNAUTHORIZED:
            raise
        what = "is wrong" if os.environ.get("PREFECT_API_AUTH_STRING") else "is not set"
        raise UsageError(
            f"Prefect at {get_server_address()} answers 401: PREFECT_API_AUTH_STRING {what}; give user:password, "
            "PREFECT_AUTH in infra/.env"
        ) from error


@contextmanager
def naming_the_address() -> Iterator[None]:
    """Say in one line that no Prefect answers at the address.

    Raises:
        UsageError: PREFECT_API_URL is wrong, or its server is down.
    """
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "Failed to reach API" not in str(error):
            raise
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code != httpx.codes.NOT_FOUND:
            raise
        raise UsageError(
            f"no Prefect answers at PREFECT_API_URL={get_server_address()}; start it, or name another, e.g. {EXAMPLE}"
        ) from error
