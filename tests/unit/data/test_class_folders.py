import tarfile
import zipfile

import pytest

from model_code.errors import DataError, UsageError


def zip_tree(folder, path):
    with zipfile.ZipFile(path, "w") as file:
        for member in sorted(folder.rglob("*"), reverse=True):
            file.write(member, member.relative_to(folder))
    return path


def test_folder_zip_and_tar_pack_to_the_same_content(add, tmp_path, write_tree, class_files):
    folder = write_tree(class_files(splits=("train", "test", "val")))
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as file:
        file.add(folder, "wrapped")
    added = [
        add(f"set{index}", path)
        for index, path in enumerate([folder, zip_tree(folder, tmp_path / "x.zip"), tmp_path / "x.tar.gz"])
    ]
    assert len({one.dataset.checksum for one in added}) == 1
    dataset = added[0].dataset
    assert dataset.classes == ("cat", "dog")
    assert {split: len(content.labels_N) for split, content in dataset.splits.items()} == {
        "train": 6,
        "test": 6,
        "validation": 6,
    }
    assert dataset.splits["train"].labels_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.splits["test"].images_NHWC[4, 0, 0].tolist() == [100, 10, 1]
    assert not dataset.splits["test"].images_NHWC.flags.writeable


def test_classes_alone_are_train_and_several_sources_merge(add, write_tree, class_files, png):
    train = write_tree({f"{name}/1.png": png for name in ("a", "b", "c")}, "one")
    test = write_tree(class_files(("a", "b", "c"), ("test",), 1), "two")
    dataset = add("letters", train, test).dataset
    assert dataset.classes == ("a", "b", "c")
    assert len(dataset.splits["train"].labels_N) == len(dataset.splits["test"].labels_N) == 3
    assert dataset.image_size == 64


def test_cifar10_has_its_official_order(add, write_tree, png):
    names = ["truck", "ship", "horse", "frog", "dog", "deer", "cat", "bird", "automobile", "airplane"]
    dataset = add("cifar10", write_tree({f"train/{name}/1.png": png for name in names})).dataset
    assert dataset.classes[0] == "airplane"
    assert dataset.classes[9] == "truck"
    assert dataset.image_size == 32


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("cifar10", ["cat/1.png", "dog/1.png"], r"found 2 classes with missing airplane, .*expected exactly the 10"),
        ("x", ["cat/1.png"], r"found 1 class \(cat\); at least 2"),
        ("x", ["train/a/1.png", "train/b/1.png", "test/c/1.png"], r"1 x class of test that train does not have: .*c/1"),
        ("x", ["test/cat/1.png", "test/dog/1.png"], r"found only test; a train folder"),
        ("x", ["evaluation/cat/1.png", "testing/dog/1.png"], r"found only test; a train folder"),
        ("x", ["a/1.HEIC", "b/2.heic", "c"], r"no images found among 3 files \(\.heic, no ending\); allowed"),
        ("x", ["readme.txt"], r"no images found among 1 files \(\.txt\); allowed layouts: .*trainLabels\.csv"),
        ("x", ["1.png", "2.png"], r"2 x image outside of any class folder .*: source/1\.png, source/2\.png"),
        ("x", ["train/1.png", "test/1.png"], r"found only test, train; a train folder with class folders is needed"),
        ("x", ["train/cat/1.png", "extra/dog/1.png"], r"outside of the train, validation and test .*extra/dog/1\.png"),
        (
            "x",
            ["train/cat/1.png", "train/dog/1.png", "train/fox/x.txt"],
            r"class folder without images: source/train/fox",
        ),
    ],
)
def test_wrong_layouts_and_classes(add, write_tree, png, name, files, message):
    with pytest.raises(DataError, match=message):
        add(name, write_tree(dict.fromkeys(files, png)))


def test_empty_folder_and_empty_class(add, tmp_path, write_tree, class_files):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images found"):
        add("x", tmp_path / "empty")
    folder = write_tree(class_files())
    (folder / "train" / "fox").mkdir()
    with pytest.raises(
        DataError,
        match=r"1 x class folder without images: source/train/fox; correct them, or leave out 1 of them with --skip",
    ):
        add("x", folder)


def test_the_same_image_from_two_sources(add, write_tree, class_files):
    one, two = write_tree(class_files(), "one"), write_tree(class_files(), "two")
    for skip in (False, True):  # two cameras give different photos one name: none is left out
        with pytest.raises(
            DataError, match=r"12 x image of the same name, split and class .*: two/test/cat/0000\.png, "
        ):
            add("x", one, two, skip=skip)


def test_a_source_of_hidden_folders_only_names_them(add, write_tree, png):
    with pytest.raises(DataError, match=r"no images found, and \.pics hidden, which is not read; allowed"):
        add("x", write_tree({".pics/cat/1.png": png, ".pics/dog/1.png": png}))


@pytest.mark.parametrize("name", ["nan", "NULL", "N/A".replace("/", "\u2044")])
def test_a_class_that_tables_take_for_no_label_is_refused(add, write_tree, class_files, png, name):
    source = write_tree(class_files(splits=("train",)) | {f"train/{name}/1.png": png})
    if name in ("nan", "NULL"):
        with pytest.raises(DataError, match=rf"1 x class whose name stands for no label in tables .*: {name}; correct"):
            add("x", source)
    else:
        assert name in add("x", source).dataset.classes


@pytest.mark.parametrize("options", [{"skip": True}, {"max_bad_fraction": 0.5}])
def test_what_was_left_out_on_request_is_not_left_out_without(add, write_tree, class_files, options):
    files = (
        class_files(splits=("train",)) | {"train/cat/9.png": b"no image"}
        if "skip" not in options
        else class_files(splits=("train",)) | {"stray.png": b""}
    )
    source = write_tree(files)
    assert not add("x", source, **options).reused
    assert add("x", source, **options).reused
    with pytest.raises(DataError):
        add("x", source)


def test_a_hidden_class_folder_is_named(add, write_tree, class_files, png):
    added = add("x", write_tree(class_files(splits=("train",)) | {"train/.fox/1.png": png}))
    assert added.dataset.classes == ("cat", "dog")
    assert [(one.name, one.reason) for one in added.skipped] == [
        ("source/train/.fox", "hidden folder, which is not read")
    ]


def test_up_to_one_percent_is_skipped_by_name(add, write_tree, class_files, png):
    files = class_files(splits=("train",), per_class=50) | {"train/cat/0007.png": b"no image"}
    added = add("x", write_tree(files | {"train/dog/notes.txt": b""}))
    assert [(one.name, "no image" in one.reason) for one in added.skipped] == [
        ("source/train/cat/0007.png", True),
        ("source/train/dog/notes.txt", False),
    ]
    train = added.dataset.splits["train"]
    assert len(train.labels_N) == len(train.images_NHWC) == 99
    assert [int(blue) for blue in train.images_NHWC[5:9, 0, 0, 2]] == [5, 6, 8, 9]
    assert train.labels_N.tolist() == [0] * 49 + [1] * 50


def test_more_than_one_percent_is_refused(add, tmp_path, write_tree, class_files):
    files = class_files(splits=("train",), per_class=50)
    folder = write_tree(files | {"train/cat/0001.png": b"", "train/dog/0002.png": files["train/dog/0002.png"][:40]})
    with pytest.raises(DataError, match=r"^2 of 100 train images do not decode, more than 1 % .*cat/0001\.png, .*dog"):
        add("x", folder)
    assert not (tmp_path / "cache" / "x").exists()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("../x", {}, "name '../x' is not allowed"),
        ("X", {}, "name 'X' is not allowed"),
        ("x" * 65, {}, "names of up to 64 characters"),
        ("2026", {}, "name '2026' is not allowed: --set dataset= reads numbers"),
        ("1e5", {}, "name '1e5' is not allowed"),
        ("null-with-feedback", {}, "name 'null' is not allowed"),
        ("shapes", {}, "shapes is drawn"),
        ("x", {"download": True}, "x cannot be downloaded, only cifar10"),
        ("cifar10", {"download": True}, "--from and --download were both given"),
        ("cifar10", {"url": "https://example.org/a"}, "--url https://example.org/a .* goes with --download"),
        ("x", {"image_size": 0}, "image size 0 is not allowed"),
    ],
)
def test_wrong_usage(add, tmp_path, name, settings, message):
    with pytest.raises(UsageError, match=message):
        add(name, tmp_path, **settings)


def test_a_name_near_one_that_is_known_is_asked_about(add):
    with pytest.raises(
        UsageError, match=r"no source for imagenet_val; did you mean imagenet-val\? use `darkroom data add"
    ):
        add("imagenet_val")
    with pytest.raises(UsageError, match=r"^no source for flowers; use `darkroom data add flowers --from PATH`$"):
        add("flowers")


def test_no_source_names_the_command(add):
    with pytest.raises(
        UsageError, match=r"no source for cifar10; use `darkroom data add cifar10 --from PATH \| --down"
    ):
        add("cifar10")


@pytest.mark.parametrize("train", ["train", "training", "trainset"])
@pytest.mark.parametrize("validation", ["val", "valid", "validation", "dev"])
@pytest.mark.parametrize("test", ["test", "testing", "evaluation", "eval"])
def test_split_folders_have_several_names(add, write_tree, class_files, train, validation, test):
    dataset = add("x", write_tree(class_files(splits=(train, test, validation)))).dataset
    first_reds = {split: int(content.images_NHWC[0, 0, 0, 0]) for split, content in dataset.splits.items()}
    assert first_reds == {"train": 0, "test": 100, "validation": 200}


def test_split_names_may_be_classes_and_wrapped(add, write_tree, class_files, png):
    for number, classes in enumerate((("invalid", "valid"), ("dev", "ops"), ("eval", "exec"))):
        folder = write_tree({f"{name}/1.png": png for name in classes}, f"classes{number}")
        assert add(f"x{number}", folder).dataset.classes == classes
    wrapped = {f"food/{name}": content for name, content in class_files(splits=("training", "evaluation")).items()}
    assert set(add("y", write_tree(wrapped, "two")).dataset.splits) == {"train", "test"}


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["train/train/day/1", "train/train/2", "train/car/3"], ("car", "train")),
        (["train/steam_train/day/1", "train/steam_train/2", "train/car/3", "train/car/day/4"], ("car", "steam_train")),
        (["train/train/a/1", "train/train/b/2", "test/test/a/3", "test/test/b/4"], ("a", "b")),
        (["train/train/1", "train/car/3"], ("car", "train")),
    ],
)
def test_a_class_whose_name_has_the_word_of_a_split_stays_a_class(add, write_tree, png, names, classes):
    added = add("x", write_tree({f"{name}.png": png for name in names}))
    assert added.dataset.classes == classes
    assert sum(len(split.labels_N) for split in added.dataset.splits.values()) == len(names)


@pytest.mark.parametrize(
    "names",
    [
        ["seg_train/seg_train/a/1", "seg_train/seg_train/b/2", "seg_test/seg_test/a/3", "seg_pred/seg_pred/4"],
        ["seg_train/a/1", "seg_train/b/2", "seg_test/a/3", "seg_pred/4"],
        ["a/1", "b/2", "test/a/3", "unlabeled/4"],
        ["train/a/1", "train/b/2", "test/a/3", "Unlabelled/4"],
    ],
)
def test_a_folder_of_images_without_labels_is_a_split_of_its_own(add, write_tree, png, names):
    dataset = add("x", write_tree({f"{name}.png": png for name in names})).dataset
    assert dataset.classes == ("a", "b")
    assert {split: one.labels_N.tolist() for split, one in dataset.splits.items()} == {
        "train": [0, 1],
        "test": [0],
        "unlabelled": [-1],
    }


def test_a_doubled_test_folder_without_classes_is_unlabelled(add, write_tree, png):
    names = ["seg_train/seg_train/a/1", "seg_train/seg_train/b/2", "seg_test/seg_test/3"]
    dataset = add("x", write_tree({f"{name}.png": png for name in names})).dataset
    assert dataset.splits["test"].labels_N.tolist() == [-1]
