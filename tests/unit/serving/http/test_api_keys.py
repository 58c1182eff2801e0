import errno
import os
import socket
import time

import pytest
from starlette.datastructures import Headers

from serving.errors import StartError, UnauthorizedError
from serving.http import api_keys
from serving.http.api_keys import MAX_FILE_BYTES, ApiKeys

OLD, NEW = "old-key-0123456789", "new-key-0123456789"


def enters(keys, key):
    try:
        keys.check(Headers({"x-api-key": key}))
    except UnauthorizedError:
        return False
    return True


@pytest.fixture
def file(tmp_path):
    """A file of keys that was written long ago."""
    path = tmp_path / "keys"
    path.write_text(f"{OLD}\n")
    return path


@pytest.fixture
def settled(monkeypatch):
    monkeypatch.setattr(api_keys, "_SETTLING_S", -1.0)
    monkeypatch.setattr(api_keys, "_REREAD_S", 0.0)


@pytest.fixture
def reads(monkeypatch):
    """The files that were read."""
    done, real = [], api_keys.open_regular
    monkeypatch.setattr(api_keys, "open_regular", lambda path: done.append(path) or real(path))
    return done


@pytest.mark.parametrize("content", [f"{OLD}\n", "short\n", f"{OLD}\n" * 60_000])
def test_a_new_or_bad_file_is_not_read_for_each_request(file, reads, monkeypatch, content):
    keys = ApiKeys(file)
    monkeypatch.setattr(api_keys, "_REREAD_S", 60.0)
    file.write_text(content)
    for _ in range(50):
        enters(keys, OLD)
    assert len(reads) <= 2


def test_a_file_of_the_future_settles(file, reads, monkeypatch):
    monkeypatch.setattr(api_keys, "_SETTLING_S", 0.05)
    monkeypatch.setattr(api_keys, "_REREAD_S", 0.0)
    os.utime(file, (time.time() + 1e6,) * 2)
    time.sleep(0.2)
    keys = ApiKeys(file)
    for _ in range(5):
        assert enters(keys, OLD)
    assert len(reads) == 1


def test_a_clock_that_was_put_back_settles(file, reads, monkeypatch):
    monkeypatch.setattr(api_keys, "_REREAD_S", 0.0)
    now_s = time.time()
    monkeypatch.setattr(api_keys.time, "time", lambda: now_s - 1e6)
    keys = ApiKeys(file)
    for _ in range(5):
        assert enters(keys, OLD)
    assert len(reads) == 1


def rotate(file, key=NEW):
    scratch = file.with_name("scratch")
    scratch.write_text(f"{key}\n")
    scratch.replace(file)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_read_that_failed_once_is_tried_again(file, monkeypatch, settled, caplog, number):
    keys = ApiKeys(file)
    assert enters(keys, OLD)

    def fail(_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(api_keys, "open_regular", fail)
        assert enters(keys, OLD), "the file is as it was read"
        rotate(file)
        assert not enters(keys, OLD)
        assert not enters(keys, NEW), "it may be a key, and it may not"
        assert os.strerror(number) in keys.problem
    assert not enters(keys, OLD)
    assert enters(keys, NEW)
    assert keys.problem == ""
    assert [record.levelname for record in caplog.records] == ["WARNING"], "told once"


def test_open_files_that_run_out_let_no_revoked_key_in(file, settled):
    keys = ApiKeys(file)
    rotate(file)
    held = []
    try:
        while True:
            held.append(socket.socket())
    except OSError:
        assert not enters(keys, OLD)
        assert not enters(keys, NEW)
    finally:
        for one in held:
            one.close()
    assert not enters(keys, OLD)
    assert enters(keys, NEW)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_mode_that_is_mended_counts(file, settled):
    keys = ApiKeys(file)
    rotate(file)
    file.chmod(0)
    assert not enters(keys, OLD)
    file.chmod(0o600)
    assert not enters(keys, OLD)
    assert enters(keys, NEW)


def test_a_change_with_the_same_time_stamps_counts(file):
    """Two writes within one tick of the clock, of keys of one length."""
    keys = ApiKeys(file)
    for key in (NEW, OLD, NEW):
        status = file.stat()
        file.write_text(f"{key}\n")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        time.sleep(api_keys._REREAD_S)
        assert enters(keys, key)
        assert not enters(keys, OLD if key == NEW else NEW)


def test_a_file_that_did_not_change_is_not_read_again(file, monkeypatch, settled):
    keys = ApiKeys(file)
    monkeypatch.setattr(api_keys, "open_regular", None)
    assert enters(keys, OLD)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.mkdir(), lambda path: path.symlink_to("nowhere")])
def test_what_is_no_file_blocks_nothing_and_lets_nobody_in(file, settled, make):
    keys = ApiKeys(file)
    file.unlink()
    make(file)
    start_s = time.monotonic()
    assert not enters(keys, OLD)
    with pytest.raises(StartError, match="cannot be read: "):
        ApiKeys(file)
    assert time.monotonic() - start_s < 1


def test_a_huge_file_is_not_taken_for_keys(file, settled):
    keys = ApiKeys(file)
    file.write_text(f"{OLD}\n" * (1 + MAX_FILE_BYTES // len(f"{OLD}\n")))
    assert not enters(keys, OLD)
    assert "more than 1,000,000 bytes" in keys.problem


@pytest.mark.parametrize("key", [OLD, NEW, "x", f"{OLD[:-1]}x"])
def test_every_key_is_compared_in_constant_time_whatever_was_given(monkeypatch, file, key):
    file.write_text(f"{OLD}\n{NEW}\nthird-key-0123456789\n")
    keys, compared, compare = ApiKeys(file), [], api_keys.hmac.compare_digest

    def note(given, known):
        compared.append((len(given), len(known)))
        return compare(given, known)

    monkeypatch.setattr(api_keys.hmac, "compare_digest", note)
    assert enters(keys, key) == (key in (OLD, NEW))
    assert compared == [(32, 32)] * 3
