"""Packed images that trainings copy from a shared disk to their own."""

import errno
import fcntl
import os
import shutil
import time
from threading import Thread

import numpy as np
import pytest

from flows.experiments import open_experiment
from model_code.data import local_copy
from model_code.data.add import add_dataset
from model_code.data.cache import open_dataset
from model_code.data.local_copy import copy_locally
from model_code.errors import DataError
from model_code.recipes.catalog import build_config
from model_code.training.processes import ALONE


@pytest.fixture
def shared(tmp_path):
    return tmp_path / "shared"


@pytest.fixture
def local(tmp_path):
    return tmp_path / "local" / "cache"


def pack(shared, size=16):
    """Return the drawn images as packed on the shared disk."""
    return add_dataset("shapes", cache_dir=shared, data_dir=shared, image_size=size, progress=False).dataset


def flip_last_byte(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def find_copies(local):
    """Return the folders of the copies."""
    return sorted(entry for entry in (local / "darkroom-images").iterdir() if entry.is_dir())


def count_copying(monkeypatch):
    """Return a list that gets an entry for each copy that is made."""
    made, copy = [], local_copy._copy
    monkeypatch.setattr(local_copy, "_copy", lambda *given: made.append(1) or copy(*given))
    return made


def test_images_are_copied_once_and_read_where_they_were_copied(shared, local, monkeypatch, capsys):
    packed, made = pack(shared), count_copying(monkeypatch)
    copied = copy_locally(packed, local)
    assert copied.path.is_relative_to(local)
    assert copied.checksum == packed.checksum
    for name, split in packed.splits.items():
        assert np.array_equal(copied.splits[name].images_NHWC[:], split.images_NHWC[:])
    copied.verify()
    assert copy_locally(packed, local).path == copied.path
    assert len(made) == 1
    assert " is read from " not in capsys.readouterr().err


def test_two_trainings_at_once_make_one_copy(shared, local, monkeypatch):
    packed, made = pack(shared), count_copying(monkeypatch)
    threads = [Thread(target=copy_locally, args=(packed, local)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_homes_share_copies_of_equal_images_and_keep_others_apart(tmp_path, local, monkeypatch):
    made = count_copying(monkeypatch)
    one, equal, other = pack(tmp_path / "a"), pack(tmp_path / "b"), pack(tmp_path / "c", size=17)
    for dataset in (one, equal, other, one, other):
        assert copy_locally(dataset, local).checksum == dataset.checksum
    assert len(made) == len(find_copies(local)) == 2


def test_the_copy_that_was_not_used_for_longest_makes_room_and_who_reads_it_still_has_it(shared, local, monkeypatch):
    first = copy_locally(pack(shared), local)
    images_NHWC = open_dataset("shapes", shared).splits["train"].images_NHWC[:].copy()
    second = copy_locally(pack(shared, size=17), local)
    for age_s, dataset in ((20, first), (10, second)):
        os.utime(dataset.path.parents[1], (time.time() - age_s,) * 2)
    free = iter((1000, 10**9, 10**9, 10**9))
    monkeypatch.setattr(local_copy, "count_free_bytes", lambda _folder: next(free))
    third = copy_locally(pack(shared, size=18), local)
    assert find_copies(local) == sorted(dataset.path.parents[1] for dataset in (second, third))
    assert np.array_equal(first.splits["train"].images_NHWC[:], images_NHWC)


def test_what_is_not_a_copy_is_never_removed(shared, local, monkeypatch, capsys):
    (local / "shapes").mkdir(parents=True)
    (local / "shapes" / "mine").touch()
    packed = pack(shared)
    for place in ("model_code.disk", "model_code.data.local_copy"):
        monkeypatch.setattr(f"{place}.count_free_bytes", lambda _folder: 1000)
    assert copy_locally(packed, local) is packed
    assert (local / "shapes" / "mine").exists()
    reason = f"shapes is read from {packed.path}, not copied: the disk of {local / 'darkroom-images'} is full: "
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("ends", [KeyboardInterrupt, SystemExit])
def test_what_an_end_in_the_middle_left_is_copied_again(shared, local, monkeypatch, ends):
    packed, copyfile = pack(shared), shutil.copyfile

    def end(source, target):
        copyfile(source, target)
        raise ends

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", end)
        with pytest.raises(ends):
            copy_locally(packed, local)
    copied = copy_locally(packed, local)
    copied.verify()
    assert {file.name for file in copied.path.iterdir()} == {file.name for file in packed.path.iterdir()}


@pytest.mark.parametrize("damage", ["cut", "missing", "no manifest"])
def test_a_copy_that_cannot_be_opened_is_made_anew(shared, local, damage):
    packed = pack(shared)
    copied = copy_locally(packed, local)
    file = next(copied.path.glob("train-images*"))
    if damage == "cut":
        os.truncate(file, 100)
    elif damage == "missing":
        file.unlink()
    else:
        (copied.path.parent / "manifest.json").write_bytes(b"{")
    again = copy_locally(packed, local)
    assert again.path.is_relative_to(local)
    again.verify()


def test_damage_that_is_seen_in_reading_says_what_to_remove(shared, local):
    packed = pack(shared)
    copied = copy_locally(packed, local)
    flip_last_byte(next(copied.path.glob("train-images*")))
    [copy] = find_copies(local)
    with pytest.raises(DataError, match=rf"other bytes than were packed\); remove {copy}, it is copied again$"):
        copy_locally(packed, local).verify()
    shutil.rmtree(copy)
    copy_locally(packed, local).verify()


def test_images_that_are_damaged_on_the_shared_disk_are_not_kept(shared, local, capsys):
    packed = pack(shared)
    flip_last_byte(next(packed.path.glob("train-images*")))
    assert copy_locally(packed, local) is packed
    assert "other bytes than were packed" in capsys.readouterr().err
    assert find_copies(local) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ENOLCK, "No locks available"),
        FileNotFoundError(2, "gone"),
    ],
)
def test_what_the_system_refuses_is_said_and_the_shared_images_are_read(shared, local, monkeypatch, capsys, error):
    packed = pack(shared)

    def refuse(*_):
        raise error

    place = (fcntl, "flock") if error.errno == errno.ENOLCK else (shutil, "copyfile")
    monkeypatch.setattr(*place, refuse)
    assert copy_locally(packed, local) is packed
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"shapes is read from {packed.path}, not copied: {error}" in captured.err


def test_where_nothing_can_be_written_the_shared_images_are_read(shared, tmp_path, capsys):
    packed = pack(shared)
    (tmp_path / "file").touch()
    assert copy_locally(packed, tmp_path / "file" / "cache") is packed
    assert f"shapes is read from {packed.path}, not copied: " in capsys.readouterr().err


def test_a_version_that_was_replaced_meanwhile_is_read_where_it_is(shared, local, capsys):
    packed = pack(shared)
    pack(shared, size=17)
    assert copy_locally(packed, local) is packed
    assert "not copied: shapes is packed anew at this moment\n" in capsys.readouterr().err


@pytest.mark.parametrize("is_set", [True, False])
def test_a_training_reads_the_copy_where_the_variable_names_a_folder(shared, local, monkeypatch, is_set):
    packed = pack(shared)
    monkeypatch.setenv("DARKROOM_LOCAL_CACHE", str(local) if is_set else "")
    changes = {"dataset": "shapes", "batch_size": 8, "engine.pictures": "disk"}
    experiment = open_experiment(build_config("resnet18_cifar10_exp2", "smoke", changes), packed, ALONE, None)
    file = experiment._images.train.images_NHWC._shards._files[0].path
    assert file.is_relative_to(local if is_set else shared)
