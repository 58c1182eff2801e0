import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from model_code.disk import (
    check_free_space,
    count_free_bytes,
    flush_folder,
    format_size,
    hold_lock,
    is_locked,
    take_lock,
    write_atomically,
    writing_to,
)
from model_code.errors import BusyError, DataError, DiskFullError

HOLD_LOCK = """
import sys, time
from pathlib import Path
from model_code.disk import take_lock
with take_lock(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold_elsewhere():
    """Start a process that takes a lock; it ends with the test."""
    started = []

    def start(path):
        process = subprocess.Popen([sys.executable, "-c", HOLD_LOCK, str(path)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (153_600_000, "153.6 MB"),
        (2_500_000_000, "2.5 GB"),
        (7_000_000_000_000, "7.0 TB"),
        (9_000_000_000_000_000, "9000.0 TB"),
    ],
)
def test_sizes_as_people_read_them(size_bytes, text):
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("home", "remedy"),
    [(".", "set DARKROOM_HOME to a folder on another disk"), ("home", "choose a folder on another disk")],
)
def test_free_space_is_checked_before_anything_is_written(small_disk, monkeypatch, home, remedy):
    monkeypatch.setenv("DARKROOM_HOME", str(small_disk / home))
    free_bytes = count_free_bytes(small_disk)
    assert 900_000 < free_bytes <= 1024**2
    check_free_space(small_disk, free_bytes, "packing pets")
    with pytest.raises(DiskFullError, match=rf"packing pets needs 2\.0 MB, 1\.0 MB is free.*{remedy}") as caught:
        check_free_space(small_disk, 2_000_000, "packing pets")
    assert str(caught.value).startswith(f"the disk of {small_disk} is full")


def test_a_file_is_made_with_its_folder_and_replaced(tmp_path):
    file = tmp_path / "a" / "b" / "state.pt"
    write_atomically(file, b"first")
    assert file.read_bytes() == b"first"
    write_atomically(file, b"second")
    assert file.read_bytes() == b"second"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [path.name for path in file.parent.iterdir()] == ["state.pt"]


def test_a_full_disk_leaves_the_old_file(small_disk):
    file = small_disk / "state.pt"
    write_atomically(file, b"old")
    with pytest.raises(
        DiskFullError, match=r"saving state\.pt needs 2\.0 MB, .* nothing that was there is lost"
    ) as caught:
        write_atomically(file, bytes(2_000_000))
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == b"old"
    assert [path.name for path in small_disk.iterdir()] == ["state.pt"]
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"


def test_a_full_disk_without_an_old_file_leaves_nothing(small_disk):
    with pytest.raises(DiskFullError):
        write_atomically(small_disk / "run" / "state.pt", bytes(2_000_000))
    assert list((small_disk / "run").iterdir()) == []


def test_a_place_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "state.pt", tmp_path / "folder"):
        with pytest.raises(DataError, match=rf"^saving {path.name}: cannot write below {path.parent}: .*DARKROOM_HOME"):
            write_atomically(path, b"content")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EROFS, DataError), (errno.EIO, DataError)],
)
def test_what_the_system_says_becomes_one_line(tmp_path, code, error):
    missing = tmp_path / "not" / "there"
    with pytest.raises(error) as caught, writing_to(missing, 10, "packing pets"):
        raise OSError(code, os.strerror(code))
    assert "packing pets" in str(caught.value)
    assert str(missing) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


def test_other_errors_pass(tmp_path):
    with pytest.raises(KeyError), writing_to(tmp_path, 0, "x"):
        raise KeyError


def test_a_reader_never_sees_half_a_file(tmp_path):
    file = tmp_path / "state.pt"
    contents = {bytes([number]) * 200_000 for number in range(20)}
    write_atomically(file, min(contents))
    seen, is_done = set(), threading.Event()

    def read():
        while not is_done.is_set():
            seen.add(file.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for content in sorted(contents):
        write_atomically(file, content)
    is_done.set()
    reader.join()
    assert seen
    assert seen <= contents


def test_flushing_a_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    flush_folder(tmp_path)
    with pytest.raises(NotADirectoryError):
        flush_folder(tmp_path / "file")


def test_a_lock_that_another_process_holds_is_refused_at_once(tmp_path, hold_elsewhere):
    path = tmp_path / "locks" / "gpu.lock"
    process = hold_elsewhere(path)
    with pytest.raises(BusyError, match=r"^the GPU is busy$"), take_lock(path, "the GPU is busy"):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with take_lock(path, "the GPU is busy"):
        assert path.exists()


def test_a_lock_is_free_after_its_block_however_it_ended(tmp_path):
    path = tmp_path / "gpu.lock"
    with take_lock(path, "busy"):
        for _ in range(2):
            with pytest.raises(BusyError), take_lock(path, "busy"):
                pass
    with pytest.raises(KeyError), take_lock(path, "busy"):
        raise KeyError
    with take_lock(path, "busy"):
        pass


def test_different_locks_do_not_exclude_each_other(tmp_path):
    with take_lock(tmp_path / "a.lock", "busy"), take_lock(tmp_path / "b.lock", "busy"):
        pass


def test_holding_a_lock_waits_for_the_holder(tmp_path, hold_elsewhere, caplog):
    path = tmp_path / "locks" / "mlflow.lock"
    process = hold_elsewhere(path)
    is_held = threading.Event()

    def wait():
        with hold_lock(path, "opening the store"):
            is_held.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    deadline_s = time.monotonic() + 10
    while not caplog.text and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert "opening the store: waiting for another process that does the same" in caplog.text
    assert not is_held.wait(0.1)
    process.send_signal(signal.SIGKILL)
    waiter.join(timeout=10)
    assert is_held.is_set()


def test_a_free_lock_is_held_without_a_word(tmp_path, caplog):
    path = tmp_path / "locks" / "mlflow.lock"
    with hold_lock(path, "opening the store"), pytest.raises(BusyError), take_lock(path, "busy"):
        pass
    with take_lock(path, "busy"):
        pass
    assert caplog.text == ""


def test_a_lock_is_seen_where_nothing_can_be_written(tmp_path, monkeypatch):
    with hold_lock(tmp_path / "lock", "testing"):
        opened = os.open
        monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere

        def open_read_only(path, flags, *mode):
            if flags & os.O_RDWR:
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            return opened(path, flags, *mode)

        monkeypatch.setattr(os, "open", open_read_only)
        assert is_locked(tmp_path / "lock")
    assert not is_locked(tmp_path / "lock")
