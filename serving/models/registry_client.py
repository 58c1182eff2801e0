"""Questions to an MLflow server by its REST interface, with a limit on everything that it may answer.

A registry is another machine's word: pages, folders, bytes and seconds are bounded, and what is not MLflow's is one
line that says so.
"""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import httpx

from serving.bundle.manifest import FILE_NAME
from serving.errors import RegistryError
from serving.printable import show

MAX_ANSWER_BYTES = 8_000_000
MAX_PAGES, MAX_NAMES = 50, 1000
MAX_FOLDERS, MAX_FILES, MAX_DEPTH = 20, 200, 4
MAX_ANSWER_S = 10.0
# All questions of one look at the registry together; files have a limit of their own, and their time does not count.
MAX_LOOK_S = 60.0
MAX_FETCH_S = 900.0
_API = "/api/2.0/mlflow"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
_SCHEME = "mlflow-artifacts:/"
# Connecting has a shorter limit: a machine that is off says nothing.
_TIMEOUT = httpx.Timeout(MAX_ANSWER_S, connect=3.0)
_CHUNK_BYTES = 1 << 20
_REASON_BYTES = 2000
_NOT_MLFLOW = (LookupError, TypeError, ValueError, AttributeError, RecursionError)


class RegistryClient:
    """One look at a registry: a connection that is closed at the end of its `with` block."""

    def __init__(self, address: str, on_progress: Callable[[], None] = lambda: None) -> None:
        """Ask nothing yet.

        Args:
            address: URL of the MLflow server; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are sent if set.
            on_progress: Called when something of an answer has arrived.
        """
        user, password = (os.environ.get(f"MLFLOW_TRACKING_{key}") for key in ("USERNAME", "PASSWORD"))
        is_local = httpx.URL(address).host in ("127.0.0.1", "localhost", "::1")
        self._address = address
        self._on_progress = on_progress
        self._client = httpx.Client(
            base_url=address,
            auth=httpx.BasicAuth(user, password or "") if user else None,
            timeout=_TIMEOUT,
            trust_env=not is_local,
            # Compressed answers would be larger than what arrives.
            headers={"Accept-Encoding": "identity"},
        )
        self._left_s = MAX_LOOK_S
        self._socket: socket.socket | None = None
        self._is_cut = threading.Event()

    def __enter__(self) -> "RegistryClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def list_names(self) -> dict[str, dict[str, str]]:
        """Return the version of each alias of each registered name that can be a folder.

        Raises:
            RegistryError: The registry does not answer, answers what MLflow does not, or has more than is read.
        """
        found: dict[str, dict[str, str]] = {}
        token = ""
        for _ in range(MAX_PAGES):
            page = self._ask(f"{_API}/registered-models/search", max_results="100", page_token=token)
            with self._understanding():
                for model in page.get("registered_models", []):
                    name = str(model["name"])
                    if re.fullmatch(FILE_NAME, name):
                        found[name] = {one["alias"]: str(one["version"]) for one in model.get("aliases", [])}
                token = str(page.get("next_page_token") or "")
            if len(found) > MAX_NAMES:
                raise RegistryError(f"the registry {self._address} has more than {MAX_NAMES} registered names")
            if not token:
                return found
        raise RegistryError(f"the registry {self._address} has more than {MAX_PAGES} pages of registered names")

    def read_tags(self, name: str, version: str) -> dict[str, str]:
        """Return the tags of a version.

        Raises:
            RegistryError: As `list_names`.
        """
        found = self._ask(f"{_API}/model-versions/get", name=name, version=version)
        with self._understanding():
            return {str(tag["key"]): str(tag["value"]) for tag in found.get("model_version", {}).get("tags", [])}

    def list_files(self, name: str, version: str) -> list[PurePosixPath]:
        """Return the paths of a version's files on the server.

        Raises:
            RegistryError: As `list_names`, or the server does not hand out the files itself.
        """
        address = self._ask(f"{_API}/model-versions/get-download-uri", name=name, version=version)
        root = str(address.get("artifact_uri", ""))
        if not root.startswith(_SCHEME):
            raise RegistryError(
                f"version {version} of {name} lies at {root[:200]!r}; only what the MLflow server hands out itself can "
                "be fetched: start it with --serve-artifacts"
            )
        start = PurePosixPath(root.removeprefix(_SCHEME).lstrip("/"))
        files: list[PurePosixPath] = []
        folders = [start]
        for folder in folders:
            entries = self._ask(_ARTIFACTS, path=str(folder))
            with self._understanding():
                for entry in entries.get("files", []):
                    path = folder / PurePosixPath(entry["path"]).name
                    if not entry.get("is_dir"):
                        files.append(path)
                    elif len(path.parts) - len(start.parts) < MAX_DEPTH:
                        folders.append(path)  # which the loop comes to
            if len(folders) > MAX_FOLDERS or len(files) > MAX_FILES:
                raise RegistryError(
                    f"version {version} of {name} has more than {MAX_FOLDERS} folders or {MAX_FILES} files; a bundle "
                    "has one folder"
                )
        return files

    def download(self, path: PurePosixPath, file: BinaryIO, max_bytes: int, seconds: float) -> int:
        """Write a file of the server to `file`; return how many bytes it has.

        Raises:
            RegistryError: The registry does not answer, or sends more than `max_bytes` or for longer than `seconds`.
        """
        count = 0
        for chunk in self._stream(f"{_ARTIFACTS}/{path}", seconds, {}):
            count += len(chunk)
            if count > max_bytes:
                raise RegistryError(f"the registry {self._address} sends more than {max_bytes:,} bytes for {path.name}")
            file.write(chunk)
        return count

    def _ask(self, address: str, /, **parameters: str) -> dict[str, Any]:
        if self._left_s <= 0:
            raise RegistryError(f"the registry {self._address} took more than {MAX_LOOK_S:g} seconds for its answers")
        start_s, content = time.monotonic(), bytearray()
        given = {key: value for key, value in parameters.items() if value}
        try:
            for chunk in self._stream(address, min(MAX_ANSWER_S, self._left_s), given):
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise RegistryError(
                        f"the registry {self._address} answers with more than {MAX_ANSWER_BYTES:,} bytes"
                    )
        finally:
            self._left_s -= time.monotonic() - start_s
        with self._understanding():
            found = json.loads(content)
            if not isinstance(found, dict):
                raise TypeError(f"a {type(found).__name__}")
            return found

    def _stream(self, address: str, seconds: float, parameters: dict[str, str]) -> Iterator[bytes]:
        """Yield an answer's chunks; after `seconds` the connection is cut, whatever the server does meanwhile."""
        if seconds <= 0:
            raise RegistryError(f"the registry {self._address} does not answer in time: no time is left for {address}")
        is_cut = self._is_cut = threading.Event()

        def cut() -> None:
            is_cut.set()
            if self._socket is not None:
                self._shut(self._socket)

        timer = threading.Timer(seconds, cut)
        timer.daemon = True
        timer.start()
        try:
            extensions = {"trace": self._note_socket}
            with self._client.stream("GET", address, params=parameters, extensions=extensions) as answer:
                if answer.is_error:
                    reason = next(answer.iter_raw(_REASON_BYTES), b"").decode("utf-8", "replace")
                    raise RegistryError(f"the registry {self._address} answers {_describe(answer.status_code, reason)}")
                for chunk in answer.iter_raw(_CHUNK_BYTES):
                    self._on_progress()
                    yield chunk
            if is_cut.is_set():
                raise httpx.ReadTimeout("")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = f"no whole answer within {seconds:.0f} seconds" if is_cut.is_set() else str(error)
            raise RegistryError(
                f"the registry {self._address} does not answer: {reason or type(error).__name__}"
            ) from error
        finally:
            timer.cancel()

    def _note_socket(self, event: str, info: dict[str, Any]) -> None:
        """Keep the socket of each new connection, which httpcore tells."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = connection = info["return_value"].get_extra_info("socket")
            # The time may have run out while it was made.
            if self._is_cut.is_set():
                self._shut(connection)

    @staticmethod
    def _shut(connection: socket.socket) -> None:
        with suppress(OSError):  # it may have ended
            # Not a TLS connection's own method, which is not for two threads: only the waiting one is to wake up.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)

    @contextmanager
    def _understanding(self) -> Iterator[None]:
        try:
            yield
        except _NOT_MLFLOW as error:
            raise RegistryError(
                f"the registry {self._address} answers what MLflow does not: {repr(error)[:200]}"
            ) from error


def _describe(status: int, reason: str) -> str:
    remedy = ""
    if "Invalid Host header" in reason:
        remedy = "; add the host name of --registry to the server's --allowed-hosts (MLFLOW_SERVER_ALLOWED_HOSTS)"
    return f"{status}: {show(' '.join(reason.split())[:200])}{remedy}" if reason else str(status)
