"""Requests that the service must refuse, or survive, as the bytes that go over the wire.

Most would be corrected by an HTTP library, so each is written out whole. `KINDS` names the functions that make them;
what they make is the same in every run.
"""

import gzip
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.contract import malformed_images as images
from tests.unit.serving.tiny_bundle import paint

CANARY = "{canary}"  # Replaced by the path of an image that exists.
REFUSED = "refused"
BROKEN = "broken"
LUCKY = "lucky"
ODD = "odd"
_PNG = b"Content-Type: image/png\r\n"
_FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"
_IMAGE = paint()


@dataclass(frozen=True)
class Malformed:
    """One connection's worth of bytes.

    Attributes:
        name: What is wrong.
        data: What is sent.
        fate: `refused`: answered with a 4xx of the contract's shape. `broken`: it is not HTTP; the server may also
            answer 400 by itself, or close the connection. `lucky`, `odd`: the same two, but it may also be valid.
        is_open: Whether the request may not be finished: where no answer comes, the sending side is closed.
        good_requests: How many come first that may be answered 200.
    """

    name: str
    data: bytes
    fate: str = REFUSED
    is_open: bool = False
    good_requests: int = 0


Requests = Iterator[Malformed]


def request(
    body: bytes = b"",
    headers: bytes = _PNG,
    *,
    target: bytes = b"/v1/predict",
    method: bytes = b"POST",
    length: bytes | None = None,
    version: bytes = b"HTTP/1.1",
) -> bytes:
    """Write out one request; the right Content-Length is put in when `length` is None, none at all when it is empty."""
    length = str(len(body)).encode() if length is None else length
    head = method + b" " + target + b" " + version + b"\r\nHost: darkroom\r\nConnection: close\r\n" + headers
    return head + (b"Content-Length: " + length + b"\r\n" if length else b"") + b"\r\n" + body


def part(
    data: bytes = _IMAGE,
    disposition: bytes = b'form-data; name="image"; filename="a.png"',
    headers: bytes = _PNG,
) -> bytes:
    """Write out one part of a form whose boundary is `b`."""
    return b"--b\r\nContent-Disposition: " + disposition + b"\r\n" + headers + b"\r\n" + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    """Write out a request with a form."""
    return request(b"".join(parts) + b"--b--\r\n", _FORM)


def truncated_images() -> Requests:
    for name, data in images.cut_images():
        yield Malformed(name, request(data))


def images_with_an_odd_end() -> Requests:
    for name, data in images.odd_ends():
        yield Malformed(name, request(data), LUCKY)


def changed_images() -> Requests:
    for name, data in images.changed_images():
        yield Malformed(name, request(data), LUCKY)


def noise() -> Requests:
    for name, data in images.noise():
        yield Malformed(name, request(data))


def bombs() -> Requests:
    for name, data in images.bombs():
        yield Malformed(name, request(data))
        yield Malformed(f"{name} in a form", form(part(), part(data)))


def disguised_files() -> Requests:
    for name, data in images.disguises():
        yield Malformed(name, request(data))
        yield Malformed(f"{name} in a form", form(part(data, headers=b"Content-Type: image/jpeg\r\n")))


def wrong_content_types() -> Requests:
    kinds = [b"", b" ", b"image", b"/png", b"png", b"text/plain", b"text/html", b"application/json", b"video/mp4"]
    kinds += [
        b"application/octet-streams",
        b"application/x-www-form-urlencoded",
        b"application/pdf",
        b"*/*",
        b"image *",
    ]
    kinds += [b"multipart/mixed; boundary=b", b"multipart/related; boundary=b", b"multipart; boundary=b", b";image/png"]
    kinds += [
        b"text/plain, image/png",
        b'"image/png"',
        b"image\xff/png",
        b"x" * 9000,
        b"\xf0\x9f\x90\x88/png",
        b",",
        b";;;",
    ]
    kinds += [
        b"message/http",
        b"font/woff",
        b"application/zip",
        b"model/stl",
        b"image%2Fpng",
        b"imag\te/png",
        b"=?utf-8?q?i?=",
    ]
    for kind in kinds:
        yield Malformed(f"{kind[:40]!r}", request(_IMAGE, b"Content-Type: " + kind + b"\r\n"))
    yield Malformed("no content type", request(_IMAGE, b""))
    for kind in (
        b"text/html",
        b"text/plain",
        b"application/json",
        b"",
        b"multipart/mixed; boundary=c",
        b"\xff",
        b"image",
    ):
        yield Malformed(f"part of {kind!r}", form(part(headers=b"Content-Type: " + kind + b"\r\n")))


def huge_headers() -> Requests:
    for size in (70_000, 200_000, 2_000_000):
        # The server's limit is 64 KiB, but what arrives in one piece of up to 256 KiB it reads as a whole.
        fate = BROKEN if size > 2**18 else ODD
        yield Malformed(f"value of {size}", request(_IMAGE, _PNG + b"X-A: " + b"a" * size + b"\r\n"), fate)
        yield Malformed(f"name of {size}", request(_IMAGE, _PNG + b"a" * size + b": a\r\n"), fate)
        yield Malformed(f"cookies of {size}", request(_IMAGE, _PNG + b"Cookie: a=b\r\n" * (size // 13)), fate)
        yield Malformed(f"content type of {size}", request(_IMAGE, b"Content-Type: " + b"a" * size + b"\r\n"), BROKEN)
        yield Malformed(f"no end after {size}", b"POST /v1/predict HTTP/1.1\r\nA: " + b"a" * size, BROKEN, True)
    many = b"".join(b"a%d: b\r\n" % one for one in range(60_000))
    yield Malformed("60000 short headers", request(_IMAGE, _PNG + many), BROKEN)
    yield Malformed("long but allowed content type", request(_IMAGE, b"Content-Type: " + b"a" * 50_000 + b"\r\n"))


def endless_heads() -> Requests:
    """More of what is not a body than any limit; the server must not keep it."""
    start, chunked = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\n" + _PNG, b"Transfer-Encoding: chunked\r\n\r\n"
    size = 60_000_000
    yield Malformed("address", b"POST /" + b"a" * size, BROKEN)
    yield Malformed("header", start + b"A: " + b"a" * size, BROKEN)
    yield Malformed("headers", start + b"A: b\r\n" * (size // 6), BROKEN)
    yield Malformed("name of a header", start + b"a" * size, BROKEN)
    yield Malformed("trailer", start + chunked + b"0\r\nA: " + b"a" * size, BROKEN)
    yield Malformed("trailers", start + chunked + b"0\r\n" + b"A: b\r\n" * (size // 6), BROKEN)
    yield Malformed("chunk extension", start + chunked + b"5;" + b"a" * size, BROKEN)
    get = b"GET / HTTP/1.1\r\nHost: x\r\n" + chunked + b"0\r\n" + b"A: b\r\n" * (size // 6)
    yield Malformed("trailers of a good request", get, BROKEN, good_requests=1)


def long_addresses() -> Requests:
    for size in (1000, 10_000, 50_000):
        yield Malformed(f"path of {size}", request(target=b"/v1/" + b"a" * size))
        yield Malformed(f"model of {size}", request(_IMAGE, target=b"/v1/predict?model=" + b"a" * size))
        yield Malformed(f"top_k of {size}", request(_IMAGE, target=b"/v1/predict?top_k=" + b"9" * size))
        yield Malformed(f"path of {size} slashes", request(target=b"/" * size))
        yield Malformed(f"path of {size} dots", request(target=b"/.." * (size // 3)))
    many = b"/v1/predict?top_k=0&" + b"a=b&" * 10_000
    yield Malformed("10000 parameters", request(_IMAGE, target=many))
    for size in (70_000, 1_000_000):
        yield Malformed(f"path of {size}", request(target=b"/" + b"a" * size), BROKEN)
        yield Malformed(
            f"query of {size}",
            request(_IMAGE, target=b"/v1/predict?a=" + b"b" * size),
            ODD if size < 2**18 else BROKEN,
        )


def texts_for_files() -> Requests:
    texts = [
        b"http://127.0.0.1:1/a.png",
        b"https://example.org/a.png",
        b"//example.org/a.png",
        b"ftp://127.0.0.1/a.png",
    ]
    texts += [b"file:///etc/passwd", b"/etc/passwd", b"../../../../etc/passwd", b"@/etc/passwd", b"~/.ssh/id_rsa"]
    texts += [b"file://" + CANARY.encode(), CANARY.encode(), b"@" + CANARY.encode(), b"\\\\127.0.0.1\\share\\a.png"]
    texts += [
        b"s3://bucket/a.png",
        b"gopher://127.0.0.1:6379/_FLUSHALL",
        b"dict://127.0.0.1:11211/",
        b"ldap://127.0.0.1/",
    ]
    texts += [b"data:image/png;base64,iVBORw0KGgo=", b"|id", b"$(id)", b"`id`", b"${jndi:ldap://127.0.0.1/a}"]
    texts += [
        b"{{7*7}}",
        b"' OR 1=1 --",
        b"%00",
        b"\0",
        b"\xff\xfe",
        b"C:\\windows\\win.ini",
        b"/dev/zero",
        b"/proc/self/environ",
    ]
    for text in texts:
        name = text.decode("latin-1")
        yield Malformed(f"body {name!r}", request(text))
        yield Malformed(f"field {name!r}", form(part(text, b'form-data; name="image"', b"")))
        yield Malformed(f"file {name!r}", form(part(text)))
        yield Malformed(
            f"urlencoded {name!r}", request(b"image=" + text, b"Content-Type: application/x-www-form-urlencoded\r\n")
        )
        named = b'form-data; name="image"; filename="' + text.replace(b"\\", b"\\\\") + b'"'
        yield Malformed(f"nothing named {name!r}", form(part(b"x", named)))


def forms_in_forms() -> Requests:
    inner = part() + b"--b--\r\n"
    for kind in (
        b"multipart/form-data; boundary=b",
        b"multipart/mixed; boundary=c",
        b"multipart/mixed",
        b"message/rfc822",
    ):
        yield Malformed(f"part of {kind!r}", form(part(inner, headers=b"Content-Type: " + kind + b"\r\n")))
    yield Malformed("form as an image", request(inner))
    yield Malformed("form as a file", form(part(inner.replace(b"--b", b"--c"))))
    deep = _IMAGE
    for depth in range(60):
        deep = deep.join(
            [b"--c%d\r\nContent-Type: multipart/mixed; boundary=c%d\r\n\r\n" % (depth, depth + 1), b"\r\n"]
        )
    yield Malformed("60 deep", form(part(deep, headers=b"Content-Type: multipart/mixed; boundary=c59\r\n")))
    yield Malformed("60 deep as an image", form(part(deep)))


def boundaries() -> Requests:
    whole = part() + b"--b--\r\n"
    kinds = [
        b"",
        b"; boundary",
        b"; boundary=",
        b"; boundary=;",
        b'; boundary=""',
        b'; boundary="b',
        b"; boundary=c",
        b"; boundary=bb",
    ]
    kinds += [
        b"; boundary=--b",
        b"; Boundary =b",
        b"; boundary=\xff",
        b"; boundary*=utf-8''c",
        b"; boundary=B",
        b"boundary=b",
    ]
    kinds += [b"; boundary=" + b"b" * size for size in (71, 257, 5000)]
    kinds += [
        b"; boundary=c; boundary=b",
        b"; boundary=b; boundary=c",
        b"; charset=b",
        b'; boundary="\\"',
        b"; boundary==b",
    ]
    lucky = (b"; Boundary =b", b"; boundary=c; boundary=b", b"; boundary=b; boundary=c")
    for kind in kinds:
        data = request(whole, b"Content-Type: multipart/form-data" + kind + b"\r\n")
        yield Malformed(f"{kind[:40]!r}", data, LUCKY if kind in lucky else REFUSED)
    cut = [whole[:size] for size in (0, 1, 2, 3, 4, 5, 9, 30, 60, 80, 100, len(whole) - 8, len(whole) - 4)]
    cut += [
        whole[:-1].replace(b"--b--", b""),
        whole.replace(b"\r\n", b"\n"),
        whole.replace(b"\r\n", b"\r"),
        b"\0" + whole,
    ]
    cut += [
        b"x" * 1000,
        b"\r\n" * 1000,
        b"--" * 1000,
        b"--b" * 300,
        b"--b\r\n" * 300,
        b"--b\0\r\n" + whole,
        b"--b--\r\n",
        b"--b--",
    ]
    cut += [
        whole.replace(b"--b--", b"--b-"),
        whole.replace(b"--b--", b"--c--"),
        b"--b--\r\n" + whole,
        b"--bb\r\n" + whole,
    ]
    for number, body in enumerate(cut):
        yield Malformed(f"body {number} of {len(body)} bytes: {body[:20]!r}", request(body, _FORM))


def part_heads() -> Requests:
    dispositions = [
        b"",
        b"form-data",
        b'form-data; filename="a.png"',
        b'form-data; name=""; filename="a.png"',
        b"attachment",
    ]
    dispositions += [
        b'form-data; name="images"; filename="a"',
        b'form-data; name="IMAGE"; filename="a"',
        b'form-data; name="image"',
    ]
    dispositions += [
        b'form-data; name="image\0"; filename="a"',
        b'form-data; name="\xff\xfe"; filename="a"',
        b"\xff\xff\xff",
    ]
    dispositions += [
        b'form-data; name="image[]"; filename="a"',
        b'form-data; name="im"; name="age"; filename="a"',
        b";;;;",
    ]
    dispositions += [
        b"form-data; name*=utf-8''images; filename=a",
        b'form-data; name=" image"; filename="a"',
        b"=" * 500,
    ]
    dispositions += [b'form-data; name="../image"; filename="a"', b'form-data; name="image" filename="a"', b'"' * 99]
    for disposition in dispositions:
        yield Malformed(f"{disposition[:40]!r}", form(part(disposition=disposition)))
    names = [
        b"\xff\xfe\xfd",
        b"\0",
        b"a" * 15_000,
        b"../../etc/passwd",
        b"\\\\x",
        b"\xed\xa0\x80",
        b"<script>",
        b"%0d%0aA: b",
    ]
    for name in names:
        disposition = b'form-data; name="image"; filename="' + name + b'"'
        yield Malformed(f"garbage called {name[:20]!r}", form(part(b"garbage", disposition)), REFUSED)
        yield Malformed(f"image called {name[:20]!r}", form(part(disposition=disposition)), LUCKY)
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n'
    lines = [
        b"no colon\r\n",
        b"\0: a\r\n",
        b"\xff: a\r\n",
        b": a\r\n",
        b" continued\r\n",
        b"a b: c\r\n",
        b"a: b\rc\r\n",
        b"a: b\n",
    ]
    lines += [
        b"".join(b"a%d: b\r\n" % one for one in range(100)),
        b"A: " + b"b" * 20_000 + b"\r\n",
        b"a" * 20_000 + b": b\r\n",
    ]
    for line in lines:
        body = head + line + b"\r\n" + _IMAGE + b"\r\n--b--\r\n"
        yield Malformed(f"header {line[:20]!r}", request(body, _FORM), LUCKY if line == b" continued\r\n" else REFUSED)
    yield Malformed("no headers", form(b"--b\r\n\r\n" + _IMAGE + b"\r\n"))
    yield Malformed("base64", form(part(b"aGVsbG8=", headers=b"Content-Transfer-Encoding: base64\r\n")))
    yield Malformed("gzip", form(part(gzip.compress(_IMAGE, mtime=0), headers=b"Content-Encoding: gzip\r\n")))
    yield Malformed("65 images", form(*[part()] * 65))
    yield Malformed("1000 empty parts", form(*[part(b"")] * 1000))
    yield Malformed("an empty part after an image", form(part(), part(b"")))
    yield Malformed("a text after an image", form(part(), part(b"5", b'form-data; name="top_k"', b"")))


def content_lengths() -> Requests:
    for length in (
        b"-1",
        b"-9999999999",
        b"+5",
        b"0x10",
        b"1e3",
        b"1.5",
        b"many",
        b"5 5",
        b"5,6",
        b"\xc2\xb2",
        b"9" * 40,
        b"NaN",
        b"%35",
    ):
        yield Malformed(f"{length!r}", request(_IMAGE, length=length), BROKEN, True)
    for length in (b"5", b"20", b"40"):
        yield Malformed(f"short: {length!r}", request(_IMAGE, length=length), BROKEN)
    for length in (b"1000", b"9999999"):
        yield Malformed(f"long: {length!r}", request(_IMAGE, length=length), BROKEN, True)
    for length in (b"10000001", b"99999999999", b"9" * 18):
        yield Malformed(f"far too long: {length!r}", request(_IMAGE, length=length), BROKEN, True)
    for one, two in ((b"5", b"6"), (b"75", b"0"), (b"0", b"75"), (b"-1", b"75"), (b"75", b"")):
        lines = b"Content-Length: " + one + b"\r\nContent-Length: " + two + b"\r\n"
        yield Malformed(f"{one!r} and {two!r}", request(_IMAGE, _PNG + lines, length=b""), BROKEN, True)
    yield Malformed("none", request(_IMAGE, length=b""), BROKEN)
    yield Malformed("zero", request(_IMAGE, length=b"0"), BROKEN)
    both = _PNG + b"Transfer-Encoding: chunked\r\n"
    yield Malformed("a length and chunks that are none", request(_IMAGE, both), BROKEN, True)


def chunked_bodies() -> Requests:
    lines = _PNG + b"Transfer-Encoding: chunked\r\n"
    size = b"%x" % len(_IMAGE)
    good = size + b"\r\n" + _IMAGE + b"\r\n"
    bodies = [
        _IMAGE,
        b"",
        b"\r\n",
        b"0",
        b"x\r\n",
        b"-5\r\nabcde\r\n0\r\n\r\n",
        b"0x5\r\nabcde\r\n0\r\n\r\n",
        b"5\nabcde\n0\n\n",
    ]
    bodies += [
        good,
        good + b"0\r\n",
        good[:-2] + b"0\r\n\r\n",
        good + b"zz\r\n\r\n",
        good + b"\0\0\0\0",
        good + good[:20],
        size,
    ]
    bodies += [
        b"f" * 30 + b"\r\n" + _IMAGE,
        b"ffffffff\r\n" + _IMAGE,
        b"5\r\nabcdefghij\r\n0\r\n\r\n",
        b" 5\r\nabcde\r\n0\r\n\r\n",
    ]
    bodies += [
        b"5;" + b"a" * 70_000 + b"\r\nabcde\r\n0\r\n\r\n",
        b"5\r\nabcde\r\n0\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
    ]
    bodies += [
        b"5\r\nabcde\r\n0\r\nno colon\r\n\r\n",
        b"\xef\xbc\x95\r\nabcde\r\n0\r\n\r\n",
        b"5_0\r\n" + b"a" * 80,
        b"1\r\na\r\n" * 2000,
    ]
    for body in bodies:
        yield Malformed(f"{body[:24]!r} ({len(body)} bytes)", request(body, lines, length=b""), BROKEN, True)
    yield Malformed("garbage in good chunks", request(b"7\r\ngarbage\r\n0\r\n\r\n", lines, length=b""))
    yield Malformed("nothing in good chunks", request(b"0\r\n\r\n", lines, length=b""))
    yield Malformed("10000 chunks of a byte", request(b"1\r\na\r\n" * 10_000 + b"0\r\n\r\n", lines, length=b""))
    codings = (
        b"gzip",
        b"gzip, chunked",
        b"chunked, gzip",
        b"chunked, chunked",
        b"identity",
        b"xchunked",
        b"",
        b"chunked\0",
    )
    for coding in codings:
        head = _PNG + b"Transfer-Encoding: " + coding + b"\r\n"
        yield Malformed(f"coding {coding!r}", request(good + b"0\r\n\r\n", head, length=b""), BROKEN, True)
    twice = lines + b"Transfer-Encoding: chunked\r\n"
    yield Malformed("chunked twice", request(good + b"0\r\n\r\n", twice, length=b""), BROKEN, True)
    old = request(good + b"0\r\n\r\n", lines, length=b"", version=b"HTTP/1.0")
    yield Malformed("chunked in HTTP/1.0", old, LUCKY, True)


def pipelined_garbage() -> Requests:
    good = request(_IMAGE).replace(b"Connection: close\r\n", b"")
    refused = request(b"garbage").replace(b"Connection: close\r\n", b"")
    rests = [b"garbage", b"\0" * 500, make_noise(500), b"GET", b"POST /v1/predict", _IMAGE, b"\x16\x03\x01" * 90]
    for rest in rests:
        end = rest + b"\r\n\r\n"
        yield Malformed(f"after a good request: {rest[:20]!r}", good + end, BROKEN, good_requests=1)
        yield Malformed(f"after two: {rest[:20]!r}", good + good + end, BROKEN, good_requests=2)
        yield Malformed(f"after a refused one: {rest[:20]!r}", refused + end, BROKEN)
    yield Malformed("50 refused at once", refused * 49 + request(b"garbage"))
    yield Malformed("a request in the body of another", request(good, length=b"3"), BROKEN)


def bad_first_lines() -> Requests:
    versions = [
        b"HTTP/0.9",
        b"HTTP/2.0",
        b"HTTP/9.9",
        b"HTTP/1",
        b"HTTP/1.10",
        b"HTTP/-1.1",
        b"http/1.1",
        b"HTTPS/1.1",
        b"HTTP/a.b",
        b"",
        b"\0",
        b"SIP/2.0",
    ]
    for version in versions:
        fate = ODD if version in (b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9.9") else BROKEN
        yield Malformed(f"version {version!r}", request(_IMAGE, version=version), fate, True)
    for method in (b"FOO", b"get", b"post", b"HACK" * 50):
        yield Malformed(f"method {method[:20]!r}", request(_IMAGE, method=method), BROKEN)
    for method in (
        b"TRACE",
        b"PROPFIND",
        b"PATCH",
        b"DELETE",
        b"PUT",
        b"OPTIONS",
        b"GET",
    ):
        yield Malformed(f"method {method[:20]!r}", request(_IMAGE, method=method))
    for method in (b"", b"PO ST", b"P\0ST", b"POST\t", b"P\xffST", b"(POST)", b"POST:", b"a" * 70_000):
        yield Malformed(f"method {method[:20]!r}", request(_IMAGE, method=method), BROKEN, True)
    for target in (
        b"",
        b" ",
        b"/v1/pre dict",
        b"/v1/predict\0",
        b"/v1/\xff",
        b"/\xc3\xa9",
        b"/v1/predict\t",
        b"/\x7f",
        b"/v1/predict?model=\xff",
    ):
        yield Malformed(f"target {target!r}", request(_IMAGE, target=target), BROKEN, True)
    targets = [
        b"*",
        b"//v1/predict",
        b"/v1/predict/",
        b"/V1/predict",
    ]
    targets += [
        b"/v1//predict",
        b"/v1/./predict",
        b"/v1/../v1/predict",
        b"/v1/predict%00",
        b"/v1/predict%20",
        b"/v1/predict;a=b",
        b"/v1/%ff",
    ]
    targets += [
        b"/v1/predict%2f",
        b"/%2e%2e/%2e%2e/etc/passwd",
        b"/../../etc/passwd",
        b"/v1/predict%0d%0aA:%20b",
        b"/%",
        b"/%zz",
        b"/v1/%u0070redict",
    ]
    for target in targets:
        yield Malformed(f"target {target!r}", request(_IMAGE, target=target))
    for target in (b"v1/predict", b"http://example.org/v1/predict", b"example.org:443"):
        yield Malformed(f"target {target!r}", request(_IMAGE, target=target), ODD)
    yield Malformed("no host", request(_IMAGE).replace(b"Host: darkroom\r\n", b""), ODD)
    yield Malformed("two hosts", request(_IMAGE, _PNG + b"Host: other\r\n"), ODD)
    lines = [
        b"no colon\r\n",
        b"a\0b: c\r\n",
        b"a: b\0c\r\n",
        b" folded\r\n",
        b"a b: c\r\n",
        b": c\r\n",
        b"\xff: c\r\n",
        b"a : b\r\n",
        b"a: b\x01\r\n",
        b"a\x7f: b\r\n",
    ]
    for line in lines:
        fate = ODD if line in (b" folded\r\n", b"a: b\x01\r\n") else BROKEN
        yield Malformed(f"header {line!r}", request(_IMAGE, line + _PNG), fate, True)
    others = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    others += [
        b"EHLO a\r\n",
        b"*1\r\n$8\r\nFLUSHALL\r\n",
        b"\r\n\r\n\r\n",
        b"\n",
        b"\0" * 70_000,
        make_noise(3000),
        b"GET /\r\n",
        b"GET / HTTP/1.1",
        b"{}",
    ]
    for data in others:
        yield Malformed(f"not HTTP: {data[:20]!r}", data, BROKEN, True)
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    upgrade += b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    for target, fate in ((b"/v1/predict", REFUSED), (b"/nowhere", REFUSED), (b"/", LUCKY)):
        head = b"GET " + target + b" HTTP/1.1\r\nHost: darkroom\r\n" + upgrade + b"\r\n"
        yield Malformed(f"websocket to {target!r}", head, fate, True)
    yield Malformed("upgrade to HTTP/2", request(_IMAGE, b"Upgrade: h2c\r\nHTTP2-Settings: AAAA\r\n"))


def make_noise(size: int) -> bytes:
    """Return noise."""
    return random.Random(19).randbytes(size)


def bad_parameters() -> Requests:
    counts = [
        b"0",
        b"-1",
        b"7",
        b"100",
        b"1.0",
        b"1e0",
        b"",
        b"%20",
        b"%201",
        b"1%20",
        b"+1",
        b"%2b1",
        b"0x1",
        b"one",
        b"NaN",
        b"inf",
    ]
    counts += [
        b"None",
        b"null",
        b"true",
        b"[1]",
        b"{}",
        b"1,2",
        b"1;2",
        b"%00",
        b"1%00",
        b"%ff",
        b"%EF%BC%91",
        b"%D9%A1",
        b"%C2%B2",
        b"1_0",
    ]
    counts += [
        b"9" * 20,
        b"9" * 5000,
        b"1%0a",
        b"%F0%9F%90%88",
        b"%",
        b"%zz",
        b"%u0031",
        b"1'--",
        b"../1",
        b"-0",
        b"00",
        b"1=1",
    ]
    for count in counts:
        yield Malformed(f"top_k={count[:20]!r}", request(_IMAGE, target=b"/v1/predict?top_k=" + count))
    names = [
        b"",
        b"dogs",
        b"Cifar10",
        b"cifar10%00",
        b"cifar10%20",
        b"%00",
        b"%ff%fe",
        b"../food",
        b"..%2ffood",
        b"/etc/passwd",
        b"file:///etc",
    ]
    names += [
        b"http://127.0.0.1:1/",
        b"*",
        b"%25s%25n",
        b"{0}",
        b"'OR'1'='1",
        b"cifar10;food",
        b"cifar10,food",
        b"[]",
        b"None",
        b"%0d%0aA:b",
    ]
    names += [
        b"%ED%A0%80",
        b"%F4%90%80%80",
        b"%E2%80%AE",
        b"a" * 3000,
        b"%F0%9F%90%88",
        b"<script>",
        b"cifar10/3",
        b".",
        b"..",
        b"%2e%2e%2f",
    ]
    for name in names:
        yield Malformed(f"model={name[:20]!r}", request(_IMAGE, target=b"/v1/predict?model=" + name))
    yield Malformed("both wrong", request(_IMAGE, target=b"/v1/predict?model=a&top_k=b"))
    yield Malformed("top_k twice", request(_IMAGE, target=b"/v1/predict?top_k=1&top_k=a"))
    yield Malformed("model twice", request(_IMAGE, target=b"/v1/predict?model=food&model=b"))
    yield Malformed("wrong and no image", request(b"", b"", target=b"/v1/predict?top_k=a"))


def expectations() -> Requests:
    expect = b"Expect: 100-continue\r\n"
    for kind in (b"text/html", b"", b"application/json"):
        head = request(b"", b"Content-Type: " + kind + b"\r\n" + expect, length=b"500")
        yield Malformed(f"{kind!r} and nothing sent", head)
    yield Malformed(
        "bad parameter and nothing sent", request(b"", _PNG + expect, target=b"/v1/predict?top_k=0", length=b"500")
    )
    yield Malformed("too much and nothing sent", request(b"", _PNG + expect, length=b"999999999"))
    yield Malformed("garbage", request(b"garbage", _PNG + expect))
    yield Malformed("image and then nothing", request(_IMAGE[:9], _PNG + expect, length=b"75"), BROKEN, True)
    for value in (b"200-ok", b"", b"100-continue, 100-continue", b"\xff", b"x" * 5000):
        yield Malformed(f"expects {value[:20]!r}", request(b"garbage", _PNG + b"Expect: " + value + b"\r\n"))


def content_encodings() -> Requests:
    packed = gzip.compress(_IMAGE, mtime=0)
    for coding in (
        b"gzip",
        b"GZIP",
        b"deflate",
        b"br",
        b"zstd",
        b"compress",
        b"gzip, gzip",
        b"identity, gzip",
        b"x",
        b"",
        b"\xff",
        b"*",
    ):
        head = _PNG + b"Content-Encoding: " + coding + b"\r\n"
        yield Malformed(f"{coding!r}", request(packed, head))
        if coding:
            yield Malformed(f"form in {coding!r}", request(gzip.compress(part(), mtime=0), _FORM + head))
    bomb = gzip.compress(bytes(50_000_000), mtime=0)
    yield Malformed("gzip bomb", request(bomb, _PNG + b"Content-Encoding: gzip\r\n"))
    yield Malformed("gzip bomb as it is", request(bomb))
    yield Malformed("deflate bomb as it is", request(images.compress_zeros(50_000_000)))


def bodies_where_none_belong() -> Requests:
    for method in (b"GET", b"DELETE", b"OPTIONS", b"PUT"):
        for size in (10, 100_000):
            yield Malformed(f"{method!r} /v1/predict with {size}", request(b"a" * size, method=method))
    for target in (b"/v1/models", b"/", b"/openapi.json", b"/livez", b"/readyz", b"/metrics"):
        yield Malformed(f"GET {target!r}", request(b"a" * 100_000, method=b"GET", target=target), LUCKY)
        yield Malformed(f"POST {target!r}", request(b"a" * 100_000, target=target), REFUSED)
    yield Malformed("GET with a broken form", request(b"--b", _FORM, method=b"GET", target=b"/v1/models"), LUCKY)
    yield Malformed("GET of nothing with a body", request(_IMAGE, method=b"GET", target=b"/v1/nothing"))


def too_much() -> Requests:
    yield Malformed("10 MB and a byte", request(bytes(10_000_001)))
    yield Malformed("10 MB and a byte in a form", form(part(bytes(10_000_001))))
    yield Malformed("10 MB of zeros", request(bytes(10_000_000)))
    yield Malformed("10 MB of boundaries", request(b"--b\r\n" * 2_000_000, _FORM))
    yield Malformed("5 MB of almost boundaries", form(part(b"\r\n--a" * 1_000_000)))
    yield Malformed("10 MB in a text field", form(part(bytes(10_000_000), b'form-data; name="image"', b"")))
    yield Malformed("60 MB of parts that are no images", form(*[part(bytes(950_000))] * 63))


KINDS: dict[str, Callable[[], Requests]] = {
    make.__name__: make
    for make in (
        truncated_images,
        images_with_an_odd_end,
        changed_images,
        noise,
        bombs,
        disguised_files,
        wrong_content_types,
        huge_headers,
        endless_heads,
        long_addresses,
        texts_for_files,
        forms_in_forms,
        boundaries,
        part_heads,
        content_lengths,
        chunked_bodies,
        pipelined_garbage,
        bad_first_lines,
        bad_parameters,
        expectations,
        content_encodings,
        bodies_where_none_belong,
        too_much,
    )
}
