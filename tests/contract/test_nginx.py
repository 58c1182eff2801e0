"""The service behind nginx with the usual lines for websockets, where nginx is installed."""

import hashlib
import os
import select
import shutil
import socket
import subprocess
import time

import pytest

from tests.unit.serving.tiny_bundle import COLOURS, paint, release

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
CONFIG = """
{user}daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off; client_max_body_size 70m;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{
    listen 127.0.0.1:{port};
    location /v1/feedback {{ return 403; }}
    location / {{
      proxy_pass {url}; proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";
    }}
  }}
}}
"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which(NGINX), reason="nginx is not installed")]


def send(port, data):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(data)
        answer = b""
        while select.select([connection], [], [], 2 if answer else 20)[0] and (part := connection.recv(65536)):
            answer += part
        return answer


@pytest.fixture
def proxy(tmp_path, start_service):
    release(tmp_path / "bundles")
    url = start_service(tmp_path, "--feedback").url
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path / "nginx.conf"
    # As the owner of the folder for long bodies.
    user = "user root; " if os.geteuid() == 0 else ""
    config.write_text(CONFIG.format(user=user, folder=tmp_path, port=port, url=url))
    process = subprocess.Popen([NGINX, "-p", str(tmp_path), "-c", str(config)], stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.1)
    yield port
    process.terminate()
    process.wait(20)


def test_no_request_is_hidden_in_a_body_that_asks_for_an_upgrade(proxy, tmp_path):
    image = paint()
    form = (
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + image + b"\r\n--b\r\n"
        b'Content-Disposition: form-data; name="label"\r\n\r\n' + next(iter(COLOURS)).encode() + b"\r\n--b--\r\n"
    )
    head = b"POST /v1/feedback HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    hidden = head + b"Content-Length: %d\r\n\r\n" % len(form) + form
    assert send(proxy, hidden).startswith(b"HTTP/1.1 403"), "nginx refuses it when it sees it"
    upgrade = (
        b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n"
    )
    for padding in (0, 1, 2, 100, 4_000, 32_800, 65_536, 400_000):
        body = b"\r\n" * padding + hidden
        answer = send(proxy, upgrade + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert answer.startswith(b"HTTP/1.1 400"), "a body that is no image"
        assert answer.count(b"HTTP/1.1 ") == 1
    assert list((tmp_path / "feedback").rglob(f"{hashlib.sha256(image).hexdigest()}*")) == []
    honest = send(proxy, upgrade + b"Content-Length: %d\r\n\r\n" % len(image) + image)
    assert honest.startswith(b"HTTP/1.1 200")
