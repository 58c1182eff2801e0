import os
import re
import shutil

import pytest

from flows.jobs.data import AddData
from model_code.data.cache import open_dataset
from model_code.data.sources.images import CIFAR10_CLASSES
from model_code.data.sources.layout import DATASETS
from model_code.errors import ChecksumError, DataError


def test_reused_until_the_source_changes(add, tmp_path, write_tree, class_files, png):
    source = write_tree(class_files())
    first = add("x", source)
    again = add("x", source)
    assert (first.reused, again.reused) == (False, True)
    assert again.dataset.path == first.dataset.path
    (source / "train" / "cat" / "9.png").write_bytes(png)
    added = add("x", source)
    assert not added.reused
    assert len(added.dataset.splits["train"].labels_N) == 7
    os.utime(source / "train" / "cat" / "9.png", ns=(1, 1))
    assert not add("x", source).reused
    assert not add("x", source, image_size=16).reused
    assert add("x", source, image_size=16).reused


def test_an_archive_that_changes_is_packed_again(add, tmp_path, write_tree, class_files):
    source = write_tree(class_files())
    archive = shutil.make_archive(str(tmp_path / "x"), "zip", source)
    assert not add("x", tmp_path / "x.zip").reused
    assert add("x", tmp_path / "x.zip").reused
    shutil.rmtree(source / "test")
    assert shutil.make_archive(str(tmp_path / "x"), "zip", source) == archive
    assert list(add("x", tmp_path / "x.zip").dataset.splits) == ["train"]


def test_skipped_images_are_told_again_when_reused(add, write_tree, class_files):
    source = write_tree(class_files(per_class=100) | {"train/cat/bad.png": b"bad"})
    assert [one.name for one in add("x", source).skipped] == ["source/train/cat/bad.png"]
    again = add("x", source)
    assert again.reused
    assert [one.name for one in again.skipped] == ["source/train/cat/bad.png"]


def test_a_source_that_is_gone_or_broken_keeps_the_old_version(add, tmp_path, write_tree, class_files):
    source = write_tree(class_files())
    old = add("x", source).dataset
    with pytest.raises(DataError, match=r"no such file or folder: .*missing"):
        add("x", tmp_path / "missing")
    shutil.rmtree(source / "train" / "cat")
    with pytest.raises(DataError):
        add("x", source)
    assert open_dataset("x", tmp_path / "cache").checksum == old.checksum


def test_progress_is_one_line_where_no_terminal_is(add, capsys, write_tree, class_files):
    add("x", write_tree(class_files()), progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("packing x: 12 images in ")
    assert captured.err.count("\n") == 1


def test_download_uses_a_file_that_is_there(add, tmp_path, monkeypatch):
    """A wrong archive is removed and fetched again; here nobody answers, so one line says so."""
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar-10-python.tar.gz").write_bytes(b"truncated")
    with pytest.raises(DataError, match="did not come through in 5 tries"):
        add("cifar10", download=True)
    assert not (tmp_path / "data" / "cifar-10-python.tar.gz").exists()


def test_the_published_archive_may_not_be_altered(add, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"altered")
    with pytest.raises(ChecksumError, match="c58f30108f718f92721af3b95e74349a"):
        add("cifar10", tmp_path / "cifar-10-python.tar.gz")


def test_the_official_class_names():
    assert len(CIFAR10_CLASSES) == 10
    assert list(CIFAR10_CLASSES) == sorted(CIFAR10_CLASSES)


@pytest.mark.parametrize("name", DATASETS)
def test_the_help_names_every_data_set_with_its_size(name):
    assert name in AddData.__doc__
    sizes = AddData.model_fields["image_size"].description
    assert re.search(rf"\b{DATASETS[name].image_size} for( [a-z0-9-]+ and)* {name}\b", sizes)
