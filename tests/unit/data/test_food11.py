"""Food-11 in its three layouts, from folders, zips and tars."""

import itertools
import random
import tarfile
import zipfile

import pytest

from model_code.data.cache import list_datasets
from model_code.data.sources.food11 import FOOD11_CLASSES
from model_code.errors import DataError

COUNT = len(FOOD11_CLASSES)


def list_numbered_files(*splits):
    """Layout a: two images per label in each split."""
    return [f"{split}/{label}_{number}.jpg" for split in splits for label in range(COUNT) for number in (10, 9)]


def list_numbered_folders(*splits):
    """Layout b, and the whole of `testing/00..10` where that is asked for."""
    return [f"{split}/{label:02}/{number}.jpg" for split in splits for label in range(COUNT) for number in range(2)]


def list_class_folders(*splits):
    """Layout c."""
    return [f"{split}/{name}/{number}.jpg" for split in splits for name in FOOD11_CLASSES for number in range(2)]


@pytest.fixture(name="add_names")
def adder(add, write_tree, encode):
    """Add Food-11 from file names; the blue of an image is its place among the sorted names."""
    folders = itertools.count()

    def run(names, **settings):
        files = {name: encode((1, 2, place % 256), 4) for place, name in enumerate(sorted(names))}
        return add("food11", write_tree(files, f"food11-{next(folders)}"), **{"image_size": 4, **settings})

    return run


def count_labels(added):
    return {split: sorted(content.labels_N.tolist()) for split, content in added.dataset.splits.items()}


TWO_OF_EACH = sorted([*range(COUNT)] * 2)


@pytest.mark.parametrize("list_names", [list_numbered_files, list_numbered_folders, list_class_folders])
@pytest.mark.parametrize(
    "splits",
    [("training", "validation", "evaluation"), ("train", "val", "test"), ("train", "valid", "testing")],
)
@pytest.mark.parametrize("wrapper", ["", "food-11/"])
def test_labelled_splits_in_each_layout(add_names, list_names, splits, wrapper):
    added = add_names([wrapper + name for name in list_names(*splits)])
    assert count_labels(added) == dict.fromkeys(("train", "validation", "test"), TWO_OF_EACH)
    assert added.dataset.classes == FOOD11_CLASSES


def test_class_names_in_any_case(add_names):
    names = [name.lower() for name in list_class_folders("training", "validation")]
    assert count_labels(add_names(names)) == {"train": TWO_OF_EACH, "validation": TWO_OF_EACH}


@pytest.mark.parametrize("testing", ["testing/{:04}.jpg", "testing/00/{:04}.jpg", "test/{:04}.jpg"])
@pytest.mark.parametrize("unlabelled", ["training/unlabeled/00/{}.jpg", "training/unlabeled/{}_0.jpg"])
def test_unlabelled_images_are_a_split_of_their_own(add_names, tmp_path, testing, unlabelled):
    names = [
        *list_numbered_folders("training/labeled", "validation"),
        *(unlabelled.format(number) for number in range(5)),
        *(testing.format(number) for number in range(3)),
    ]
    added = add_names([f"food-11/{name}" for name in names])
    assert count_labels(added) == {
        "train": TWO_OF_EACH,
        "validation": TWO_OF_EACH,
        "unlabelled": [-1] * 5,
        "test": [-1] * 3,
    }
    has_labels = {split: content.has_labels for split, content in added.dataset.splits.items()}
    assert has_labels == {"train": True, "validation": True, "unlabelled": False, "test": False}
    counts = list_datasets(tmp_path / "cache")[0].counts
    assert counts == {"train": 22, "validation": 22, "unlabelled": 5, "test": 3}


def test_test_images_without_labels_in_flat_folders(add_names):
    names = list_numbered_files("training", "validation") + [f"test/{number:04}.jpg" for number in range(4)]
    assert count_labels(add_names(names))["test"] == [-1] * 4


def test_default_size_and_files_that_are_not_read(add_names):
    added = add_names([*list_numbered_files("training"), "training/notes.txt", "sample.csv"], image_size=None)
    assert added.dataset.image_size == 256
    assert [one.name for one in added.skipped] == ["food11-0/training/notes.txt"]


def test_the_archive_and_its_order_do_not_matter(add, tmp_path, write_tree, encode):
    names = [
        *list_numbered_folders("training/labeled", "validation"),
        *(f"training/unlabeled/00/{number}.jpg" for number in range(5)),
        *(f"testing/{number}.jpg" for number in range(3)),
    ]
    contents = {name: encode((1, 2, place), 4) for place, name in enumerate(names)}
    folder = write_tree(contents)
    random.Random(0).shuffle(names)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for name in names:
            file.writestr(f"food-11/{name}", contents[name])
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as file:
        for name in reversed(names):
            file.add(folder / name, name)
    paths = [folder, tmp_path / "x.zip", tmp_path / "x.tar.gz"]
    datasets = [add("food11", path, image_size=4).dataset for path in paths]
    assert len({dataset.checksum for dataset in datasets}) == 1
    assert datasets[0].splits["train"].labels_N.tolist() == TWO_OF_EACH


def test_several_sources_are_merged(add, write_tree, encode):
    sources = [
        write_tree(dict.fromkeys(list_numbered_files(split), encode(size=4)), split)
        for split in ("training", "validation", "evaluation")
    ]
    added = add("food11", *sources, image_size=4)
    assert count_labels(added) == dict.fromkeys(("train", "validation", "test"), TWO_OF_EACH)
    with pytest.raises(DataError, match=r"train has 0_10\.jpg twice; give each image once"):
        add("food11", sources[0], write_tree({"training/0_10.jpg": encode(size=4)}, "again"), image_size=4)


def test_one_percent_that_does_not_decode_is_skipped(add, write_tree, encode):
    files = dict.fromkeys(list_numbered_files("training"), encode(size=4))
    files |= {f"training/unlabeled/{number}.jpg": encode(size=4) for number in range(100)}
    added = add("food11", write_tree(files | {"training/unlabeled/7.jpg": b"bad"}), image_size=4)
    assert [one.name for one in added.skipped] == ["source/training/unlabeled/7.jpg"]
    assert count_labels(added) == {"train": TWO_OF_EACH, "unlabelled": [-1] * 99}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["training/11_0.jpg"], r"training/11_0\.jpg: label 11 is not one of Food-11, 0 to 10; correct its name"),
        (["training/labeled/42/0.jpg"], r"label 42 is not one of Food-11"),
        ([*list_numbered_files("training"), "test/99_0.jpg"], r"label 99 is not one of Food-11"),
        (
            [*list_numbered_files("training"), "training/0001.jpg"],
            r"1 of 23 train images have no label \(0001\.jpg\); name them <label>_<id>\.jpg, or move",
        ),
        ([*list_numbered_files("training", "test"), "test/1.jpg"], r"1 of 23 test images have no label \(1\.jpg\)"),
        ([*list_numbered_files("training"), "validation/a_1.jpg"], r"1 of 1 validation images have no label"),
        (["training/1.jpg", "training/2.jpg"], r"2 of 2 train images have no label"),
        (list_numbered_files("validation", "test"), r"found only test, validation; labelled images in training/"),
        (["training/unlabeled/1.jpg"], r"found only unlabelled; labelled images in training/"),
        (
            list_numbered_files("training")[2:],
            r"train has no images of Bread; every class, labels 0 to 10, needs some",
        ),
        (
            [*list_class_folders("training"), "training/Pizza/1.jpg"],
            r"training/Pizza/1\.jpg: .Pizza. is not a class of Food-11, which are Bread, .*, Vegetable-Fruit; correct",
        ),
        (["training/labeled/1.jpg"], r"training/labeled/1\.jpg fits no layout of Food-11: training/<label>_<id>\.jpg,"),
        ([*list_class_folders("training"), "more/Bread/1.jpg"], r"more/Bread/1\.jpg fits no layout"),
        (
            [*list_class_folders("training"), "validation/unlabeled/1.jpg"],
            r"validation/unlabeled/1\.jpg fits no layout",
        ),
        (["1.jpg"], r"1\.jpg fits no layout"),
        (["training/readme.txt"], r"no images found; layouts of Food-11"),
        (
            [*list_numbered_files("training"), *list_class_folders("training")],
            r"train mixes class folders and numbers in file names; give each split one layout",
        ),
    ],
)
def test_wrong_layouts(add_names, names, message):
    with pytest.raises(DataError, match=message) as caught:
        add_names(names)
    assert "\n" not in str(caught.value)
