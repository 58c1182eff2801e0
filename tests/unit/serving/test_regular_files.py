import os
import socket
import time
from contextlib import chdir
from pathlib import Path

import pytest

from serving.bundle.store import POINTER_FILE, list_released, read_bundle, read_challenger, read_pointer
from serving.errors import BundleError
from serving.regular_files import count_disk_bytes, open_regular, read_regular, writing_whole
from tests.unit.serving.tiny_bundle import release


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as one, chdir(path.parent):  # its address may not be long
        one.bind(path.name)


STRANGE = {
    "fifo": os.mkfifo,
    "folder": lambda path: path.mkdir(),
    "socket": make_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "missing": lambda path: None,
}


@pytest.mark.parametrize("kind", STRANGE)
def test_only_regular_files_are_opened_and_nothing_is_waited_for(tmp_path, kind):
    STRANGE[kind](tmp_path / "it")
    count = len(list(Path("/proc/self/fd").iterdir()))
    start_s = time.monotonic()
    with pytest.raises(OSError, match="it"):
        open_regular(tmp_path / "it")
    assert time.monotonic() - start_s < 1
    # Other files of the process may be closed meanwhile.
    assert len(list(Path("/proc/self/fd").iterdir())) <= count


@pytest.mark.parametrize("kind", [kind for kind in STRANGE if kind != "missing"])
@pytest.mark.parametrize("name", ["champion.json", "challenger.json", "manifest.json"])
def test_what_a_bundle_has_in_place_of_a_file_is_one_line(tmp_path, kind, name):
    folder = release(tmp_path)
    root = tmp_path / "cifar10"
    (root / "challenger.json").write_text("{}")
    file = root / name if name != "manifest.json" else next(root.glob("*/manifest.json"))
    file.unlink()
    STRANGE[kind](file)
    start_s = time.monotonic()
    read = {
        "champion.json": lambda: read_pointer(tmp_path, "cifar10"),
        "challenger.json": lambda: read_challenger(tmp_path, "cifar10"),
        "manifest.json": lambda: read_bundle(file.parent),
    }[name]
    with pytest.raises(BundleError) as caught:
        read()
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start_s < 1
    assert folder


def test_a_file_has_a_largest_size(tmp_path):
    (tmp_path / "it").write_bytes(bytes(11))
    assert read_regular(tmp_path / "it", 11) == bytes(11)
    with pytest.raises(OSError, match="More than 10 bytes"):
        read_regular(tmp_path / "it", 10)


def test_a_file_that_was_not_put_into_place_is_gone(tmp_path):
    with writing_whole(tmp_path, b"1") as first, writing_whole(tmp_path, b"2") as second:
        assert first != second
        first.replace(tmp_path / "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_bytes() == b"1"


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (1, 4096), (4096, 4096), (4097, 8192)])
def test_small_files_count_as_whole_blocks(tmp_path, size, expected):
    (tmp_path / "it").write_bytes(bytes(size))
    assert expected <= count_disk_bytes((tmp_path / "it").stat()) <= expected + 4096


def test_a_name_with_a_fifo_is_still_listed(tmp_path):
    (tmp_path / "cifar10").mkdir()
    os.mkfifo(tmp_path / "cifar10" / POINTER_FILE)
    assert list_released(tmp_path) == ["cifar10"]
