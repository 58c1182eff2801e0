"""Hugging Face's Parquet in and out."""

import io
import json

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from model_code.data.export import export_dataset
from model_code.data.sources.archives import FolderArchive
from model_code.data.sources.parquet import BATCH_ROWS, _name_split, read_parquet
from model_code.errors import DataError

NAMES = ["dog", "cat"]
FEATURES = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": NAMES}}


def draw(number):
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def write(tmp_path):
    """Write one file of rows, two in a row group; the data set's folder comes back."""

    def write_file(name, columns, features=FEATURES):
        file = tmp_path / "set" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
        table = pyarrow.table(columns).replace_schema_metadata(metadata)
        parquet.write_table(table, file, row_group_size=2)
        return tmp_path / "set"

    return write_file


def make_rows(numbers, labels):
    images = [{"bytes": draw(number), "path": f"{number}.png"} for number in numbers]
    return {"img": images, "label": labels, "id": list(range(len(images)))}


def list_reds(split):
    return split.images_NHWC[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    "files",
    [
        (
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/test-00000-of-00001-0f.parquet",
        ),
        ("train/0000.parquet", "train/0001.parquet", "test/0000.parquet"),
    ],
)
def test_images_of_all_files_in_their_order(write, add, files):
    for file, numbers, labels in zip(files, [(0, 1, 2), (3,), (4,)], [(0, 1, 1), (0,), (1,)], strict=True):
        source = write(file, make_rows(numbers, labels))
    (source / "README.md").write_text("pets")
    added = add("pets", source, image_size=8)
    assert [one.name for one in added.skipped] == ["set/README.md"]
    packed = added.dataset
    assert packed.classes == ("cat", "dog")
    assert list_reds(packed.splits["train"]) == [0, 20, 40, 60]
    assert packed.splits["train"].labels_N.tolist() == [1, 0, 0, 1]
    assert list_reds(packed.splits["test"]) == [80]
    assert packed.splits["test"].labels_N.tolist() == [0]


def test_texts_and_bytes_without_what_hugging_face_notes(write, pack):
    rows = {"image": [draw(0), draw(1), draw(2)], "Category": ["cat ", "dog", "cat"]}
    packed = pack(write("all.parquet", rows, None))
    assert packed.classes == ("cat", "dog")
    assert packed.splits["train"].labels_N.tolist() == [0, 1, 0]
    numbers = pack(write("all.parquet", {"image": rows["image"], "label": [7, 10, 7]}, None), "numbers")
    assert numbers.classes == ("10", "7")


def test_a_test_split_without_labels_is_unlabelled(write, pack):
    write("train.parquet", make_rows((0, 1), (0, 1)))
    packed = pack(write("test.parquet", make_rows((2, 3), (-1, -1))))
    assert packed.splits["test"].labels_N.tolist() == [-1, -1]


def test_rows_without_a_good_label_are_listed_together(write, pack):
    write("validation.parquet", make_rows((2, 3, 4), (-1, 0, 2)))
    write("train.parquet", make_rows((0, 1, 5), (0, 1, None)))
    with pytest.raises(DataError, match=r"3 x row without a label: .*train.parquet/2.*validation.parquet/0"):
        pack(write("test.parquet", make_rows((2, 3), (0, 1))))


def test_a_class_that_train_does_not_have_is_named(write, pack):
    write("train.parquet", {"image": [draw(0), draw(1)], "label": ["cat", "dog"]}, None)
    with pytest.raises(DataError, match=r"label that train does not have: test.parquet/0"):
        pack(write("test.parquet", {"image": [draw(0)], "label": ["cow"]}, None))


@pytest.mark.parametrize(
    "columns",
    [
        {"label": [0, 1]},
        {"image": [b"", b""]},
        {"image": [b"", b""], "label": [0.5, 1.0]},
        {"image": [b"", b""], "other": [b"", b""], "label": [0, 1]},
        {"image": [b"", b""], "label": [0, 1], "class": ["a", "b"]},
    ],
)
def test_other_columns_are_refused_by_name(write, pack, columns):
    with pytest.raises(DataError, match=r"train.parquet: found columns .*; expected one of encoded images and one"):
        pack(write("train.parquet", columns, None))


def test_a_path_without_bytes_a_cut_file_and_a_lone_file_are_told(write, pack):
    rows = {"img": [{"bytes": None, "path": "a.png"}] * 2, "label": [0, 1]}
    rows["img"] = pyarrow.array(rows["img"], pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))
    source = write("train.parquet", rows)
    with pytest.raises(DataError, match="has no bytes, only a path; store the images in the file"):
        pack(source)
    file = source / "train.parquet"
    with pytest.raises(DataError, match="is a Parquet file; give the folder"):
        pack(file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train.parquet is truncated or damaged"):
        pack(source)


def test_an_export_is_read_as_the_same_images(write, pack, tmp_path):
    write("train.parquet", make_rows((0, 1, 2), (0, 1, 1)))
    packed = pack(write("test.parquet", make_rows((3,), (1,))))
    out = tmp_path / "out"
    assert export_dataset(packed, out, is_parquet=True) == 4
    assert pack(out, "again").checksum == packed.checksum
    found = parquet.read_table(out / "data/train-00000-of-00001.parquet")
    assert found.column("label").to_pylist() == [1, 0, 0]
    first = Image.open(io.BytesIO(found.column("image")[1].as_py()["bytes"]))
    assert np.array_equal(np.asarray(first), packed.splits["train"].images_NHWC[1])


def test_a_row_group_is_held_a_few_rows_at_a_time(tmp_path):
    rows, row_bytes = 30 * BATCH_ROWS, 100_000
    contents = [np.random.default_rng(number).bytes(row_bytes) for number in range(rows)]
    table = pyarrow.table({"image": contents, "label": ["cat", "dog"] * (rows // 2)})
    parquet.write_table(
        table, tmp_path / "train.parquet", row_group_size=rows, write_batch_size=BATCH_ROWS, use_dictionary=False
    )
    del table
    images = read_parquet(FolderArchive(tmp_path)).splits["train"].images
    before_bytes, held_rows = pyarrow.total_allocated_bytes(), []
    for position in (*range(rows), 5, 3):
        assert images[position].archive.read(images[position].member) == contents[position]
        held_rows.append((pyarrow.total_allocated_bytes() - before_bytes) / row_bytes)
    # The batch, the pages that it is made of, and the read buffer.
    assert max(held_rows) < 5 * BATCH_ROWS < rows / 5


def test_a_damaged_row_group_spoils_the_images_behind_the_damage_only(tmp_path):
    count = 4 * BATCH_ROWS
    contents = [np.random.default_rng(number).bytes(1000) for number in range(count)]
    file = tmp_path / "train.parquet"
    parquet.write_table(
        pyarrow.table({"image": contents, "label": ["cat", "dog"] * (count // 2)}),
        file,
        row_group_size=2 * BATCH_ROWS,
        write_batch_size=BATCH_ROWS,
        data_page_size=1000,
        use_dictionary=False,
        compression="none",
    )
    images = read_parquet(FolderArchive(tmp_path)).splits["train"].images
    data = bytearray(file.read_bytes())
    # The length in front of a value.
    start = data.index(contents[BATCH_ROWS]) - 4
    data[start : start + 4] = b"\xff\xff\xff\x7f"
    file.write_bytes(data)
    for position, image in enumerate(images):
        if BATCH_ROWS <= position < 2 * BATCH_ROWS:
            with pytest.raises(DataError, match=r"train\.parquet is truncated or damaged"):
                image.archive.read(image.member)
        else:
            assert image.archive.read(image.member) == contents[position]


@pytest.mark.parametrize("stray", ["index.parquet", "cat/index.parquet", "train/index.parquet"])
@pytest.mark.parametrize("is_good", [True, False], ids=["images and labels", "no images"])
def test_class_folders_win_over_a_stray_file_which_is_named(write, add, stray, is_good):
    source = write(stray, make_rows((5, 6), (0, 1)) if is_good else {"file": ["a", "b"]})
    top = "train/" * stray.startswith("train/")
    for number, name in enumerate(("cow", "hen")):
        (source / top / name).mkdir(parents=True)
        (source / top / name / "1.png").write_bytes(draw(number))
    if stray.startswith("cat/"):
        (source / "cat/1.png").write_bytes(draw(2))
    added = add("pets", source, image_size=8)
    assert added.dataset.classes == (("cat",) if stray.startswith("cat/") else ()) + ("cow", "hen")
    assert [(one.name, one.reason) for one in added.skipped] == [(f"set/{stray}", "this file type is not read")]


def test_negative_numbers_stand_for_no_label(write, pack):
    write("train.parquet", make_rows((0, 1), (0, 1)), features=None)
    source = write("test.parquet", make_rows((2, 3), (-1, -1)), features=None)
    packed = pack(source)
    assert packed.classes == ("0", "1")
    assert packed.splits["test"].labels_N.tolist() == [-1, -1]
    packed = pack(write("unlabeled.parquet", make_rows((4,), (-1,)), features=None))
    assert packed.splits["unlabelled"].labels_N.tolist() == [-1]
    with pytest.raises(DataError, match="1 x row without a label"):
        pack(write("train.parquet", make_rows((0, 1, 2), (0, 1, -1)), features=None))


def test_labels_that_are_names_in_one_file_and_numbers_in_another_are_refused(write, pack):
    write("train-0.parquet", make_rows((0, 1), (0, 1)))
    source = write("train-1.parquet", make_rows((2, 3), (0, 1)), features=None)
    with pytest.raises(
        DataError, match=r"names in train-0\.parquet and numbers without names in train-1\.parquet; store"
    ):
        pack(source)


def test_images_in_one_folder_beside_parquet_are_no_class_folders(write, add):
    source = write("train.parquet", make_rows((0, 1), (0, 1)))
    (source / "assets").mkdir()
    (source / "assets/sample.png").write_bytes(draw(2))
    (source / "banner.png").write_bytes(draw(3))
    added = add("pets", source, image_size=8)
    assert added.dataset.classes == ("cat", "dog")
    assert sorted(one.name for one in added.skipped) == ["set/assets/sample.png", "set/banner.png"]


def test_a_test_split_alone_is_for_evaluation(write, pack):
    packed = pack(write("test.parquet", make_rows((0, 1), (1, 0))))
    assert (packed.classes, set(packed.splits)) == (("cat", "dog"), {"test"})
    with pytest.raises(DataError, match="at least 2 are needed"):
        pack(write("test.parquet", make_rows((0, 1), (-1, -1))), "unlabelled")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("mnist_test.parquet", "test"),
        ("data/cifar10-test-00000-of-00001.parquet", "test"),
        ("data/partial-validation/0000.parquet", "validation"),
        ("default/dev/0000.parquet", "validation"),
        ("photos.parquet", "train"),
    ],
)
def test_a_word_of_the_folder_or_of_the_file_names_the_split(name, split):
    assert _name_split(name) == split
