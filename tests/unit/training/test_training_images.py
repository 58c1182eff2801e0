from dataclasses import replace

import numpy as np
import pytest
import torch

from model_code.data.cache import BaseDataset, PackedDataset, PackedSplit
from model_code.errors import DataError, UsageError
from model_code.training.images import choose_place, load_images, load_pretraining_images
from model_code.training.pretraining_config import SimSiamConfig
from tests.unit.training.small_runs import CPU, make_config


def make_dataset(tmp_path, labels=None, has_test=True):
    """A data set whose images hold their own number in every pixel."""
    labels_N = np.repeat(np.arange(4), 25) if labels is None else np.asarray(labels)
    numbers_N = np.arange(len(labels_N), dtype=np.uint8)
    images_NHWC = np.ascontiguousarray(np.broadcast_to(numbers_N[:, None, None, None], (len(labels_N), 4, 4, 3)))
    images_NHWC.flags.writeable = False
    splits = {"train": PackedSplit(images_NHWC, labels_N.astype(np.int64))}
    if has_test:
        splits["test"] = PackedSplit(images_NHWC[::-1][:10], labels_N[::-1][:10].astype(np.int64))
    return PackedDataset("pets", ("ant", "bee", "cat", "dog"), 4, splits, "c" * 64, "drawn", tmp_path)


def list_numbers(images):
    return list_pixels(images.images_NHWC)


def list_pixels(images_NHWC):
    return images_NHWC[:, 0, 0, 0].tolist()


def with_split(dataset, name, indices, is_labelled=True):
    """The data set with some of its training images as another split."""
    train = dataset.splits["train"]
    labels_N = train.labels_N[indices] if is_labelled else np.full(len(indices), -1)
    return replace(dataset, splits={**dataset.splits, name: PackedSplit(train.images_NHWC[indices], labels_N)})


def test_training_and_validation_share_no_image(tmp_path):
    images = load_images(make_dataset(tmp_path), make_config(), CPU)
    assert sorted(list_numbers(images.train) + list_numbers(images.validation)) == list(range(100))
    assert images.validation.labels_N.bincount().tolist() == [5] * 4
    assert images.train.labels_N.bincount().tolist() == [20] * 4
    for part in (images.train, images.validation):
        assert part.images_NHWC.dtype == torch.uint8
        assert part.labels_N.dtype == torch.int64
        assert [number // 25 for number in list_numbers(part)] == part.labels_N.tolist()
    assert list_numbers(images.test) == list(range(99, 89, -1))
    assert (images.classes, images.checksum) == (("ant", "bee", "cat", "dog"), "c" * 64)


def test_the_split_depends_on_its_own_seed_only(tmp_path):
    dataset = make_dataset(tmp_path, has_test=False)
    first, same, other = (
        load_images(dataset, make_config(**settings), CPU)
        for settings in ({"seed": 1}, {"seed": 2, "network": "resnet18"}, {"split_seed": 43})
    )
    assert list_numbers(first.validation) == list_numbers(same.validation)
    assert list_numbers(first.validation) != list_numbers(other.validation)
    assert first.test is None


@pytest.mark.parametrize("limit", [None, 40])
def test_feedback_is_learned_from_and_the_rest_is_divided_as_without_it(tmp_path, limit):
    plain = make_dataset(tmp_path)
    before = load_images(plain, make_config(limit_train=limit), CPU)
    train = plain.splits["train"]
    more = PackedSplit(
        np.concatenate([train.images_NHWC, train.images_NHWC[:7] + np.uint8(100)]),
        np.concatenate([train.labels_N, [0, 1, 1, 2, 2, 2, 3]]),
    )
    extended = replace(
        plain, splits=plain.splits | {"train": more}, base=BaseDataset(checksum=plain.checksum, train_count=100)
    )
    after = load_images(extended, make_config(limit_train=limit), CPU)
    assert list_numbers(after.train) == [*list_numbers(before.train), *range(100, 107)]
    assert list_numbers(after.validation) == list_numbers(before.validation)
    own = with_split(extended, "validation", [3, 30])
    assert list_numbers(load_images(own, make_config(), CPU).train) == list(range(107))


def test_validation_images_of_the_set_itself_are_used(tmp_path):
    dataset = make_dataset(tmp_path)
    train = dataset.splits["train"]
    own = PackedSplit(train.images_NHWC[::10], train.labels_N[::10])
    dataset = replace(dataset, splits={**dataset.splits, "validation": own})
    images = load_images(dataset, make_config(), CPU)
    assert list_numbers(images.validation) == list(range(0, 100, 10))
    assert list_numbers(images.train) == list(range(100))


def test_fewer_images_keep_the_shares_of_the_classes(tmp_path):
    images = load_images(make_dataset(tmp_path), make_config(limit_train=40), CPU)
    assert images.train.labels_N.bincount().tolist() == [8] * 4
    assert images.validation.labels_N.bincount().tolist() == [2] * 4
    assert len(images.test) == 10
    whole = load_images(make_dataset(tmp_path), make_config(limit_train=1000), CPU)
    assert len(whole.train) + len(whole.validation) == 100


def test_images_can_be_written_to_although_the_cache_cannot(tmp_path):
    dataset = make_dataset(tmp_path)
    images = load_images(dataset, make_config(), CPU)
    images.train.images_NHWC.add_(1)
    assert dataset.splits["train"].images_NHWC[0, 0, 0, 0] == 0


def test_images_without_a_label_are_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"^25 of 100 train images of pets have no label, and this recipe needs labels; "
    ):
        load_images(make_dataset(tmp_path, labels=[0, 1, 2, -1] * 25), make_config(), CPU)


def test_too_few_images_for_a_validation_set(tmp_path):
    with pytest.raises(UsageError, match="both sides need at least 1"):
        load_images(make_dataset(tmp_path), make_config(limit_train=2), CPU)


def test_test_images_without_labels_are_no_test_images(tmp_path):
    dataset = with_split(make_dataset(tmp_path), "test", np.arange(10), is_labelled=False)
    images = load_images(dataset, make_config(), CPU)
    assert images.test is None
    assert images.final == ("validation", images.validation)


def test_a_set_without_training_images_is_refused(tmp_path):
    dataset = with_split(make_dataset(tmp_path), "validation", np.arange(10))
    del dataset.splits["train"]
    with pytest.raises(DataError, match=r"^pets has no train images, only test, validation; .*--data NAME$"):
        load_images(dataset, make_config(), CPU)


def test_fewer_test_images_keep_the_shares_of_the_classes(tmp_path):
    dataset = with_split(make_dataset(tmp_path), "test", np.arange(100))
    own = with_split(dataset, "validation", np.arange(100))
    for changed in (dataset, own):
        images = load_images(changed, make_config(limit_test=8), CPU)
        assert images.test.labels_N.bincount().tolist() == [2] * 4
    assert images.validation.labels_N.bincount().tolist() == [2] * 4


def make_simsiam_config(**settings):
    return SimSiamConfig(**({"recipe": "test", "dataset": "pets", "device": "cpu"} | settings))


def test_pretraining_learns_from_all_training_images_where_none_are_unlabelled(tmp_path):
    images = load_pretraining_images(make_dataset(tmp_path), make_simsiam_config(), CPU)
    assert list_pixels(images.images_NHWC) == list_numbers(images.labelled) == list(range(100))
    assert sorted(list_numbers(images.memory) + list_numbers(images.validation)) == list(range(100))
    assert images.validation.labels_N.bincount().tolist() == [5] * 4
    assert list_numbers(images.test) == list(range(99, 89, -1))


def test_pretraining_learns_from_the_unlabelled_images_and_asks_those_of_the_sets_own_validation(tmp_path):
    dataset = with_split(make_dataset(tmp_path, has_test=False), "unlabelled", np.arange(40, 70), is_labelled=False)
    dataset = with_split(dataset, "validation", np.arange(0, 100, 10))
    images = load_pretraining_images(dataset, make_simsiam_config(), CPU)
    assert list_pixels(images.images_NHWC) == list(range(40, 70))
    assert list_numbers(images.memory) == list_numbers(images.labelled) == list(range(100))
    assert list_numbers(images.validation) == list(range(0, 100, 10))
    assert images.test is None
    few, again, others = (
        load_pretraining_images(dataset, make_simsiam_config(limit_train=8, split_seed=seed), CPU) for seed in (1, 1, 2)
    )
    assert len(few.images_NHWC) == len(few.memory) == 8
    assert set(list_pixels(few.images_NHWC)) <= set(range(40, 70))
    assert list_pixels(few.images_NHWC) == list_pixels(again.images_NHWC) != list_pixels(others.images_NHWC)


def test_pretraining_needs_labels_to_watch(tmp_path):
    with pytest.raises(DataError, match=r"^100 of 100 train images of pets have no label"):
        load_pretraining_images(make_dataset(tmp_path, labels=[-1] * 100), make_simsiam_config(), CPU)


def test_simsiam_needs_room_for_its_images_twice(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path)
    size = sum(split.images_NHWC.nbytes for split in dataset.splits.values())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * size, 3 * size))
    kept = [choose_place(dataset, config, torch.device("cuda")) for config in (make_config(), make_simsiam_config())]
    assert kept == ["resident", "streamed"]


@pytest.mark.parametrize(("free_bytes", "place"), [(10**9, "resident"), (1000, "streamed")])
def test_images_that_leave_too_little_memory_are_streamed(tmp_path, monkeypatch, free_bytes, place):
    # No CUDA device is needed to ask the rule; the figure of its free memory is all that it reads.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free_bytes, free_bytes))
    dataset, cuda = make_dataset(tmp_path), torch.device("cuda")
    assert choose_place(dataset, make_config(), cuda) == place
    assert choose_place(dataset, make_config(), CPU) == "resident"
    assert choose_place(dataset, make_simsiam_config(), cuda) == place
    for wanted in ("resident", "streamed", "disk"):
        assert choose_place(dataset, make_config(engine={"pictures": wanted}), cuda) == wanted


def test_images_that_take_too_much_of_the_machine_are_refused_and_left_on_disk_on_request(tmp_path, monkeypatch):
    """On disk they have another order, which must not depend on the machine: a resumed run would go on with it."""
    dataset = with_split(make_dataset(tmp_path), "unlabelled", list(range(50)), is_labelled=False)
    size = 48 * (100 + 10)
    pseudo = {"pseudo_label_confidence": 0.9, "pretrained_weights": "recipe:tiny"}
    for memory_bytes, config, is_refused in [
        (size / 0.8 + 1, make_config(), False),
        (size / 0.8 - 1, make_config(), True),
        (size / 0.8 - 1, make_config(limit_train=99), False),
        (size / 0.8 - 1, make_config(limit_test=9), False),
        (size / 0.8 + 1, make_config(**pseudo), True),
        (2 * size / 0.8 + 1, make_simsiam_config(), True),
    ]:
        monkeypatch.setattr("model_code.training.images.count_memory_bytes", lambda found=memory_bytes: int(found))
        if is_refused:
            with pytest.raises(UsageError, match=r"^the images of pets take .*--set engine.pictures=disk, or [^\n]*$"):
                choose_place(dataset, config, CPU)
        else:
            assert choose_place(dataset, config, CPU) == "resident"
        on_disk = config.model_copy(update={"engine": config.engine.model_copy(update={"pictures": "disk"})})
        assert choose_place(dataset, on_disk, CPU) == "disk"
