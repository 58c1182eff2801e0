import asyncio
import gc
import time
import weakref
from types import SimpleNamespace

import pytest
from starlette.requests import Request

from serving.errors import BadParameterError, NotReadableError, OverloadedError
from serving.http import request_body
from serving.http.admission import Admission, Holding
from serving.http.api import _guard
from serving.http.feedback_api import FeedbackApi
from serving.http.prediction_api import PredictionApi
from serving.http.request_body import RequestBody

HEAD = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'


def receive_all(*chunks):
    left = [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks) - 1}
        for number, chunk in enumerate(chunks)
    ]

    async def receive():
        return left.pop(0)

    return receive


def make_request(receive, length=None, kind=b"multipart/form-data; boundary=b"):
    headers = [(b"content-type", kind)]
    headers += [(b"content-length", str(length).encode())] if length is not None else []
    app = SimpleNamespace(state=SimpleNamespace(keys=None, root_path=""))
    scope = {"type": "http", "method": "POST", "scheme": "http", "path": "/v1/predict", "query_string": b"", "app": app}
    return Request({**scope, "headers": headers}, receive)


@pytest.mark.parametrize(
    ("chunks", "error"),
    [
        ((HEAD + b"data\r\n--b--\r\n",), None),
        ((HEAD + b"data",), NotReadableError),
        ((HEAD.replace(b"image", b"other"),), BadParameterError),
    ],
)
def test_what_was_read_is_gone_with_the_request(monkeypatch, chunks, error):
    """Without waiting for the garbage collector: a form can hold 64 MB."""
    forms, make = [], request_body._ImageForm

    def make_and_see(*given):
        form = make(*given)
        forms.append(weakref.ref(form))
        return form

    monkeypatch.setattr(request_body, "_ImageForm", make_and_see)

    async def read():
        body = RequestBody(make_request(receive_all(*chunks)))
        if error is None:
            (image,) = await body.read_images(Holding(Admission()))
            assert image.data == b"data"
        else:
            with pytest.raises(error):
                await body.read_images(Holding(Admission()))

    gc.disable()
    try:
        asyncio.run(read())
        (form,) = forms
        kept = form()
        assert kept is None or (kept._images, bytes(kept._part.data), kept._parser.callbacks) == ([], b"", {})
    finally:
        gc.enable()


def test_what_is_announced_is_not_held_and_what_arrived_is():
    async def run():
        admission, arrived = Admission(), asyncio.Event()

        async def receive():
            if not arrived.is_set():
                arrived.set()
                return {"type": "http.request", "body": HEAD, "more_body": True}
            return await asyncio.Event().wait()

        with admission.hold() as holding:
            body = RequestBody(make_request(receive, length=30_000_000))
            reading = asyncio.create_task(body.read_images(holding))
            await arrived.wait()
            await asyncio.sleep(0)
            assert admission.held_bytes == len(HEAD)
            reading.cancel()
        assert admission.held_bytes == 0

    asyncio.run(run())


@pytest.mark.parametrize("kind", [b"image/png", b"multipart/form-data; boundary=b"])
def test_where_memory_is_short_the_slow_sender_is_given_up_for_a_fast_one(kind):
    async def run():
        admission, stalled = Admission(max_bytes=1000), asyncio.Event()

        async def stall():
            if not stalled.is_set():
                stalled.set()
                return {"type": "http.request", "body": HEAD + b"x" * 800, "more_body": True}
            return await asyncio.Event().wait()

        async def read_slowly():
            with admission.hold() as holding:
                await RequestBody(make_request(stall, kind=kind)).read_images(holding)

        slow = asyncio.create_task(read_slowly())
        await stalled.wait()
        await asyncio.sleep(0.01)
        with admission.hold() as holding:
            whole = (HEAD + b"y" * 500, b"\r\n--b--\r\n")
            (image,) = await RequestBody(make_request(receive_all(*whole))).read_images(holding)
            assert image.data == b"y" * 500
            assert admission.held_bytes == sum(map(len, whole))
        with pytest.raises(OverloadedError, match="too slowly") as refused:
            await slow
        assert refused.value.retry_after_s == 1
        assert admission.held_bytes == 0

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["predictions", "feedback"])
def test_what_is_discarded_after_a_refusal_is_not_held(kind):
    admission, held = Admission(), []
    classifier = SimpleNamespace(manifest=SimpleNamespace(classes=("red", "green")))
    models = SimpleNamespace(select=lambda _: classifier, draw=lambda champion: champion, stop=lambda: None)
    api = PredictionApi(models, admission)
    feedback = FeedbackApi(api, None, None)
    other = b"\r\n" + HEAD.replace(b"image", b"other")
    left = [HEAD + b"a" * 1000, other, b"rest", b"end"]

    async def receive():
        held.append(admission.held_bytes)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    request = make_request(receive)
    request.app.state.pages = SimpleNamespace(check=lambda _: None)
    answer = _guard(SimpleNamespace(handle=api.predict if kind == "predictions" else feedback.take))
    try:
        with pytest.raises(BadParameterError, match="other"):
            asyncio.run(answer(request))
    finally:
        feedback.close()
        api.close()
    assert held == [0, len(HEAD) + 1000, 0, 0]


@pytest.mark.parametrize("end", [b"c", b"-c", b"\rc"])
@pytest.mark.parametrize("size_bytes", [1_500, 9_000_000])
def test_text_that_begins_like_a_boundary_costs_no_time(end, size_bytes):
    """The parser reads it byte by byte, on the event loop: 10 MB took it for two seconds."""
    body = HEAD + (b"\r\n--b" + end) * (9_000_000 // (5 + len(end)))
    chunks = [body[start : start + size_bytes] for start in range(0, len(body), size_bytes)]
    request = make_request(receive_all(*chunks))
    start_s = time.thread_time()
    with pytest.raises(NotReadableError, match="boundary comes more than 128 times"):
        asyncio.run(RequestBody(request).read_images(Holding(Admission())))
    assert time.thread_time() - start_s < 0.3


def test_a_form_of_as_many_images_as_there_may_be_is_read():
    part = HEAD + b"data\r\n"
    request = make_request(receive_all(part * 64 + b"--b--\r\n"))
    images = asyncio.run(RequestBody(request).read_images(Holding(Admission())))
    assert [image.data for image in images] == [b"data"] * 64


@pytest.mark.parametrize("parameter", [b";", b"; a=b"])
@pytest.mark.parametrize("name", [b"Content-Disposition", b"Content-Type"])
def test_headers_of_parameters_without_end_are_refused_at_once(name, parameter):
    """Each costs microseconds: 64 parts of them took the event loop seconds."""
    value = b'form-data; name="image"; filename="a"' + parameter * (3_000 // len(parameter))
    inner = HEAD[:-2] + name + b": " + value + b"\r\n\r\n"
    for kind, body in ((value, b""), (b"multipart/form-data; boundary=b", inner)):
        request = make_request(receive_all(body), kind=kind)
        with pytest.raises(NotReadableError, match="more than 20 parameters"):
            asyncio.run(RequestBody(request).read_images(Holding(Admission())))


def test_thousands_of_query_parameters_are_refused_unread():
    """64 kB of them took the event loop 30 ms."""
    selected = []
    api = PredictionApi(SimpleNamespace(select=selected.append, stop=lambda: None), Admission())
    request = make_request(receive_all(b""))
    request.state.body = RequestBody(request)
    request.scope["query_string"] = b"model=cifar10&" + b"a&" * 20_000
    try:
        with pytest.raises(BadParameterError, match="20,002 query parameters; the only ones are model and top_k"):
            asyncio.run(api.predict(request))
    finally:
        api.close()
    assert selected == []
