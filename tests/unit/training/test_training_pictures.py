from dataclasses import replace

import numpy as np
import pytest
import torch

from model_code.data.cache import PackedDataset, PackedSplit
from model_code.errors import DarkroomError, UsageError
from model_code.training.pictures import load_pictures
from tests.unit.training.small_runs import CPU, make_config


def make_dataset(tmp_path, labels=None, has_test=True):
    """A data set whose pictures hold their own number in every pixel."""
    labels_N = np.repeat(np.arange(4), 25) if labels is None else np.asarray(labels)
    numbers_N = np.arange(len(labels_N), dtype=np.uint8)
    images_NHWC = np.ascontiguousarray(np.broadcast_to(numbers_N[:, None, None, None], (len(labels_N), 4, 4, 3)))
    images_NHWC.flags.writeable = False
    splits = {"train": PackedSplit(images_NHWC, labels_N.astype(np.int64))}
    if has_test:
        splits["test"] = PackedSplit(images_NHWC[::-1][:10], labels_N[::-1][:10].astype(np.int64))
    return PackedDataset("pets", ("ant", "bee", "cat", "dog"), 4, splits, "c" * 64, "drawn", tmp_path)


def list_numbers(pictures):
    return pictures.images_NHWC[:, 0, 0, 0].tolist()


def test_training_and_validation_share_no_picture(tmp_path):
    pictures = load_pictures(make_dataset(tmp_path), make_config(), CPU)
    assert sorted(list_numbers(pictures.train) + list_numbers(pictures.validation)) == list(range(100))
    assert pictures.validation.labels_N.bincount().tolist() == [5] * 4
    assert pictures.train.labels_N.bincount().tolist() == [20] * 4
    for part in (pictures.train, pictures.validation):
        assert part.images_NHWC.dtype == torch.uint8
        assert part.labels_N.dtype == torch.int64
        assert [number // 25 for number in list_numbers(part)] == part.labels_N.tolist()
    assert list_numbers(pictures.test) == list(range(99, 89, -1))
    assert (pictures.classes, pictures.checksum) == (("ant", "bee", "cat", "dog"), "c" * 64)


def test_the_split_depends_on_its_own_seed_only(tmp_path):
    dataset = make_dataset(tmp_path, has_test=False)
    first, same, other = (
        load_pictures(dataset, make_config(**settings), CPU)
        for settings in ({"seed": 1}, {"seed": 2, "network": "resnet18"}, {"split_seed": 43})
    )
    assert list_numbers(first.validation) == list_numbers(same.validation)
    assert list_numbers(first.validation) != list_numbers(other.validation)
    assert first.test is None


def test_validation_pictures_of_the_set_itself_are_used(tmp_path):
    dataset = make_dataset(tmp_path)
    train = dataset.splits["train"]
    own = PackedSplit(train.images_NHWC[::10], train.labels_N[::10])
    dataset = replace(dataset, splits={**dataset.splits, "validation": own})
    pictures = load_pictures(dataset, make_config(), CPU)
    assert list_numbers(pictures.validation) == list(range(0, 100, 10))
    assert list_numbers(pictures.train) == list(range(100))


def test_fewer_pictures_keep_the_shares_of_the_classes(tmp_path):
    pictures = load_pictures(make_dataset(tmp_path), make_config(limit_train=40), CPU)
    assert pictures.train.labels_N.bincount().tolist() == [8] * 4
    assert pictures.validation.labels_N.bincount().tolist() == [2] * 4
    assert len(pictures.test) == 10
    whole = load_pictures(make_dataset(tmp_path), make_config(limit_train=1000), CPU)
    assert len(whole.train) + len(whole.validation) == 100


def test_pictures_can_be_written_to_although_the_cache_cannot(tmp_path):
    dataset = make_dataset(tmp_path)
    pictures = load_pictures(dataset, make_config(), CPU)
    pictures.train.images_NHWC.add_(1)
    assert dataset.splits["train"].images_NHWC[0, 0, 0, 0] == 0


def test_pictures_without_a_label_are_refused(tmp_path):
    with pytest.raises(DarkroomError, match="label"):
        load_pictures(make_dataset(tmp_path, labels=[0, 1, 2, -1] * 25), make_config(), CPU)


def test_too_few_pictures_for_a_validation_set(tmp_path):
    with pytest.raises(UsageError, match="both sides need at least 1"):
        load_pictures(make_dataset(tmp_path), make_config(limit_train=2), CPU)
