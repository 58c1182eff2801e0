"""Files in a storage; here a folder, in tests/integration/test_storage.py S3."""

import pytest

from model_code.errors import StorageError, UsageError
from model_code.storage import Storage


@pytest.fixture
def storage(tmp_path):
    return Storage((tmp_path / "storage").as_uri())


def read_folder(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def fill(folder):
    (folder / "deep").mkdir(parents=True)
    (folder / "empty").write_bytes(b"")
    (folder / "large").write_bytes(bytes(range(256)) * 80_000)
    (folder / "deep" / "a.b-c_1").write_bytes(b"deep")
    return read_folder(folder)


def store_all(storage, folder, place):
    return {name: storage.store(folder / name, place) for name in read_folder(folder)}


def test_a_file_comes_back_and_a_missing_one_is_none(storage):
    assert storage.read("a/b") is None
    storage.write("a/b", b"one")
    storage.write("a/b", b"two")
    assert storage.read("a/b") == b"two"


def test_files_come_back_as_they_were_and_progress_counts_their_bytes(storage, tmp_path):
    content, sent, received = fill(tmp_path / "here"), [], []
    stored = {name: storage.store(tmp_path / "here" / name, "place", sent.append) for name in content}
    storage.fetch("place", stored, tmp_path / "there", received.append)
    assert read_folder(tmp_path / "there") == content
    assert sum(sent) == sum(received) == sum(map(len, content.values()))


def test_folders_are_listed_and_removed(storage):
    assert storage.list_folders("runs") == []
    for name in ("runs/b/x", "runs/a/y", "runs/a/z", "runs/file"):
        storage.write(name, b"content")
    assert storage.list_folders("runs") == ["a", "b"]
    storage.remove("runs/a")
    storage.remove("runs/a")
    storage.remove("runs/file")
    assert storage.list_folders("runs") == ["b"]
    assert storage.read("runs/a/y") is None
    assert storage.read("runs/file") is None
    assert storage.read("runs/b/x") == b"content"


@pytest.mark.parametrize("change", [b"other", None])
def test_a_stored_file_that_is_changed_or_gone_is_named(storage, tmp_path, change):
    fill(tmp_path / "here")
    stored = store_all(storage, tmp_path / "here", "place")
    place = f"place/{stored['deep/a.b-c_1'].stored_as}"
    storage.remove(place)
    if change is not None:
        storage.write(place, change)
    with pytest.raises(StorageError, match=place):
        storage.fetch("place", stored, tmp_path / "there", lambda _: None)


def test_a_storage_that_can_be_written_and_read_passes_its_check_and_keeps_nothing_of_it(storage, tmp_path):
    storage.check()
    assert read_folder(tmp_path / "storage") == {}


def test_a_folder_where_nothing_can_be_written_does_not_pass(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file://.*/file: writing check-"):
        Storage((tmp_path / "file").as_uri()).check()


@pytest.mark.parametrize(
    "address", ["nonsense", "ftp://host/folder", "s3://", "file:///", "bucket/folder", "s3://[bad/x"]
)
def test_an_address_that_is_none_is_refused_with_those_that_are(address):
    with pytest.raises(UsageError, match=r"DARKROOM_STORAGE=.*; give s3://BUCKET/FOLDER, or file:///FOLDER"):
        Storage(address)


def test_credentials_in_an_address_are_refused_and_not_printed():
    with pytest.raises(UsageError) as refused:
        Storage("s3://someone:secret@bucket/folder")
    assert "secret" not in str(refused.value)
