"""Revisions of a data set, what is left out by name, and tables of what was."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from flows.jobs.data import AddData, CompareData, ListData
from model_code.data.add import add_dataset
from model_code.data.exclusion import read_exclusions
from model_code.data.revisions import ImageEntry, Revision, compare_revisions, list_revisions, read_revision
from model_code.errors import DataError, FaultyFilesError, UsageError
from model_code.settings import load_settings
from tests.unit.flows.test_removal import enter_run
from tests.unit.training.small_runs import tiny_network_entered


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "home"))
    return load_settings().cache_dir


@pytest.fixture
def photos(tmp_path):
    """Six noise images of two classes, two of them for test."""
    random = np.random.default_rng(0)
    for name in ("train/ash/1", "train/ash/2", "train/oak/1", "train/oak/2", "test/ash/3", "test/oak/3"):
        file = tmp_path / "photos" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    return tmp_path / "photos"


def add(photos, name="trees", **options):
    settings = load_settings()
    folders = {"cache_dir": settings.cache_dir, "data_dir": settings.data_dir}
    return add_dataset(name, [photos], **folders, image_size=8, progress=False, **options)


def test_a_revision_knows_file_label_and_pixels_of_each_image_in_its_order(photos, cache):
    packed = add(photos).dataset
    revision = read_revision("trees", cache)
    assert str(revision) == f"trees@{packed.checksum[:12]}"
    files = [(one.split, one.file, one.label) for one in revision.images]
    assert files[:2] == [("test", "photos/test/ash/3.png", "ash"), ("test", "photos/test/oak/3.png", "oak")]
    assert [packed.classes[label] for label in packed.splits["train"].labels_N] == [one[2] for one in files[2:]]
    assert len({one.pixels for one in revision.images}) == 6


def test_images_that_do_not_decode_shift_no_name(photos, cache):
    (photos / "train" / "ash" / "1.png").write_bytes(b"no image")
    packed = add(photos, max_bad_fraction=0.5).dataset
    files = [one.file for one in read_revision("trees", cache).images if one.split == "train"]
    assert files == ["photos/train/ash/2.png", "photos/train/oak/1.png", "photos/train/oak/2.png"]
    assert len(packed.splits["train"].labels_N) == 3


def test_what_changed_between_revisions(photos, cache, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    first = add(photos).dataset.checksum
    (photos / "train/ash/1.png").rename(photos / "train/oak/7.png")  # relabelled
    (photos / "train/oak/2.png").unlink()
    (photos / "test/oak/3.png").rename(photos / "train/oak/3.png")  # moved
    Image.new("RGB", (8, 8), "red").save(photos / "train/ash/9.png")
    shutil.copy(photos / "test/ash/3.png", photos / "test/ash/copy.png")
    add(photos)
    found = compare_revisions(read_revision(f"trees@{first[:6]}", cache), read_revision("trees", cache))
    assert [one.file for one in found.added] == ["photos/test/ash/copy.png", "photos/train/ash/9.png"]
    assert [one.file for one in found.removed] == ["photos/train/oak/2.png"]
    assert [(old.label, new.label, new.file) for old, new in found.relabelled] == [
        ("ash", "oak", "photos/train/oak/7.png")
    ]
    assert [(old.split, new.split) for old, new in found.moved] == [("test", "train")]
    assert list_revisions("trees", cache)[0].checksum == first
    CompareData(before=f"trees@{first}", after="trees").run()
    ListData(name="trees").run()
    printed = capsys.readouterr()
    assert "relabelled\tphotos/train/oak/7.png\ttrain\tash\ttrain\toak\n" in printed.out
    assert "removed\tphotos/train/oak/2.png\ttrain\toak\t\t\n" in printed.out
    assert all(stream.count("2 added, 1 removed, 1 relabelled, 1 moved") == 1 for stream in printed)
    CompareData(before=f"trees@{first}", after="trees", form="json").run()
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["change"] for one in records] == ["removed", "added", "added", "relabelled", "moved"]
    assert records[-1] == {
        "change": "moved",
        "file": "photos/train/oak/3.png",
        "file_before": "photos/test/oak/3.png",
        "split_before": "test",
        "label_before": "oak",
        "split_after": "train",
        "label_after": "oak",
    }
    CompareData(before="trees", after="trees").run()
    same = capsys.readouterr()
    assert (same.out, same.err) == ("", "the same images and labels\n")


def test_an_equal_data_set_of_another_name_is_told(photos, capsys):
    add(photos, "forest")
    AddData(name="trees", sources=(photos,), image_size=8).run()
    assert "the same images are packed as forest\n" in capsys.readouterr().out


def test_of_copies_a_file_is_compared_with_itself():
    def make(checksum, *images):
        return Revision("trees", checksum, "", 8, tuple(ImageEntry(*one, "0f") for one in images))

    before = make("a", ("train", "1.png", "ash"), ("train", "2.png", "oak"), ("train", "3.png", "elm"))
    after = make("b", ("test", "1.png", "ash"), ("train", "2.png", "ash"), ("train", "4.png", "elm"))
    found = compare_revisions(before, after)
    assert [(old.file, new.file, new.label) for old, new in found.relabelled] == [("2.png", "2.png", "ash")]
    assert [(old.file, new.file, new.split) for old, new in found.moved] == [("1.png", "1.png", "test")]
    assert (found.added, found.removed) == ((), ())


def test_two_sets_can_be_compared_and_unknown_revisions_are_named(photos, cache):
    add(photos)
    add(photos, "copy")
    same = compare_revisions(read_revision("trees", cache), read_revision("copy", cache))
    assert same == type(same)((), (), (), ())
    with pytest.raises(DataError, match=r"0 revisions of trees begin with 'zzz', there are: trees@[0-9a-f]{12};"):
        read_revision("trees@zzz", cache)
    with pytest.raises(DataError, match="is not in"):
        read_revision("other", cache)
    with pytest.raises(UsageError, match="is not allowed"):
        read_revision("../x", cache)


def test_excluded_images_are_left_out_and_reported(photos, cache, tmp_path):
    table, report = tmp_path / "issues.csv", tmp_path / "report.csv"
    table.write_text("kind,file\nlabel,photos/train/oak/2.png\nblank,photos/test/ash/3.png\n")
    AddData(name="trees", sources=(photos,), image_size=8, exclude=(table,), report=report).run()
    files = [one.file for one in read_revision("trees", cache).images]
    assert len(files) == 4
    assert "photos/train/oak/2.png" not in files
    with report.open() as file:
        rows = list(csv.DictReader(file))
    assert {"file": "photos/train/oak/2.png", "reason": "named in issues.csv"} in rows
    assert not add(photos).reused  # without the table all are back
    assert len(read_revision("trees", cache).images) == 6


def test_pixels_are_excluded_by_their_place(cache, tmp_path):
    (tmp_path / "names.txt").write_text("train/0\ntest/3\n")
    settings = load_settings()
    folders = {"cache_dir": settings.cache_dir, "data_dir": settings.data_dir}
    before = add_dataset("shapes", **folders, progress=False).dataset
    second = before.splits["train"].images_NHWC[1].copy()
    after = add_dataset("shapes", **folders, progress=False, exclude=[tmp_path / "names.txt"]).dataset
    assert len(after.splits["train"].labels_N) == len(before.splits["train"].labels_N) - 1
    assert (after.splits["train"].images_NHWC[0] == second).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no image"),
        ("file\n", "names no image"),
        ("x.png", "none of 1 excluded names"),
        (
            "kind;split;file,label\na;b;c,d\n",
            r"found columns \['kind', 'split', 'file,label'\]; expected a column file",
        ),
    ],
)
def test_a_table_that_excludes_nothing_is_refused(photos, tmp_path, text, message):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        add(photos, exclude=[tmp_path / "names.txt"])
    with pytest.raises(DataError, match="cannot be read"):
        read_exclusions(tmp_path / "missing.csv")


def test_a_report_lists_every_fault_of_a_source_that_is_refused(photos, tmp_path):
    report = tmp_path / "report.csv"
    for number in range(9):
        (photos / f"stray{number}.png").write_bytes(b"")
    (photos / "train/elm").mkdir()
    with pytest.raises(FaultyFilesError, match="and 4 more"):
        AddData(name="trees", sources=(photos,), report=report).run()
    with report.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert {"file": "photos/train/elm", "reason": "class folder without images"} in rows


def test_a_report_lists_every_image_that_does_not_decode(photos, tmp_path):
    report = tmp_path / "report.csv"
    for name in ("1", "2"):
        (photos / f"train/ash/{name}.png").write_bytes(b"no image")
    with pytest.raises(FaultyFilesError, match="2 of 4 train images do not decode"):
        AddData(name="trees", sources=(photos,), report=report).run()
    assert len(report.read_text().splitlines()) == 3
    (photos / "test/oak/3.png").write_bytes(b"no image")
    (photos / "train/oak/notes.txt").write_text("")
    with pytest.raises(FaultyFilesError, match=r"1 of 2 test images do not decode.*2 of 4 train images do not decode"):
        AddData(name="trees", sources=(photos,), report=report).run()
    with report.open() as file:
        files = [row["file"] for row in csv.DictReader(file)]
    assert files == [
        "photos/test/oak/3.png",
        *(f"photos/train/{name}" for name in ("ash/1.png", "ash/2.png", "oak/notes.txt")),
    ]


def test_a_revision_that_is_gone_is_written_again(photos, cache):
    first = add(photos)
    [file] = (cache / "trees").glob("revision-*")
    file.unlink()
    again = add(photos)
    assert (again.reused, again.dataset.checksum) == (False, first.dataset.checksum)
    assert len(read_revision("trees", cache).images) == 6
    assert add(photos).reused


@pytest.mark.parametrize("start", ["", "sep=;\n", "\n\n"])
@pytest.mark.parametrize(
    "text", ["kind;File\nlabel;photos/train/oak/2.png\n", "File\tkind\nphotos/train/oak/2.png\t\n"]
)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_tables_that_a_spreadsheet_has_saved_are_read(tmp_path, start, text, encoding):
    (tmp_path / "issues.csv").write_text(start + text, encoding=encoding)
    assert read_exclusions(tmp_path / "issues.csv") == {"photos/train/oak/2.png"}


def test_names_with_separators_and_quotes_may_stand_in_lines(tmp_path):
    names = {'a/file, "old".png', "b;c/1.png"}
    (tmp_path / "names.txt").write_text("\n".join(sorted(names)))
    assert read_exclusions(tmp_path / "names.txt") == names


def test_excluding_all_images_of_a_class_is_refused(photos, tmp_path):
    (tmp_path / "names.txt").write_text("photos/train/oak/1.png\nphotos/train/oak/2.png\n")
    with pytest.raises(DataError, match="the excluded names are all images of oak; keep some of them"):
        add(photos, exclude=[tmp_path / "names.txt"])


def test_few_images_copies_and_outdated_runs_are_told_when_images_are_packed(photos, tmp_path, capsys):
    settings = load_settings()
    with tiny_network_entered():
        for digit, dataset in ("1", "trees"), ("2", "others"):
            enter_run(settings, digit, 0.5, dataset=dataset)
        shutil.copy(photos / "test/ash/3.png", photos / "train/ash/3.png")
        AddData(name="trees", sources=(photos,), image_size=8).run()
    told = capsys.readouterr().out
    assert "fewer than 5 training images: ash (3), oak (2)\n" in told
    assert told.endswith(
        "  next: darkroom train fastnet_cifar10 --data trees --set validation_fraction=0.2; others: darkroom recipes\n"
    )
    assert "1 image is a copy of another: `darkroom data check trees` lists them\n" in told
    assert "1 finished run was trained on other images of this name" in told
    random = np.random.default_rng(1)
    for number in range(10):
        image = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        image.save(photos / f"train/{('ash', 'oak')[number % 2]}/more{number}.png")
    (photos / "train/ash/3.png").unlink()
    AddData(name="trees", sources=(photos,), image_size=8).run()
    told = capsys.readouterr().out
    assert "fewer than" not in told
    assert "a copy of" not in told
