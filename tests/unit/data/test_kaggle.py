import pytest

from model_code.errors import DataError


@pytest.fixture
def files(encode):
    rows = "id,label\n" + "".join(f"{number},{'cat' if number % 2 else 'dog'}\n" for number in range(12, 0, -1))
    return {"trainLabels.csv": rows.encode()} | {
        f"trainImages/{number}.png": encode((number, 0, 0)) for number in range(1, 13)
    }


@pytest.mark.parametrize("folder", ["trainImages", "train"])
def test_ids_are_ordered_as_numbers(add, write_tree, files, folder):
    moved = {name.replace("trainImages", folder): content for name, content in files.items()}
    dataset = add("x", write_tree(moved), image_size=16).dataset
    assert list(dataset.splits) == ["train"]
    assert dataset.splits["train"].images_NHWC[:, 0, 0, 0].tolist() == list(range(1, 13))
    assert dataset.splits["train"].labels_N.tolist() == [0, 1] * 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"trainLabels.csv": b"id,class\n1,cat\n"},
            r"found columns \['id', 'class'\]; expected exactly id,label: rename or remove the others",
        ),
        ({"trainLabels.csv": b""}, r"found columns \[\]"),
        ({"trainLabels.csv": b"id,label\n"}, r"no rows; complete the table"),
        ({"trainLabels.csv": b'id,label\n1,"cat\nx"\n2,dog\n'}, r"1 x class whose name has a line break .*: 'cat\\nx'"),
        ({"trainLabels.csv": b"id,label\n1,cat\n1,dog\n"}, "id 1 is there twice"),
        ({"trainLabels.csv": b"id,label\none,cat\n"}, r"line 2 \(id 'one' is not a whole number\)"),
        ({"trainLabels.csv": b"id,label\n1,\n"}, r"line 2 \(label '' of id 1 is none\)"),
        ({"trainLabels.csv": b"id,label\n1,cat,extra\n"}, r"line 2 \(3 cells instead of 2\)"),
        ({"trainLabels.csv": b"\xff\xfe\x00"}, "not a table in UTF-8 or UTF-16"),
        ({"trainLabels.csv": b"id,label\n1,cat\n2,dog\n"}, r"10 images have no label \(ids 3, 4, 5, 6, 7 and 5 more"),
        ({"trainImages/3.png": None, "trainImages/10.png": None}, r"2 labels have no image \(ids 3, 10\)"),
        ({"trainImages/x.png": b""}, "id 'x' is not a number"),
        ({"trainImages/01.png": b""}, "have one id"),
    ],
)
def test_broken_tables_and_folders(add, write_tree, files, change, message):
    changed = {name: content for name, content in (files | change).items() if content is not None}
    with pytest.raises(DataError, match=message):
        add("x", write_tree(changed))


def test_no_image_folder(add, write_tree, files, png):
    with pytest.raises(DataError, match=r"no trainImages or train folder beside trainLabels\.csv"):
        add("x", write_tree({"trainLabels.csv": files["trainLabels.csv"], "other/1.png": png}))


def test_kaggle_cannot_be_merged(add, write_tree, files, class_files):
    with pytest.raises(DataError, match="only class folders can be merged"):
        add("x", write_tree(files), write_tree(class_files(), "other"))


def test_images_in_other_folders_are_counted(add, write_tree, files, png):
    others = {"testImages/1.png": png, "testImages/2.png": png, "3.png": png}
    added = add("x", write_tree(files | others))
    assert [(one.name, one.reason) for one in added.skipped] == [
        ("source", "1 images that the table does not label"),
        ("source/testImages", "2 images that the table does not label"),
    ]


def test_several_tables_are_refused_by_name(add, write_tree, files):
    with pytest.raises(
        DataError, match=r"old/trainLabels\.csv, trainLabels\.csv are 2 label tables|trainLabels\.csv, old/"
    ):
        add("x", write_tree(files | {"old/trainLabels.csv": b"id,label\n1,cat\n"}))


def test_labels_without_an_image_and_images_without_a_label_are_told_at_once(add, write_tree, files, png):
    del files["trainImages/3.png"]
    with pytest.raises(DataError, match=r"1 labels have no image \(ids 3\).*; 1 images have no label \(ids 99\)"):
        add("x", write_tree(files | {"trainImages/99.png": png}))
