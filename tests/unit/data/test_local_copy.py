"""Packed images that trainings copy from a shared disk to their own."""

import shutil
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


def list_names(local):
    return sorted(entry.name for entry in (local / "shapes").iterdir())


def test_images_are_copied_once_and_read_where_they_were_copied(shared, local, monkeypatch, capsys):
    packed = pack(shared)
    copied = copy_locally(packed, local)
    assert copied.path == local / "shapes" / packed.path.name
    assert copied.checksum == packed.checksum
    for name, split in packed.splits.items():
        assert np.array_equal(copied.splits[name].images_NHWC[:], split.images_NHWC[:])
    copied.verify()
    monkeypatch.setattr(local_copy, "_copy", lambda *_: pytest.fail("copied again"))
    assert copy_locally(packed, local).path == copied.path
    assert capsys.readouterr().out == ""


def test_two_trainings_at_once_make_one_copy(shared, local, monkeypatch):
    packed, copies, copy = pack(shared), [], local_copy._copy
    monkeypatch.setattr(local_copy, "_copy", lambda *given: copies.append(1) or copy(*given))
    threads = [Thread(target=copy_locally, args=(packed, local)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(copies) == 1


def test_a_newer_version_replaces_the_copy_which_who_reads_it_still_has(shared, local):
    before = copy_locally(pack(shared), local)
    images_NHWC = open_dataset("shapes", shared).splits["train"].images_NHWC[:].copy()
    after = copy_locally(pack(shared, size=17), local)
    assert after.image_size == 17
    assert list_names(local) == [after.path.name, "manifest.json"]
    assert np.array_equal(before.splits["train"].images_NHWC[:], images_NHWC)


@pytest.mark.parametrize("ends", [KeyboardInterrupt, SystemExit])
def test_what_an_end_in_the_middle_left_is_removed_and_copied_again(shared, local, monkeypatch, ends):
    packed, copyfile = pack(shared), shutil.copyfile

    def end(source, target):
        copyfile(source, target)
        raise ends

    (local / "shapes" / "scratch-killed").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", end)
        with pytest.raises(ends):
            copy_locally(packed, local)
    assert list_names(local) == []
    copied = copy_locally(packed, local)
    assert list_names(local) == [copied.path.name, "manifest.json"]


def test_without_room_the_shared_images_are_read(shared, local, monkeypatch, capsys):
    packed = pack(shared)
    monkeypatch.setattr("model_code.disk.count_free_bytes", lambda _folder: 1000)
    assert copy_locally(packed, local) is packed
    assert capsys.readouterr().out.startswith(f"shapes is read from {shared}: the disk of {local}/shapes is full: ")


def test_where_nothing_can_be_written_the_shared_images_are_read(shared, tmp_path, capsys):
    packed = pack(shared)
    (tmp_path / "file").touch()
    assert copy_locally(packed, tmp_path / "file" / "cache") is packed
    assert f"shapes is read from {shared}: " in capsys.readouterr().out


def test_a_version_that_was_replaced_meanwhile_is_read_where_it_is(shared, local, capsys):
    packed = pack(shared)
    pack(shared, size=17)
    assert copy_locally(packed, local) is packed
    assert capsys.readouterr().out == f"shapes is read from {shared}: shapes is packed anew at this moment\n"


def test_a_damaged_copy_is_named(shared, local):
    packed = pack(shared)
    copied = copy_locally(packed, local)
    file = next(copied.path.glob("train-images*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"{file}.* other bytes than were packed"):
        copy_locally(packed, local).verify()


@pytest.mark.parametrize("is_set", [True, False])
def test_a_training_reads_the_copy_where_the_variable_names_a_folder(shared, local, monkeypatch, is_set):
    packed = pack(shared)
    monkeypatch.setenv("DARKROOM_LOCAL_CACHE", str(local) if is_set else "")
    changes = {"dataset": "shapes", "batch_size": 8, "engine.pictures": "disk"}
    experiment = open_experiment(build_config("resnet18_cifar10_exp2", "smoke", changes), packed, ALONE, None)
    folder = experiment._images.train.images_NHWC._shards._files[0].path.parent
    assert folder == (local / "shapes" / packed.path.name if is_set else packed.path)
