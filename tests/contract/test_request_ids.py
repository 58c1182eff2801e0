"""One id finds a request in its answer, its error and the logs."""

import asyncio
import json
import logging
import re
import time
from datetime import datetime

import httpx
import pytest

from serving.errors import NotStoredError
from serving.http.api import create_app
from serving.printable import PrintableFormatter
from tests.unit.serving.tiny_bundle import paint, release

NEW_ID = re.compile(r"[0-9a-f]{32}")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("given", ["a", "7b2f-11:x/9=", "x" * 128])
def test_an_id_that_was_given_is_kept(client, given):
    assert client.get("/v1/models", headers={"X-Request-ID": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "two words", "bad;id", 'a"b'])
def test_otherwise_each_request_gets_an_id_of_its_own(client, given):
    headers = {} if given is None else {"X-Request-ID": given}
    ids = {client.get("/v1/models", headers=headers).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(NEW_ID.fullmatch(one) for one in ids)


@pytest.mark.parametrize(
    ("path", "content", "status"), [("/v1/predict", b"no image", 400), ("/nowhere", b"", 404), ("/livez/", b"", 404)]
)
def test_errors_carry_it(client, path, content, status):
    answer = client.post(path, content=content, headers={"X-Request-ID": "mine", "Content-Type": "image/png"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (status, "mine")
    assert answer.json()["error"]["request_id"] == "mine"


def ask(app, method, path, **options):
    """Ask an app in this process."""

    async def send():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def test_the_answer_of_a_fault_carries_it():
    app = create_app()
    app.state.api = None
    answer = ask(app, "GET", "/v1/models")
    assert answer.status_code == 500
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["x-content-type-options"] == "nosniff"


class FullFeedback:
    async def take(self, request):
        raise NotStoredError("the disk is full")


def test_log_lines_about_a_request_end_with_its_id():
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(self.format(record))

    handler = Keep()
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.getLogger("serving.http.api").addHandler(handler)
    app = create_app()
    app.state.feedback = FullFeedback()
    try:
        answer = ask(app, "POST", "/v1/feedback", headers={"X-Request-ID": "mine"})
    finally:
        logging.getLogger("serving.http.api").removeHandler(handler)
    assert answer.status_code == 507
    assert lines == ["POST /v1/feedback: the disk is full [request mine]"]


def test_the_access_log_has_a_json_object_for_each_request(tmp_path, start_service):
    release(tmp_path / "bundles", "cifar10", "1")
    service = start_service(tmp_path, "--access-log")
    with httpx.Client(base_url=service.url, timeout=30, trust_env=False) as client:
        ids = [
            client.post("/v1/predict", content=paint(), headers={"Content-Type": "image/png", "traceparent": TRACE}),
            client.get("/a%0Ab%1B[31m", headers={"traceparent": "nonsense"}),
            client.get("/v1/models"),
        ]
    service.stop()
    lines = [json.loads(line) for line in service.log if line.startswith("{")]
    assert [line["request_id"] for line in lines] == [answer.headers["x-request-id"] for answer in ids]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("POST", "/v1/predict", 200),
        ("GET", "other", 404),
        ("GET", "/v1/models", 200),
    ]
    assert [line["traceparent"] for line in lines] == [TRACE, None, None]
    assert lines[1]["path"] == "/a\nb\x1b[31m"
    assert all(line["client"] == "127.0.0.1" and 0 < line["seconds"] < 30 for line in lines)
    times = [datetime.fromisoformat(line["time"]) for line in lines]
    assert times == sorted(times)
    assert all(0 <= time.time() - one.timestamp() < 60 for one in times)
