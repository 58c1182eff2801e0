import json

import numpy as np
import pytest

from model_code.data.cache import compute_checksum, list_datasets, open_dataset
from model_code.errors import DataError, UsageError


@pytest.fixture
def packed(add, write_tree, class_files):
    return add("pets", write_tree(class_files()), image_size=16).dataset


def test_missing_sets_name_their_command(tmp_path):
    for name, command in [
        ("cifar10", r"`darkroom data add cifar10 --from PATH \| --download`"),
        ("shapes", "`darkroom data add shapes`"),
        ("pets", "`darkroom data add pets --from PATH`"),
    ]:
        with pytest.raises(DataError, match=command):
            open_dataset(name, tmp_path)
    with pytest.raises(UsageError, match="not allowed"):
        open_dataset("../pets", tmp_path)
    assert list_datasets(tmp_path / "nothing") == []


def test_what_is_packed_is_what_is_opened(packed, tmp_path):
    opened = open_dataset("pets", tmp_path / "cache")
    assert (opened.classes, opened.checksum, opened.source) == (packed.classes, packed.checksum, packed.source)
    assert isinstance(opened.splits["train"].images_NHWC, np.memmap)
    assert opened.splits["train"].images_NHWC.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        opened.splits["train"].images_NHWC[0] = 0
    [summary] = list_datasets(tmp_path / "cache")
    assert (summary.name, summary.counts, summary.damage) == ("pets", {"test": 6, "train": 6}, None)
    assert summary.size_bytes == sum(path.stat().st_size for path in packed.path.iterdir())
    assert summary.source == "class folders in source"


def test_checksum_tells_classes_labels_and_pixels_apart(packed):
    def check(classes=("a", "b"), size=2, labels=(0, 1), pixels="00"):
        return compute_checksum(classes, size, [("train", np.array(labels), pixels)])

    others = [check(("b", "a")), check(size=3), check(labels=(1, 0)), check(pixels="01"), check()]
    assert len(set(others)) == 5
    assert check() == check()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train-images-00000.npy", lambda content: content[:-1], r"has 4735 bytes, 4736 were written"),
        ("train-images-00000.npy", lambda content: b"x" * len(content), "train-images-00000.npy"),
        ("test-labels.npy", lambda content: content[:-8] + b"\7" + bytes(7), "test labels run from 0 to 7"),
        ("test-labels.npy", lambda content: None, "No such file"),
        ("../manifest.json", lambda content: b"{", r"manifest\.json cannot be read"),
        ("../manifest.json", lambda content: content.replace(b'"pets"', b'"cats"'), "is that of 'cats'"),
        ("../manifest.json", lambda content: content.replace(b'"count": 6', b'"count": 5'), "test images are uint8"),
        (
            "../manifest.json",
            lambda content: json.dumps(json.loads(content) | {"folder": "../../etc"}).encode(),
            "cannot be read",
        ),
        ("../manifest.json", lambda content: json.dumps(json.loads(content) | {"new": 1}).encode(), "cannot be read"),
    ],
)
def test_damage_is_named_listed_and_mended(add, packed, tmp_path, file, change, message):
    path = packed.path / file
    content = change(path.read_bytes())
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"'pets' is damaged .*{message}.*add it again with `darkroom data add pets"):
        open_dataset("pets", tmp_path / "cache")
    [summary] = list_datasets(tmp_path / "cache")
    assert "is damaged" in summary.damage
    mended = add("pets", tmp_path / "source", image_size=16)
    assert not mended.reused
    assert mended.dataset.checksum == packed.checksum


def test_arrays_that_need_pickle_are_refused(packed, tmp_path):
    path = packed.path / "train-labels.npy"
    size_bytes = path.stat().st_size
    np.save(path, np.array([{}] * 6, dtype=object), allow_pickle=True)
    path.write_bytes(path.read_bytes()[:size_bytes].ljust(size_bytes, b"\0"))
    with pytest.raises(DataError, match="is damaged"):
        open_dataset("pets", tmp_path / "cache")
