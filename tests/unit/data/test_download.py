import hashlib
import http.server
import os
import re
import threading

import pytest

from model_code.data.add import add_dataset
from model_code.data.download import download_file
from model_code.errors import ChecksumError, DiskFullError, DownloadError, UsageError

CONTENT = os.urandom(1_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; cuts the connection after `cut_bytes` for the first `cuts` requests."""

    cuts = 0
    cut_bytes = 300_000
    has_ranges = True
    etag = '"one"'
    status = 200
    ranges: list

    def handle_error(self, request, client_address):
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = 0
        if wanted and server.has_ranges and self.headers.get("If-Range", server.etag) == server.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(CONTENT):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.send_header("ETag", server.etag)
        self.end_headers()
        body = CONTENT[start:]
        if server.cuts:
            server.cuts -= 1
            body = body[: server.cut_bytes]
        self.wfile.write(body)


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as server:
        server.ranges = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def fetch(server, tmp_path):
    def run(md5=MD5, **settings):
        url = f"http://127.0.0.1:{server.server_address[1]}/file.bin"
        settings = {"first_pause_s": 0.01, "is_progress_shown": False, **settings}
        return download_file(url, tmp_path / "data" / "file.bin", md5, **settings)

    return run


def test_whole_file_and_reuse(fetch, server):
    path = fetch()
    assert path.read_bytes() == CONTENT
    assert fetch() == path
    assert server.ranges == [None]
    assert {file.name for file in path.parent.iterdir()} == {"file.bin", ".file.bin.lock"}


def test_cut_connections_are_continued(fetch, server):
    server.cuts = 3
    assert fetch(tries=2).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_a_later_call_continues(fetch, server, tmp_path):
    server.cuts = 1
    with pytest.raises(DownloadError, match=r"ended after 300000 of 1000000 bytes.*300\.0 kB are kept in .*continue"):
        fetch(tries=1)
    assert fetch().read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=300000-"


@pytest.mark.parametrize("change", [{"has_ranges": False}, {"etag": '"two"'}])
def test_a_server_without_ranges_or_with_another_version_starts_again(fetch, server, change):
    server.cuts = 1
    with pytest.raises(DownloadError):
        fetch(tries=1)
    for name, value in change.items():
        setattr(server, name, value)
    assert fetch().read_bytes() == CONTENT


def test_cuts_without_progress_end(fetch, server):
    server.cuts, server.has_ranges = 100, False
    with pytest.raises(DownloadError, match="in 3 tries"):
        fetch(tries=3)
    assert len(server.ranges) == 3


def test_a_part_that_was_whole_already(fetch, server, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file.bin.part").write_bytes(CONTENT)
    assert fetch().read_bytes() == CONTENT
    (tmp_path / "data" / "file.bin").unlink()
    (tmp_path / "data" / "file.bin.part").write_bytes(CONTENT + b"more")
    assert fetch().read_bytes() == CONTENT


def test_wrong_checksum_removes_the_file(fetch, tmp_path):
    with pytest.raises(ChecksumError, match=r"has md5 .*published file has 0000.*removed"):
        fetch(md5="0000")
    assert {file.name for file in (tmp_path / "data").iterdir()} == {".file.bin.lock"}


def test_a_mirror_must_hold_the_published_archive(server, tmp_path):
    mirror = f"http://127.0.0.1:{server.server_address[1]}/cifar-10-python.tar.gz"
    folders = {"cache_dir": tmp_path / "cache", "data_dir": tmp_path / "data"}
    with pytest.raises(ChecksumError, match="c58f30108f718f92721af3b95e74349a"):
        add_dataset("cifar10", download=True, url=mirror, progress=False, **folders)
    assert len(server.ranges) == 1
    assert not (tmp_path / "cache" / "cifar10").exists()
    assert not list((tmp_path / "data").glob("cifar*"))


def test_a_damaged_file_is_fetched_again(fetch):
    path = fetch()
    path.write_bytes(b"damaged")
    assert fetch().read_bytes() == CONTENT


def test_refusals(fetch, server, tmp_path):
    server.status = 404
    with pytest.raises(DownloadError, match=r"answers 404 Not Found; give the file with --from PATH"):
        fetch()
    assert len(server.ranges) == 1
    server.status = 503
    with pytest.raises(DownloadError, match=r"in 2 tries \(the server answers 503"):
        fetch(tries=2)
    with pytest.raises(UsageError, match="http:// or https://"):
        download_file("file:///etc/passwd", tmp_path / "x", MD5)


def test_nobody_answers(tmp_path):
    with pytest.raises(DownloadError, match="in 2 tries"):
        download_file("http://127.0.0.1:9/x", tmp_path / "x", MD5, tries=2, first_pause_s=0.01)


def test_full_disk(fetch, tmp_path, small_disk):
    (tmp_path / "data").symlink_to(small_disk)
    (small_disk / "ballast").write_bytes(bytes(300_000))
    with pytest.raises(DiskFullError, match=r"downloading file\.bin needs 1\.0 MB"):
        fetch()
