"""Sources as people have them: odd names, other layouts, links, bad files."""

import unicodedata
import zipfile

import pytest

from model_code.data.cache import open_dataset
from model_code.errors import DataError, UsageError


def count(dataset):
    return {
        split: [int((content.labels_N == label).sum()) for label in range(len(dataset.classes))]
        for split, content in dataset.splits.items()
    }


@pytest.mark.parametrize(
    ("files", "classes", "counts"),
    [
        (["Training/a/1", "Training/b/1", "Testing/a/1", "Testing/b/1"], ["a", "b"], {"train": [1, 1], "test": [1, 1]}),
        (["TRAIN/a/1", "TRAIN/b/1", "Val/a/1"], ["a", "b"], {"train": [1, 1], "validation": [1, 0]}),
        (
            ["seg_train/seg_train/a/1", "seg_train/seg_train/b/1", "seg_test/seg_test/a/1", "seg_test/seg_test/b/1"],
            ["a", "b"],
            {"train": [1, 1], "test": [1, 1]},
        ),
        (["train_set/a/1", "train_set/b/1", "test_set/b/1"], ["a", "b"], {"train": [1, 1], "test": [0, 1]}),
        (["train/a/1", "train/b/1", "test/1", "test/2"], ["a", "b"], {"train": [1, 1], "test": [0, 0]}),
        (["train_images/a/1", "train_images/b/1", "test_images/1"], ["a", "b"], {"train": [1, 1], "test": [0, 0]}),
        (["a/1", "b/1", "test/1"], ["a", "b"], {"train": [1, 1], "test": [0, 0]}),
        (["a/1", "b/1", "test/a/1"], ["a", "b"], {"train": [1, 1], "test": [1, 0]}),
        (["cat/indoor/1", "cat/outdoor/1", "cat/2", "dog/1"], ["cat", "dog"], {"train": [3, 1]}),
        (["wrapped/train/a/deep/1", "wrapped/train/a/2", "wrapped/train/b/1"], ["a", "b"], {"train": [2, 1]}),
        (["a /1", "a/1", " b/1"], ["a", "b"], {"train": [2, 1]}),
        (["train station/1", "test tube/1"], ["test tube", "train station"], {"train": [1, 1]}),
    ],
)
def test_layouts_that_are_clear(add, write_tree, png, files, classes, counts):
    dataset = add("x", write_tree({f"{name}.png": png for name in files})).dataset
    assert list(dataset.classes) == classes
    assert count(dataset) == counts


def test_an_image_beside_the_classes_of_a_test_split_takes_no_labels_away(add, write_tree, png):
    files = ["train/a/1", "train/b/1", "test/a/1", "test/b/1", "test/cover"]
    folder = write_tree({f"{name}.png": png for name in files})
    with pytest.raises(DataError, match=r"1 x image outside of any class folder .*: source/test/cover.png"):
        add("x", folder)
    assert count(add("x", folder, skip=True).dataset) == {"train": [1, 1], "test": [1, 1]}


@pytest.mark.parametrize("names", [("train", "test"), ("seg_train", "seg_test")])
def test_sources_are_splits_by_their_names(add, write_tree, png, names):
    train, test = names
    folders = [
        write_tree({f"{name}.png": png for name in files}, folder)
        for folder, files in ((train, ["a/1", "a/2", "b/1"]), (test, ["a/1", "b/1"]))
    ]
    assert count(add("x", *folders).dataset) == {"train": [2, 1], "test": [1, 1]}
    assert count(add("y", folders[1]).dataset) == {"train": [1, 1]}


def test_a_missing_class_of_a_split_is_told(add, write_tree, png):
    added = add("x", write_tree(dict.fromkeys(["train/a/1.png", "train/b/1.png", "val/b/1.png"], png)))
    assert [(one.name, one.reason) for one in added.skipped] == [("validation", "has no images of a")]


def test_one_list_of_all_that_is_wrong(add, monkeypatch, tmp_path, write_tree, png):
    folder = write_tree(dict.fromkeys(["cover.jpg", "a/1.png", "b/1.png", "b/2.png"], png))
    (folder / "empty").mkdir()
    (folder / "b" / "gone.png").symlink_to(tmp_path / "nothing.png")
    with monkeypatch.context() as patch:
        patch.setattr("model_code.data.packing.decode_images", None)
        with pytest.raises(DataError) as error:
            add("x", folder)
    message = str(error.value)
    for part in (
        "1 x image outside of any class folder (expected <class>/<image>): source/cover.jpg",
        "1 x link whose target is missing: source/b/gone.png",
        "1 x class folder without images: source/empty",
        "correct them, or leave out 3 of them with --skip",
    ):
        assert part in message
    added = add("x", folder, skip=True)
    assert count(added.dataset) == {"train": [1, 2]}
    assert sorted(one.name for one in added.skipped) == ["source/b/gone.png", "source/cover.jpg", "source/empty"]


def test_what_cannot_be_skipped_stays_an_error(add, write_tree, png):
    with pytest.raises(DataError, match=r"subfolders only .*animals/cat/1\.png"):
        add("x", write_tree(dict.fromkeys(["animals/cat/1.png", "plants/oak/1.png"], png)), skip=True)


@pytest.mark.parametrize(
    "names",
    [("Cat", "cat"), ("ﬁr", "fir"), ("straße", "STRASSE"), ("a b", "a  b"), ("cat", "ca\u200bt"), ("❤", "❤\ufe0f")],
)
def test_names_that_look_alike_are_refused_by_name(add, write_tree, png, names):
    with pytest.raises(DataError, match="look alike") as error:
        add("x", write_tree({f"{name}/1.png": png for name in (*names, "dog")}), skip=True)
    assert all(ascii(name) in str(error.value) or repr(name) in str(error.value) for name in names)


def test_names_that_look_alike_in_two_splits_are_shown_together(add, write_tree, png):
    with pytest.raises(DataError, match=r"look alike .*: 'Cat' and 'cat'"):
        add("x", write_tree(dict.fromkeys(["train/Cat/1.png", "train/dog/1.png", "val/cat/1.png"], png)))


def test_composed_and_decomposed_names_are_one_class(add, write_tree, png):
    names = [unicodedata.normalize(form, "Käse") for form in ("NFC", "NFD")]
    dataset = add("x", write_tree({f"{name}/1.png": png for name in (*names, "Brot")})).dataset
    assert dataset.classes == ("Brot", "Käse")
    assert count(dataset) == {"train": [1, 2]}


def test_names_that_are_no_utf8_are_packed_escaped(add, tmp_path, write_tree, png):
    names = ["Brot/1.png", "Brot/\udce4/1\udcf6.png", "K\udce4se/1.png", "K\udce4se/2\udcf6.png", "Brot/\udcfc.txt"]
    added = add("x", write_tree(dict.fromkeys(names, png)))
    assert open_dataset("x", tmp_path / "cache").classes == ("Brot", "K\\xe4se")
    assert count(added.dataset) == {"train": [2, 2]}
    assert [one.name for one in added.skipped] == ["source/Brot/\\xfc.txt"]


def test_the_share_of_bad_files_is_a_setting(add, write_tree, class_files):
    files = class_files(splits=("train",), per_class=10)
    folder = write_tree(files | {"train/cat/0001.png": b"", "train/dog/0002.png": b"x", "train/dog/0003.png": b"x"})
    with pytest.raises(DataError, match=r"3 of 20 train images .* or leave them out with --max-bad 0\.15$"):
        add("x", folder)
    added = add("x", folder, max_bad_fraction=0.15)
    assert count(added.dataset) == {"train": [9, 8]}
    assert len(added.skipped) == 3
    with pytest.raises(UsageError, match=r"a share of 1\.5 bad files"):
        add("x", folder, max_bad_fraction=1.5)


def test_a_damaged_file_in_an_archive_is_a_bad_file(add, tmp_path, class_files):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, content in class_files(splits=("train",), per_class=10).items():
            archive.writestr(name, content)
    content = bytearray((tmp_path / "x.zip").read_bytes())
    content[content.index(b"IDAT") + 6] ^= 255
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"1 of 20 train .*cat/0000\.png.*Bad CRC-32.* with --max-bad 0\.05$"):
        add("x", tmp_path / "x.zip")
    added = add("x", tmp_path / "x.zip", max_bad_fraction=0.05)
    assert count(added.dataset) == {"train": [9, 10]}


def test_links_are_read_and_changes_behind_them_seen(add, tmp_path, write_tree, encode):
    write_tree({"a1.png": encode((1, 0, 0)), "b1.png": encode((2, 0, 0))}, "pool")
    for name in ("a", "b"):
        (tmp_path / "subset" / name).mkdir(parents=True)
        (tmp_path / "subset" / name / "1.png").symlink_to(tmp_path / "pool" / f"{name}1.png")
    (tmp_path / "subset" / "a" / "back").symlink_to(tmp_path / "subset")
    assert count(add("x", tmp_path / "subset", skip=True).dataset) == {"train": [1, 1]}
    assert add("x", tmp_path / "subset", skip=True).reused
    write_tree({"a1.png": encode((200, 0, 0), size=20)}, "pool")
    added = add("x", tmp_path / "subset", skip=True)
    assert not added.reused
    assert added.dataset.splits["train"].images_NHWC[0, 0, 0].tolist() == [200, 0, 0]


def test_links_in_a_circle_are_links_to_nothing(add, write_tree, png):
    folder = write_tree(dict.fromkeys(["a/1.png", "b/1.png"], png))
    (folder / "a" / "2.png").symlink_to("2.png")
    (folder / "c").symlink_to("d")
    (folder / "d").symlink_to("c")
    with pytest.raises(DataError, match=r"3 x link whose target is missing: source/a/2\.png, source/c, source/d; "):
        add("x", folder)
    assert count(add("x", folder, skip=True).dataset) == {"train": [1, 1]}


@pytest.mark.parametrize("suffix", ["jfif", "JFIF", "mpo", "pnm"])
def test_more_file_types(add, write_tree, encode, suffix):
    kind = "PPM" if suffix == "pnm" else "JPEG"
    files = {f"{name}/1.{suffix}": encode((200, 0, 0), kind=kind) for name in ("a", "b")}
    assert count(add("x", write_tree(files)).dataset) == {"train": [1, 1]}


TABLES = {
    "semicolons": "id;label\n1;cat\n2;dog\n",
    "tabs": "id\tlabel\n1\tcat\n2\tdog\n",
    "blanks": "id, label\n1, cat \n2 ,dog\n\n",
    "case": "Id,Label\r\n1,cat\r\n2,dog\r\n",
    "index": ",id,label\n0,1,cat\n1,2,dog\n",
    "order": "label,id\ncat,1\ndog,2\n",
    "floats": "id,label\n1.0,cat\n2.00,dog\n",
    "line break": 'id,label\n1,"cat\n"\n2,dog\n',
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_label_tables(add, write_tree, encode, table, encoding):
    images = {f"train/{number}.png": encode((number, 0, 0)) for number in (1, 2)}
    dataset = add("x", write_tree(images | {"trainLabels.csv": TABLES[table].encode(encoding)})).dataset
    assert dataset.classes == ("cat", "dog")
    assert dataset.splits["train"].labels_N.tolist() == [0, 1]


def test_lines_that_are_wrong_are_listed(add, write_tree, png):
    table = 'id,label\n1,cat\n2,nan\n3.5,dog\n4,"dog\n"\n5,Dog\n1,dog\n,cat\n6,a,b\n'
    with pytest.raises(DataError) as error:
        add("x", write_tree({"train/1.png": png, "trainLabels.csv": table.encode()}))
    for part in (
        "line 3 (label 'nan' of id 2 is none)",
        "line 4 (id '3.5' is not a whole number)",
        "line 8 (id 1 is there twice)",
        "line 9 (id '' is not a whole number)",
        "line 10 (3 cells instead of 2)",
        "'Dog' and 'dog'",
    ):
        assert part in str(error.value)


def test_classes_that_are_one_number_are_refused(add, write_tree, png):
    table = "id,label\n1,1\n2,1.0\n3,10\n4,0\n"
    images = {f"train/{number}.png": png for number in range(1, 5)}
    with pytest.raises(DataError, match=r"1 x classes whose names look alike \(rename or merge them\): '1' and '1\.0'"):
        add("x", write_tree(images | {"trainLabels.csv": table.encode()}))


def test_a_table_of_utf16_without_its_mark_is_refused_by_name(add, write_tree, png):
    table = "id,label\n1,cat\n2,dog\n".encode("utf-16-le")
    with pytest.raises(DataError, match=r"zero bytes, as UTF-16 without a byte order mark does.*; save it in UTF-8"):
        add("x", write_tree({"train/1.png": png, "train/2.png": png, "trainLabels.csv": table}))


@pytest.mark.parametrize("label", ["", " ", "NaN", "<NA>", "N/A", "#N/A", "null"])
def test_a_label_that_stands_for_none_is_no_class(add, write_tree, png, label):
    table = f"id,label\n1,{label}\n2,dog\n3,cat\n"
    images = dict.fromkeys(["train/1.png", "train/2.png", "train/3.png"], png)
    with pytest.raises(DataError, match=r"1 x line without one id and one label: line 2 "):
        add("x", write_tree(images | {"trainLabels.csv": table.encode()}))
