import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from model_code.data.sources.cifar_archive import SPLIT_FILES, read_cifar_archive
from model_code.data.sources.images import CIFAR10_CLASSES
from model_code.errors import ChecksumError, DataError

NAMES = [name for names in SPLIT_FILES.values() for name in names]


@pytest.fixture
def contents():
    """The seven files as their authors wrote them, with four images each."""
    files = {"batches.meta": {"label_names": list(CIFAR10_CLASSES), "num_vis": 3072}}
    for number, name in enumerate(NAMES):
        data = np.arange(4 * 3072, dtype=np.uint32).reshape(4, 3072) % 251 + number % 5
        files[name] = {"batch_label": name, "labels": [9, 0, 5, number], "data": data.astype(np.uint8)}
    return {name: pickle.dumps(content, protocol=2) for name, content in files.items()}


def write_archive(path, contents):
    with tarfile.open(path, "w:gz") as file:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_folder(folder, contents):
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}


def test_archive_and_folder_hold_the_same(tmp_path, contents):
    archive = tmp_path / "cifar-10-python.tar.gz"
    folder = tmp_path / "cifar-10-batches-py"
    md5, md5s = write_archive(archive, contents), write_folder(folder, contents)
    for source in (
        read_cifar_archive(archive, CIFAR10_CLASSES, archive_md5=md5),
        read_cifar_archive(folder, CIFAR10_CLASSES, file_md5s=md5s),
        read_cifar_archive(tmp_path, CIFAR10_CLASSES, file_md5s=md5s),
    ):
        train, test = source.splits["train"], source.splits["test"]
        assert train.images_NHWC.shape == (20, 32, 32, 3)
        assert test.labels_N.tolist() == [9, 0, 5, 5]
        assert train.images_NHWC[0, 2, 7].tolist() == [(channel * 1024 + 2 * 32 + 7) % 251 for channel in range(3)]


def test_wrong_checksums(add, tmp_path, contents):
    archive = tmp_path / "cifar-10-python.tar.gz"
    write_archive(archive, contents)
    with pytest.raises(ChecksumError, match=r"has md5 .*published file has c58f.*copy or download it again"):
        add("cifar10", archive)
    archive.write_bytes(archive.read_bytes()[:500])
    with pytest.raises(ChecksumError):
        add("cifar10", archive)
    folder = tmp_path / "cifar-10-batches-py"
    write_folder(folder, contents)
    with pytest.raises(ChecksumError, match=r"batches\.meta has md5"):
        add("cifar10", folder)


def test_truncated_archive_with_its_own_checksum(tmp_path, contents):
    archive = tmp_path / "cifar-10-python.tar.gz"
    write_archive(archive, contents)
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(DataError, match="truncated or damaged"):
        read_cifar_archive(archive, archive_md5=hashlib.md5(archive.read_bytes()).hexdigest())


class Evil:
    def __reduce__(self):
        return os._exit, (3,)  # would end the test run


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test_batch", pickle.dumps({"data": Evil()}, 2), r"asks for \w+\._exit, which no batch needs"),
        ("test_batch", pickle.dumps([1, 2], 2), "holds a list, not a CIFAR-10 batch"),
        ("test_batch", b"garbage", "is not a CIFAR-10 batch"),
        ("test_batch", b"", "is not a CIFAR-10 batch"),
        ("data_batch_3", pickle.dumps({"data": np.zeros((2, 5), np.uint8)}, 2), "not a uint8 array"),
        ("data_batch_3", pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}, 2), "from 0 to 9"),
        ("data_batch_3", pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, 2), "2 whole numbers"),
        ("batches.meta", pickle.dumps({}, 2), "no label_names"),
        ("batches.meta", pickle.dumps({"label_names": ["cat", "dog"]}, 2), "expected exactly the 10 classes"),
        ("test_batch", None, "missing test_batch"),
    ],
)
def test_wrong_pickles(tmp_path, contents, name, content, message):
    contents = {key: value for key, value in (contents | {name: content}).items() if value is not None}
    md5 = write_archive(tmp_path / "cifar-10-python.tar.gz", contents)
    with pytest.raises(DataError, match=message):
        read_cifar_archive(tmp_path / "cifar-10-python.tar.gz", CIFAR10_CLASSES, archive_md5=md5)
