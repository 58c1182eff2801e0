"""The body of `POST /v1/predict` -> encoded pictures, in memory, within limits, whatever the client sends.

Limits are enforced while bytes arrive, so an endless body costs no more than a large one. A picture is only
ever the bytes that were sent: a form field that holds a URL or a path is refused.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from serving.errors import (
    BadParameterError,
    NotAPictureError,
    NotReadableError,
    SlowBodyError,
    TooLargeError,
    WrongTypeError,
)
from serving.limits import BODY_TIMEOUT_S, MAX_BODY_BYTES, MAX_PICTURE_BYTES, MAX_PICTURES

FIELD_NAME = "image"
_MAX_HEADER_BYTES = 16_384
_MAX_PART_HEADERS = 16
_DISCARD_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class EncodedPicture:
    """One picture as it was sent.

    Attributes:
        data: The encoded file.
        filename: As the client named it; None for a raw body.
    """

    data: bytes
    filename: str | None


class RequestBody:
    """The body of one request, read once."""

    def __init__(self, request: Request, timeout_s: float = BODY_TIMEOUT_S) -> None:
        """Start with nothing read.

        Args:
            request: Its body is not read yet.
            timeout_s: The whole body must arrive in this time, seconds.
        """
        self._request = request
        self._timeout_s = timeout_s
        self._is_complete = False

    async def read_pictures(self, hold_bytes: Callable[[int], None]) -> list[EncodedPicture]:
        """Read the pictures, in the order they were sent.

        Args:
            hold_bytes: Called with the size of each chunk before it is kept.

        Returns:
            1 to 64 pictures; none is empty.

        Raises:
            WrongTypeError: The content type or encoding, of the body or a part, is none of a picture.
            TooLargeError: Too many bytes or parts.
            BadParameterError: The form has a field that is not a file called `image`, or none that is.
            NotAPictureError: A picture has no bytes.
            NotReadableError: The multipart body is malformed.
            SlowBodyError: The body did not arrive in time.
            OverloadedError: `hold_bytes` refused.
            starlette.requests.ClientDisconnect: The client went away.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._read(hold_bytes)
        except TimeoutError as error:
            raise SlowBodyError(f"the body did not arrive within {self._timeout_s:g} seconds") from error

    async def discard(self) -> bool:
        """Read on for a moment after a refusal: closing at once resets the connection unanswered.

        Returns:
            Whether the whole body was read; if not, the connection must be closed after the answer.
        """
        if self._request.headers.get("expect", "").lower() == "100-continue":
            return self._is_complete
        left = MAX_BODY_BYTES
        try:
            async with asyncio.timeout(_DISCARD_TIMEOUT_S):
                while left > 0 and not self._is_complete:
                    left -= len(await self._receive())
        except (TimeoutError, ClientDisconnect):
            return False
        return self._is_complete

    async def _read(self, hold_bytes: Callable[[int], None]) -> list[EncodedPicture]:
        headers = self._request.headers
        encoding = headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise WrongTypeError(f"content-encoding {encoding!r}; send the picture as it is")
        media_type, options = parse_options_header(headers.get("content-type"))
        if media_type == b"multipart/form-data":
            form = _PictureForm(options.get(b"boundary", b""))
            async for chunk in self._stream(MAX_BODY_BYTES, "the pictures of one request", hold_bytes):
                form.feed(chunk)
            return form.finish()
        if not _is_picture_type(media_type):
            raise WrongTypeError(
                f"content type {media_type.decode('latin-1') or 'missing'!r}; send one picture as image/* or "
                f"application/octet-stream, or several as files called `{FIELD_NAME}` in multipart/form-data"
            )
        body = bytearray()
        async for chunk in self._stream(MAX_PICTURE_BYTES, "a picture", hold_bytes):
            body += chunk
        if not body:
            raise NotAPictureError("the body is empty; send a picture")
        return [EncodedPicture(bytes(body), None)]

    async def _stream(self, max_bytes: int, what: str, hold_bytes: Callable[[int], None]) -> AsyncIterator[bytes]:
        message = f"{what} may have {max_bytes:,} bytes"
        announced = self._request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > max_bytes:
            raise TooLargeError(f"{message}; {int(announced):,} were announced")
        received = 0
        while not self._is_complete:
            chunk = await self._receive()
            received += len(chunk)
            if received > max_bytes:
                raise TooLargeError(f"{message}; more came")
            hold_bytes(len(chunk))
            yield chunk

    async def _receive(self) -> bytes:
        message = await self._request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._is_complete = not message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk


def _is_picture_type(media_type: bytes) -> bool:
    return media_type.startswith(b"image/") or media_type == b"application/octet-stream"


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    filename: str = ""
    data: bytearray = field(default_factory=bytearray)


class _PictureForm:
    """Collects the file parts called `image`, and refuses every other part as soon as its head is read."""

    def __init__(self, boundary: bytes) -> None:
        self._pictures: list[EncodedPicture] = []
        self._part = _Part()
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._is_complete = False
        if not boundary:
            raise NotReadableError("the content type multipart/form-data has no boundary")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_header_name,
                    "on_header_value": self._add_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._check_headers,
                    "on_part_data": self._add_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise NotReadableError(f"the multipart boundary is not valid: {error}") from error

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise NotReadableError(f"the multipart body is malformed: {error}") from error

    def finish(self) -> list[EncodedPicture]:
        if not self._is_complete:
            raise NotReadableError("the multipart body ends before its last boundary")
        if not self._pictures:
            raise BadParameterError(f"the form holds no picture; send 1 to {MAX_PICTURES} files called `{FIELD_NAME}`")
        return self._pictures

    def _begin_part(self) -> None:
        if len(self._pictures) == MAX_PICTURES:
            raise TooLargeError(f"more than {MAX_PICTURES} pictures in one request; send them in several")
        self._part = _Part()

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        self._limit_headers()

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._limit_headers()

    def _limit_headers(self) -> None:
        if (
            len(self._header_name) + len(self._header_value) > _MAX_HEADER_BYTES
            or len(self._part.headers) > _MAX_PART_HEADERS
        ):
            raise NotReadableError("the headers of a multipart part are too long")

    def _end_header(self) -> None:
        self._part.headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _check_headers(self) -> None:
        _, options = parse_options_header(self._part.headers.get(b"content-disposition"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name != FIELD_NAME:
            raise BadParameterError(f"form field {name!r}; the only field is `{FIELD_NAME}`")
        if b"filename" not in options:
            raise BadParameterError(
                f"form field `{FIELD_NAME}` must be a file; a text, a path or a URL is never followed"
            )
        media_type, _ = parse_options_header(self._part.headers.get(b"content-type", b"application/octet-stream"))
        if not _is_picture_type(media_type):
            raise WrongTypeError(f"a part of content type {media_type.decode('latin-1')!r}; send image/*")
        self._part.filename = options[b"filename"].decode("utf-8", "replace")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._part.data += data[start:end]
        if len(self._part.data) > MAX_PICTURE_BYTES:
            raise TooLargeError(f"{self._part.filename!r}: a picture may have {MAX_PICTURE_BYTES:,} bytes; more came")

    def _end_part(self) -> None:
        if not self._part.data:
            raise NotAPictureError(f"{self._part.filename!r} is empty; send a picture")
        self._pictures.append(EncodedPicture(bytes(self._part.data), self._part.filename))

    def _end(self) -> None:
        self._is_complete = True
