import asyncio
import gc
import weakref

import pytest
from starlette.requests import Request

from serving import request_body
from serving.errors import BadParameterError, NotReadableError, OverloadedError
from serving.request_body import RequestBody

HEAD = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'


def receive_all(*chunks):
    left = [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks) - 1}
        for number, chunk in enumerate(chunks)
    ]

    async def receive():
        return left.pop(0)

    return receive


def make_request(receive, length=None):
    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    headers += [(b"content-length", str(length).encode())] if length is not None else []
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


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
    forms, make = [], request_body._PictureForm

    def make_and_see(*given):
        form = make(*given)
        forms.append(weakref.ref(form))
        return form

    monkeypatch.setattr(request_body, "_PictureForm", make_and_see)

    async def read():
        body = RequestBody(make_request(receive_all(*chunks)))
        if error is None:
            (picture,) = await body.read_pictures(lambda _: None)
            assert picture.data == b"data"
        else:
            with pytest.raises(error):
                await body.read_pictures(lambda _: None)

    gc.disable()
    try:
        asyncio.run(read())
        (form,) = forms
        kept = form()
        assert kept is None or (kept._pictures, bytes(kept._part.data), kept._parser.callbacks) == ([], b"", {})
    finally:
        gc.enable()


def test_the_announced_bytes_are_held_before_the_first_comes():
    held = []

    async def receive():
        raise AssertionError("nothing should be read")

    def hold(size_bytes):
        held.append(size_bytes)
        raise OverloadedError("full")

    with pytest.raises(OverloadedError):
        asyncio.run(RequestBody(make_request(receive, length=30_000_000)).read_pictures(hold))
    assert held == [30_000_000]


def test_what_comes_beyond_the_announced_bytes_is_held_too():
    held = []
    chunks = (HEAD, b"x" * 500, b"\r\n--b--\r\n")
    body = RequestBody(make_request(receive_all(*chunks), length=100))
    asyncio.run(body.read_pictures(held.append))
    assert held[0] == 100
    assert sum(held) == sum(map(len, chunks))
