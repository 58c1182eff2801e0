"""Hugging Face's ImageFolder in, class folders out."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from model_code.data.export import export_dataset
from model_code.errors import DataError, UsageError


@pytest.fixture
def write(tmp_path):
    """Write images of one colour each and tables; the folder comes back."""

    def write_files(images, tables):
        for number, name in enumerate(images):
            file = tmp_path / "set" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(file)
        for name, text in tables.items():
            (tmp_path / "set" / name).write_text(text)
        return tmp_path / "set"

    return write_files


FILES = ("train/a.png", "train/b.png", "train/c.png", "test/d.png")


@pytest.mark.parametrize(
    "tables",
    [
        {
            "train/metadata.csv": "file_name,label\na.png,cat\nb.png,dog \nc.png,cat\n",
            "test/metadata.csv": "label;file_name;text\ncat;d.png;a cat\n",
        },
        {
            "train/metadata.jsonl": '{"file_name": "a.png", "label": "cat"}\n\n{"label": "dog ", "File_Name": "b.png"}'
            '\n{"file_name": "c.png", "label": "cat", "boxes": {"bbox": [[1, 2, 3, 4]]}}\n',
            "test/metadata.csv": "file_name,label\nd.png,cat\n",
        },
        {"metadata.csv": "file_name,Label\ntrain/a.png,cat\ntrain/b.png,dog\ntrain/c.png,cat\ntest/d.png,cat\n"},
    ],
)
def test_tables_beside_or_above_the_images(write, pack, tables):
    packed = pack(write(FILES, tables))
    assert packed.classes == ("cat", "dog")
    assert packed.splits["train"].labels_N.tolist() == [0, 1, 0]
    assert packed.splits["test"].labels_N.tolist() == [0]
    assert packed.splits["train"].images_NHWC[:, 0, 0, 0].tolist() == [0, 20, 40]


def test_a_column_that_is_there_twice_is_refused(write, pack):
    with pytest.raises(DataError, match=r"metadata\.csv: the column label is there twice; remove one of them"):
        pack(write(FILES, {"metadata.csv": "file_name,label,label\ntrain/a.png,cat,dog\n"}))


def test_a_key_that_is_there_twice_is_refused(write, pack):
    for line in ('"label": "cat", "Label": "dog"', '"label": "cat", "label": "dog"'):
        with pytest.raises(DataError, match=r"line 1 is no JSON object in UTF-8 \(a key is there twice\)"):
            pack(write(FILES, {"metadata.jsonl": '{"file_name": "train/a.png", ' + line + "}"}))


def test_labels_that_contradict_class_folders_are_told(write, add):
    images = ("train/cat/a.png", "train/cat/b.png", "train/dog/c.png", "train/new/d.png")
    table = "file_name,label\ntrain/cat/a.png,cat\ntrain/cat/b.png,dog\ntrain/dog/c.png,dog\ntrain/new/d.png,cat\n"
    added = add("pets", write(images, {"metadata.csv": table}), image_size=8)
    assert added.dataset.splits["train"].labels_N.tolist() == [0, 1, 1, 0]
    [note] = added.skipped
    assert note.reason == "1 images lie in the folder of another class, such as train/cat/b.png; the table counts"


def test_everything_that_is_wrong_is_listed_at_once(write, pack):
    table = "file_name,label\na.png,cat\na.png,dog\nb.png,nan\nx.png,dog\nc.png\n"
    with pytest.raises(DataError) as caught:
        pack(write(FILES[:3], {"train/metadata.csv": table}))
    for part in ("named twice", "label 'nan' is none", "no file 'x.png'", "1 cells instead of 2", "train/b.png"):
        assert part in str(caught.value), part


def test_lines_of_json_are_refused_by_their_number(write, pack):
    line = '{{"file_name": "{}.png", "label": {}}}\n'.format
    source = write(FILES[:3], {"train/metadata.jsonl": line("a", "null") + line("b", "[1, 2]") + line("c", "3")})
    with pytest.raises(DataError) as caught:
        pack(source)
    for part in ("metadata.jsonl:1 (label '' is none)", "metadata.jsonl:2 (label is no text and no number)"):
        assert part in str(caught.value), part
    for damaged in (b"a.png,cat\n", b"[1]\n", b"{\n", b"[" * 100_000, b'{"label": "K\xe4se"}', b'"x"\xef\xbb\xbf'):
        (source / "train/metadata.jsonl").write_bytes(line("a", "1").encode() + damaged)
        with pytest.raises(DataError, match=r"metadata.jsonl: line 2 is no JSON object in UTF-8 \(.*; correct it"):
            pack(source)


def test_numbers_of_json_are_class_names_as_those_of_a_csv(write, pack):
    lines = "".join(
        f'{{"file_name": "{name}.png", "label": {label}}}\n' for name, label in (("a", 10), ("b", 2), ("c", 2))
    )
    packed = pack(write(FILES[:3], {"train/metadata.jsonl": lines}))
    assert packed.classes == ("10", "2")
    assert packed.splits["train"].labels_N.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("header", "wrong"),
    [
        ("file_name,text", "labels are missing;"),
        ("text,author", "file_name is missing and labels are missing;"),
        ("image,label", "file_name is missing;"),
        ("file_name,label,class", "label and class are labels;"),
    ],
)
def test_a_table_that_lacks_a_column_says_which(write, pack, header, wrong):
    with pytest.raises(DataError, match=rf"found columns .*; expected file_name and one of label, .*: {wrong}"):
        pack(write(FILES[:3], {"train/metadata.csv": f"{header}\na.png,x\n"}))
    with pytest.raises(DataError, match=f"metadata.csv: found columns .*: {wrong}"):
        pack(write(("a.png", "b.png"), {"metadata.csv": f"{header}\na.png,x\n"}))


def test_another_table_leaves_class_folders_what_they_are(write, pack):
    source = write(("train/cat/a.png", "train/dog/b.png"), {"metadata.csv": "made,by\n2026,us\n"})
    assert pack(source).classes == ("cat", "dog")


def test_an_export_is_read_as_the_same_images(write, pack, tmp_path):
    source = write(("train/a b/1.png", "train/ü/2.png", "val/ü/3.png", "test/a b/4.png"), {})
    packed = pack(source)
    file = tmp_path / "new" / "folder" / "out.zip"
    assert export_dataset(packed, file) == 4
    assert pack(file, "again").checksum == packed.checksum
    assert "val/ü/000000.png" in zipfile.ZipFile(file).namelist()
    with pytest.raises(UsageError, match="is there already"):
        export_dataset(packed, file)
    assert np.asarray(packed.splits["train"].images_NHWC).shape == (2, 8, 8, 3)


def test_an_export_keeps_names_that_no_folder_can_have_and_the_order(write, pack, tmp_path):
    names = ["a/b", "a_b", "a%2Fb", "..", ".x", "c:d", 'say "no", twice', "100%", "test"]
    rows = ['{}.png,"{}"'.format(number, name.replace('"', '""')) for number, name in enumerate(names)]
    source = write([f"train/{number}.png" for number in range(9)], {"train/metadata.csv": "file_name,label\n"})
    (source / "train/metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    packed = pack(source)
    assert sorted(packed.classes) == sorted(names)
    export_dataset(packed, tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        members = [name for name in archive.namelist() if name.endswith(".png")]
        archive.extractall(tmp_path / "out")
    assert len({name.split("/")[1] for name in members}) == 9
    assert {"train/a%2Fb/000000.png", "train/a_b/000001.png", "train/a%252Fb/000002.png"} < set(members)
    assert len(list((tmp_path / "out").rglob("*.png"))) == 9
    for again in (tmp_path / "out.zip", tmp_path / "out"):
        same = pack(again, "again")
        assert (same.classes, same.checksum) == (packed.classes, packed.checksum)


@pytest.mark.parametrize("form", ["zip", "folder", "parquet"])
@pytest.mark.parametrize("splits", [("validation",), ("test",), ("test", "validation")])
def test_an_export_without_training_images_is_read_as_the_same_images(write, pack, add, tmp_path, form, splits):
    files = [f"{split}/{number}.png" for split in splits for number in range(3)]
    rows = [f"{file},{('dog', 'cat', 'dog')[index % 3]}" for index, file in enumerate(files)]
    packed = pack(write(files, {"metadata.csv": "\n".join(["file_name,label", *rows])}))
    assert set(packed.splits) == set(splits)
    out = tmp_path / "out"
    assert export_dataset(packed, out, is_parquet=form == "parquet") == len(files)
    if form == "folder":
        with zipfile.ZipFile(out) as archive:
            archive.extractall(out := tmp_path / "extracted")
    again = pack(out, "again")
    assert (again.classes, again.checksum) == (packed.classes, packed.checksum)


@pytest.mark.parametrize("form", ["zip", "parquet"])
def test_an_export_of_imagenet_validation_is_read_under_any_name(write, add, pack, tmp_path, form):
    source = write(["val/n01440764/a.png", "val/n01443537/b.png", "val/n01443537/c.png"], {})
    packed = add("imagenet-val", source, image_size=8).dataset
    export_dataset(packed, tmp_path / "out", is_parquet=form == "parquet")
    assert pack(tmp_path / "out", "again").checksum == packed.checksum
    if form == "zip":
        assert add("imagenet-val", tmp_path / "out", image_size=8).dataset.checksum == packed.checksum


def test_another_file_beside_the_images_is_named(write, add):
    source = write(FILES, {"metadata.csv": "file_name,label\n" + "\n".join(f"{name},{name[-5]}" for name in FILES[:3])})
    (source / "test").rename(source.with_name("kept"))
    (source / "train" / "index.parquet").write_bytes(b"PAR1")
    assert [one.name for one in add("pets", source, image_size=8).skipped] == ["set/train/index.parquet"]
