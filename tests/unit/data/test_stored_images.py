"""Packed images in a storage: what one machine packed, another one downloads."""

import numpy as np
import pytest

from model_code.data import stored_images
from model_code.data.cache import list_names, open_dataset
from model_code.data.revisions import find_revisions
from model_code.data.stored_images import fetch_images, store_images
from model_code.disk import hold_lock
from model_code.errors import DataError, StorageError, UsageError
from model_code.storage import Storage
from tests.unit.data.test_local_copy import flip_last_byte, pack


@pytest.fixture
def storage(tmp_path):
    return Storage((tmp_path / "storage").as_uri())


@pytest.fixture
def here(tmp_path):
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path):
    return tmp_path / "there"


def list_stored(tmp_path):
    return {file for file in (tmp_path / "storage").rglob("*") if file.is_file()}


def test_images_come_as_they_were_packed_with_their_history(storage, here, there):
    packed = pack(here)
    store_images(storage, packed, here)
    fetch_images(storage, "shapes", there)
    fetched = open_dataset("shapes", there)
    assert fetched.checksum == packed.checksum
    for name, split in packed.splits.items():
        assert np.array_equal(fetched.splits[name].images_NHWC[:], split.images_NHWC[:])
        assert np.array_equal(fetched.splits[name].labels_N, split.labels_N)
    assert find_revisions("shapes", there).keys() == find_revisions("shapes", here).keys()
    assert list_names(there) == ["shapes"]
    assert [entry.name for entry in there.iterdir() if "fetching" in entry.name] == []


def test_images_are_stored_once_and_others_of_the_name_take_their_place(storage, here, there, tmp_path):
    store_images(storage, pack(here), here)
    before = list_stored(tmp_path)
    store_images(storage, pack(there), there)  # the same images, packed elsewhere
    assert list_stored(tmp_path) == before
    larger = pack(here, size=17)
    store_images(storage, larger, here)
    assert len(list_stored(tmp_path)) == len(before)
    fetch_images(storage, "shapes", there, larger.checksum)
    assert open_dataset("shapes", there).checksum == larger.checksum
    assert len([entry for entry in (there / "shapes").iterdir() if entry.is_dir()]) == 1


def test_images_that_are_here_stay_and_wait_for_no_data_add(storage, here, there):
    store_images(storage, pack(here), here)
    other = pack(there, size=17)
    with hold_lock(there / ".locks" / "shapes.lock", "data add"):
        fetch_images(storage, "shapes", there)
    assert open_dataset("shapes", there).checksum == other.checksum


def test_images_that_are_replaced_during_a_download_come_as_the_new_ones(storage, here, there, monkeypatch):
    store_images(storage, pack(here), here)
    fetched, newer = [], pack(here, size=17)

    def fetch(*given):
        if not fetched:
            store_images(storage, newer, here)
        fetched.append(1)
        Storage.fetch(storage, *given)

    monkeypatch.setattr(storage, "fetch", fetch)
    fetch_images(storage, "shapes", there)
    assert len(fetched) == 2
    assert open_dataset("shapes", there).checksum == newer.checksum


@pytest.mark.parametrize("name", ["../../evil", "a/b", ""])
def test_a_name_that_is_none_makes_no_file(storage, there, name):
    with pytest.raises(UsageError, match=r"is not allowed"):
        fetch_images(storage, name, there)
    assert not there.exists()


def test_images_that_the_storage_lacks_are_named(storage, here, there):
    fetch_images(storage, "shapes", there)
    assert list_names(there) == []
    store_images(storage, pack(here), here)
    with pytest.raises(StorageError, match=r"lacks shapes@000000000000; repeat the command"):
        fetch_images(storage, "shapes", there, "0" * 64)


def test_a_damaged_file_is_named_and_what_is_here_stays(storage, here, there, tmp_path):
    packed, other = pack(here), pack(there, size=17)
    store_images(storage, packed, here)
    flip_last_byte(max(list_stored(tmp_path), key=lambda file: file.stat().st_size))
    with pytest.raises(StorageError, match=r"is not what was stored; remove images/shapes there"):
        fetch_images(storage, "shapes", there, packed.checksum)
    assert open_dataset("shapes", there).checksum == other.checksum


def test_a_download_that_was_killed_is_begun_anew(storage, here, there, monkeypatch):
    store_images(storage, pack(here), here)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stored_images, "_publish", die)
        with pytest.raises(KeyboardInterrupt):
            fetch_images(storage, "shapes", there)
    assert list_names(there) == []
    fetch_images(storage, "shapes", there)
    open_dataset("shapes", there).verify()


def test_images_that_are_packed_anew_meanwhile_are_not_stored(storage, here, tmp_path):
    packed = pack(here)
    pack(here, size=17)
    with pytest.raises(DataError, match=r"shapes was packed anew meanwhile; repeat the command"):
        store_images(storage, packed, here)
    assert list_stored(tmp_path) == set()
