"""The body of a request -> encoded images and texts, in memory, within limits, whatever the client sends.

Limits are enforced while bytes arrive, so an endless body costs no more than a large one. An image is only
ever the bytes that were sent: a form field that holds a URL or a path is refused.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from serving.decoding.encoded import EncodedImage
from serving.errors import (
    BadParameterError,
    NotAnImageError,
    NotReadableError,
    OverloadedError,
    SlowBodyError,
    TooLargeError,
    WrongFormError,
    WrongTypeError,
)
from serving.http.addresses import find_url
from serving.http.admission import GIVEN_UP, Holding
from serving.http.examples import write_curl
from serving.limits import BODY_TIMEOUT_S, MAX_BODY_BYTES, MAX_IMAGE_BYTES, MAX_IMAGES, MAX_PARAMETERS
from serving.models.predictions import FIELD_NAME

MAX_TEXT_BYTES = 4096
# A form of one image and some texts.
_MAX_SINGLE_BYTES = MAX_IMAGE_BYTES + 16 * MAX_TEXT_BYTES
_MAX_HEADER_BYTES = 16_384
_MAX_PART_HEADERS = 16
# No form has so many parts. Text that only begins like a boundary costs the parser a microsecond for each byte.
_MAX_BOUNDARIES = 2 * MAX_IMAGES
_EXTENDED_FILENAME = re.compile(rb"(?i);\s*filename\*\s*=\s*\"?(utf-8|iso-8859-1)'[\w-]*'([^\s;\"]+)")
_DISCARD_TIMEOUT_S = 5.0

_Model = TypeVar("_Model", bound=BaseModel)


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

    async def read_images(self, holding: Holding, max_images: int = MAX_IMAGES) -> list[EncodedImage]:
        """Read the images, in the order they were sent.

        Args:
            holding: Account of the bytes that arrive, taken before they are kept.
            max_images: Most images, 1 to 64.

        Returns:
            1 or more images; none is empty.

        Raises:
            WrongTypeError: The content type or encoding, of the body or a part, is none of an image.
            TooLargeError: Too many bytes or parts.
            BadParameterError: The form has a field that is not a file called `image`, or none that is.
            NotAnImageError: An image has no bytes.
            NotReadableError: The multipart body is malformed.
            SlowBodyError: The body did not arrive in time.
            OverloadedError: `holding` refused, or gave this body up for others.
            starlette.requests.ClientDisconnect: The client went away.
        """
        async with self._within_time(holding):
            return await self._read(holding, max_images)

    @property
    def media_type(self) -> str:
        """The content type in lower case, without its options; empty where there is none."""
        return self._content_type[0].decode("latin-1")

    @property
    def _example(self) -> str:
        request = self._request
        has_keys = request.app.state.keys is not None
        return f"for example: {write_curl(request.scope['path'], find_url(request), has_keys)}"

    @cached_property
    def _content_type(self) -> tuple[bytes, dict[bytes, bytes]]:
        return _parse_header(self._request.headers.get("content-type", "").encode("latin-1"))

    async def read_form(self, texts: tuple[str, ...], holding: Holding) -> tuple[EncodedImage, dict[str, str]]:
        """Read a form of one image and some texts.

        Args:
            texts: Names of the text fields that it may have.
            holding: Account of the bytes that arrive, taken before they are kept.

        Returns:
            The image, and those of the texts that came, by name.

        Raises:
            ServingError: As `read_images`.
            starlette.requests.ClientDisconnect: The client went away.
        """
        async with self._within_time(holding):
            (image,), given = await self._read_form(holding, _MAX_SINGLE_BYTES, texts, 1)
        return image, given

    async def read_text(self, holding: Holding, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
        """Read a body as it is, such as JSON.

        Args:
            holding: Account of the bytes that arrive, taken before they are kept.
            max_bytes: Most bytes that it may have.

        Raises:
            TooLargeError: It has more.
            SlowBodyError: It did not arrive in time.
            OverloadedError: `holding` refused, or gave this body up for others.
            starlette.requests.ClientDisconnect: The client went away.
        """
        async with self._within_time(holding):
            return b"".join([chunk async for chunk in self._stream(max_bytes, "a text body", holding)])

    async def read_json(self, kind: type[_Model], holding: Holding) -> _Model:
        """Read a small JSON object.

        Args:
            kind: Type of the object.
            holding: Account of the bytes that arrive, taken before they are kept.

        Raises:
            ServingError: Refusals of `read_text`; another content type, or another object.
            starlette.requests.ClientDisconnect: The client went away.
        """
        if self.media_type != "application/json":
            raise WrongTypeError(f"content type {self.media_type[:80] or 'missing'!r}; send application/json")
        try:
            return kind.model_validate_json(await self.read_text(holding))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the body"
            required = [name for name, one in kind.model_fields.items() if one.is_required()]
            remedy = f"send {' and '.join(required)}" if required else f"it may have {' and '.join(kind.model_fields)}"
            raise BadParameterError(f"{where}: {first['msg']}; {remedy}") from error

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

    @asynccontextmanager
    async def _within_time(self, holding: Holding) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s) as timeout:
                with holding.read(lambda: timeout.reschedule(0)):
                    yield
        except TimeoutError as error:
            if holding.is_given_up:
                raise OverloadedError(GIVEN_UP) from error
            raise SlowBodyError(f"the body did not arrive within {self._timeout_s:g} seconds") from error

    async def _read_form(
        self, holding: Holding, max_bytes: int, texts: tuple[str, ...], max_images: int
    ) -> tuple[list[EncodedImage], dict[str, str]]:
        _, options = self._content_type
        form = _ImageForm(options.get(b"boundary", b""), texts, max_images, self._example)
        what = "the images of one request" if max_images > 1 else "a form with one image"
        try:
            async for chunk in self._stream(max_bytes, what, holding):
                form.feed(chunk)
            return form.finish(), form.texts
        finally:
            form.release()

    async def _read(self, holding: Holding, max_images: int) -> list[EncodedImage]:
        headers = self._request.headers
        encoding = headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise WrongTypeError(f"content-encoding {encoding!r}; send the image as it is")
        media_type, _ = self._content_type
        if media_type == b"multipart/form-data":
            max_bytes = MAX_BODY_BYTES if max_images > 1 else _MAX_SINGLE_BYTES
            images, _ = await self._read_form(holding, max_bytes, (), max_images)
            return images
        if not _is_image_type(media_type):
            raise WrongTypeError(
                f"content type {media_type.decode('latin-1') or 'missing'!r}; send one image as image/* or "
                f"application/octet-stream, or several as files called `{FIELD_NAME}` in multipart/form-data; "
                f"{self._example}"
            )
        body = bytearray()
        try:
            async for chunk in self._stream(MAX_IMAGE_BYTES, "an image", holding):
                body += chunk
            if not body:
                raise NotAnImageError("the body is empty; send an image")
            return [EncodedImage(bytes(body), None)]
        finally:
            body.clear()  # An error's traceback would keep it.

    async def _stream(self, max_bytes: int, what: str, holding: Holding) -> AsyncIterator[bytes]:
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
            holding.take(len(chunk))
            yield chunk

    async def _receive(self) -> bytes:
        message = await self._request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._is_complete = not message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk


def _parse_header(value: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Return a header's value and its parameters.

    Raises:
        NotReadableError: There are more parameters than any client sends.
    """
    if value.count(b";") > MAX_PARAMETERS:
        raise NotReadableError(f"a header has more than {MAX_PARAMETERS} parameters")
    return parse_options_header(value)


def _is_image_type(media_type: bytes) -> bool:
    return media_type.startswith(b"image/") or media_type == b"application/octet-stream"


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    text_name: str | None = None
    filename: str = ""
    data: bytearray = field(default_factory=bytearray)


class _ImageForm:
    """Collects file parts called `image` and the texts it was told of; refuses others as soon as their head is read."""

    def __init__(self, boundary: bytes, texts: tuple[str, ...], max_images: int, example: str) -> None:
        self._images: list[EncodedImage] = []
        self.texts: dict[str, str] = {}
        self._text_names = texts
        self._max_images = max_images
        self._example = example
        self._part = _Part()
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._is_complete = False
        self._boundary = b"\r\n--" + boundary
        self._boundaries = 0
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
        self._boundaries += chunk.count(self._boundary)
        if self._boundaries > _MAX_BOUNDARIES:
            raise NotReadableError(f"the multipart boundary comes more than {_MAX_BOUNDARIES} times; send another one")
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise NotReadableError(f"the multipart body is malformed: {error}") from error

    def release(self) -> None:
        """Let go of what was read: form and parser hold each other, which would keep it until they are collected."""
        self._parser.callbacks = {}
        self._images, self._part = [], _Part()

    def finish(self) -> list[EncodedImage]:
        if not self._is_complete:
            raise NotReadableError("the multipart body ends before its last boundary")
        if not self._images:
            wanted = "one file" if self._max_images == 1 else f"1 to {self._max_images} files"
            raise WrongFormError(f"the form holds no image; send {wanted} called `{FIELD_NAME}`")
        return self._images

    def _begin_part(self) -> None:
        if len(self._images) + len(self.texts) == self._max_images + len(self._text_names):
            self._refuse_more()
        self._part = _Part()

    def _refuse_more(self) -> None:
        what = "one image" if self._max_images == 1 else f"{self._max_images} images"
        raise TooLargeError(f"more than {what} in one request; send them in several")

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
        disposition = self._part.headers.get(b"content-disposition", b"")
        _, options = _parse_header(disposition)
        filename = _read_filename(disposition, options)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name in self._text_names and filename is None:
            if name in self.texts:
                raise WrongFormError(f"form field `{name}` came twice; send it once")
            self._part.text_name = name
            return
        if name != FIELD_NAME:
            texts = "".join(f", and the text `{text}`" for text in self._text_names)
            raise WrongFormError(
                f"form field {name[:40]!r}; the only file is `{FIELD_NAME}`{texts}; parameters belong into the "
                f"address; {self._example}"
            )
        if len(self._images) == self._max_images:
            self._refuse_more()
        if filename is None:
            raise WrongFormError(
                f"form field `{FIELD_NAME}` must be a file; a text, a path or a URL is never followed; {self._example}"
            )
        media_type, _ = _parse_header(self._part.headers.get(b"content-type", b"application/octet-stream"))
        if not _is_image_type(media_type):
            raise WrongTypeError(f"a part of content type {media_type.decode('latin-1')!r}; send image/*")
        self._part.filename = filename

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._part.data += data[start:end]
        if self._part.text_name is not None and len(self._part.data) > MAX_TEXT_BYTES:
            raise TooLargeError(f"form field `{self._part.text_name}` may have {MAX_TEXT_BYTES:,} bytes; more came")
        if len(self._part.data) > MAX_IMAGE_BYTES:
            raise TooLargeError(f"{self._part.filename!r}: an image may have {MAX_IMAGE_BYTES:,} bytes; more came")

    def _end_part(self) -> None:
        if self._part.text_name is not None:
            try:
                self.texts[self._part.text_name] = self._part.data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise BadParameterError(f"form field `{self._part.text_name}` is not UTF-8 text") from error
            return
        if not self._part.data:
            raise NotAnImageError(f"{self._part.filename!r} is empty; send an image")
        self._images.append(EncodedImage(bytes(self._part.data), self._part.filename))

    def _end(self) -> None:
        self._is_complete = True


def _read_filename(disposition: bytes, options: Mapping[bytes, bytes]) -> str | None:
    """Return a part's file name, also of RFC 5987's form `filename*`, which its parser leaves out; None without one."""
    if b"filename" in options:
        return options[b"filename"].decode("utf-8", "replace")
    extended = _EXTENDED_FILENAME.search(disposition)
    return extended and unquote_to_bytes(extended[2]).decode(extended[1].decode().lower(), "replace")
