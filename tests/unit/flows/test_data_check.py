"""Planted issues of a data set: found, written where people look, left out on request."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from flows.jobs.data import AddData, CheckData
from flows.operations.data_check import check_data
from model_code.data.add import add_dataset
from model_code.data.cache import open_dataset
from model_code.data.duplicates import find_duplicates, group
from model_code.data.quality import find_flaws
from model_code.data.revisions import find_divided_copies, find_leakage, read_revision
from model_code.errors import DataError
from model_code.evaluation.label_issues import find_label_issues, predict_left_out
from model_code.evaluation.patch_features import compute_patch_features, shrink
from model_code.settings import load_settings

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(count=120):
    """Images of stripes (label 0) and of blobs (label 1), of all colours."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32]
    images, labels_N = [], np.arange(count) % 2
    for label in labels_N:
        if label:
            middle = random.uniform(8, 24, 2)
            shape = np.hypot(rows - middle[0], columns - middle[1]) < random.uniform(4, 9)
        else:
            shape = (rows * random.uniform(-1, 1) + columns + random.uniform(0, 9)) % 8 < 4
        colours_2C = random.integers(0, 256, (2, 3))
        noise_HWC = random.normal(0, 12, (32, 32, 3))
        images.append(np.clip(colours_2C[shape.astype(int)] + noise_HWC, 0, 255).astype(np.uint8))
    return np.stack(images), labels_N.astype(np.int64)


def test_swapped_labels_come_first():
    images_NHWC, labels_N = draw()
    given_N = labels_N.copy()
    given_N[[3, 40, 77]] ^= 1
    probabilities_NK = predict_left_out(compute_patch_features(shrink(images_NHWC), 32), given_N, 2)
    assert probabilities_NK.sum(1) == pytest.approx(1)
    issues = find_label_issues(probabilities_NK, given_N)
    assert {issue.index for issue in issues[:3]} == {3, 40, 77}
    assert all(issue.suggested == labels_N[issue.index] for issue in issues[:3])
    assert all(0 < issue.score <= 1 for issue in issues)


def test_left_out_predictions_are_those_of_fits_without_the_image():
    random = np.random.default_rng(0)
    features_ND = torch.from_numpy(random.normal(size=(30, 4)))
    features_ND = (features_ND - features_ND.mean(0)) / features_ND.std(0)
    labels_N = random.integers(0, 3, 30)
    probabilities_NK = predict_left_out(features_ND, labels_N, 3)
    changed_N = labels_N.copy()
    changed_N[7] = (labels_N[7] + 1) % 3
    # Its own label moves the prediction for an image only by the mean and the common temperature.
    after_NK = predict_left_out(features_ND, changed_N, 3)
    assert np.abs(probabilities_NK[7] - after_NK[7]).max() < 0.1


def test_classes_with_few_images_are_not_judged():
    probabilities_NK = np.array([[0.9, 0.1]] * 10 + [[0.2, 0.8]] * 9 + [[0.99, 0.01]])
    labels_N = np.array([0] * 10 + [1] * 10)
    [issue] = find_label_issues(probabilities_NK, labels_N)
    assert (issue.index, issue.suggested) == (19, 0)
    assert find_label_issues(probabilities_NK[-4:], labels_N[-4:]) == []


def test_copies_are_found_mirrored_brighter_and_compressed_and_others_are_not():
    images_NHWC, _ = draw(60)
    copies = [
        images_NHWC[0],
        images_NHWC[1][:, ::-1],
        (images_NHWC[2] * 0.8).astype(np.uint8),
        np.clip(images_NHWC[3].astype(int) + np.random.default_rng(1).integers(-4, 5, (32, 32, 3)), 0, 255),
    ]
    flat_NHWC = np.full((2, 32, 32, 3), 90)
    pairs = find_duplicates(shrink(np.concatenate([images_NHWC, np.stack(copies), flat_NHWC]).astype(np.uint8)))
    assert {pair[:2] for pair in pairs} == {(0, 60), (1, 61), (2, 62), (3, 63)}
    assert pairs[0].similarity == pytest.approx(1)
    assert group(pairs) == {0: 0, 60: 0, 1: 1, 61: 1, 2: 2, 62: 2, 3: 3, 63: 3}


def test_every_one_of_many_copies_is_found():
    images_NHWC, _ = draw(60)
    copies = np.repeat(images_NHWC[:1], 200, axis=0)
    pairs = find_duplicates(shrink(np.concatenate([images_NHWC, copies])))
    assert set(group(pairs)) == {0, *range(60, 260)}


def test_copies_of_validation_in_test_are_no_leakage_from_training(photos):
    (photos / "val/blobs").mkdir(parents=True)
    (photos / "val/blobs/copy.png").write_bytes(next((photos / "test/blobs").glob("*.png")).read_bytes())
    (photos / "train/stripes/copy.png").unlink()
    settings = load_settings()
    folders = {"cache_dir": settings.cache_dir, "data_dir": settings.data_dir}
    dataset = add_dataset("mine", [photos], **folders, image_size=32, progress=False).dataset
    assert check_data("mine").counts["near-duplicate across splits"] == 1
    assert find_leakage(dataset, settings.cache_dir) == ""


def test_images_that_show_little_are_found_and_others_are_not():
    images_NHWC, _ = draw(8)
    square_HWC = np.zeros((32, 32, 3), dtype=np.uint8)
    square_HWC[8:24, 8:24] = 255
    bad = [
        np.full((32, 32, 3), 128),
        images_NHWC[0] // 10,
        230 + images_NHWC[0] // 11,
        np.asarray(Image.fromarray(square_HWC).filter(ImageFilter.GaussianBlur(3))),
    ]
    flaws = find_flaws(shrink(np.concatenate([images_NHWC, np.stack(bad)]).astype(np.uint8)))
    assert {(one.index, one.flaw) for one in flaws} == {(8, "blank"), (9, "dark"), (10, "bright"), (11, "blurred")}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "home"))
    images_NHWC, labels_N = draw(80)
    for number, (image_HWC, label) in enumerate(zip(images_NHWC, labels_N, strict=True)):
        given = label ^ (number == 5)
        folder = tmp_path / "photos" / ("test" if number >= 60 else "train") / ("stripes", "blobs")[given]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image_HWC).save(folder / f"{number:02}.png")
    Image.fromarray(images_NHWC[60]).save(tmp_path / "photos/train/stripes/copy.png")
    Image.new("RGB", (32, 32), "grey").save(tmp_path / "photos/train/<b>.png".replace("<b>", "blobs/<b>"))
    return tmp_path / "photos"


def test_a_check_writes_a_page_and_a_table_that_data_add_takes(photos, capsys):
    settings = load_settings()
    folders = {"cache_dir": settings.cache_dir, "data_dir": settings.data_dir}
    dataset = add_dataset("mine", [photos], **folders, image_size=32, progress=False).dataset
    assert "1 training images are copies of" in find_leakage(dataset, settings.cache_dir)
    checked = CheckData(name="mine")
    checked.check()
    checked.run()
    printed = capsys.readouterr().out
    assert printed.startswith(
        "reading 82 images\nlooking for copies\nlooking for likely wrong labels\nlooking for dark"
    )
    assert "near-duplicate across splits: 1\n" in printed
    assert "82 images, " in printed
    folder = settings.home / "checks" / "mine"
    [table] = folder.glob("*.csv")
    assert table.name == f"issues-{dataset.checksum[:12]}.csv"
    with table.open() as file:
        rows = {(row["file"], row["kind"]): row for row in csv.DictReader(file)}
    assert rows["photos/train/stripes/copy.png", "near-duplicate across splits"]["twin"] == "photos/test/stripes/60.png"
    assert rows["photos/train/stripes/05.png", "label issue"]["detail"] == "predicted blobs"
    assert ("photos/train/blobs/<b>.png", "blank") in rows
    page = table.with_suffix(".html").read_text()
    assert "photos/train/blobs/&lt;b&gt;.png" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "near-duplicates of validation or test" in find_leakage(dataset, settings.cache_dir)
    add_dataset("mine", [photos], **folders, image_size=32, progress=False, exclude=[table])
    clean = open_dataset("mine", settings.cache_dir)
    assert find_leakage(clean, settings.cache_dir) == ""
    assert len(clean.splits["test"].labels_N) <= 20


def test_equal_images_that_show_nothing_are_found_too(photos):
    for split in ("train", "test"):
        Image.new("RGB", (32, 32), "orange").save(photos / split / "stripes/flat.png")
    settings = load_settings()
    options = {"cache_dir": settings.cache_dir, "data_dir": settings.data_dir, "image_size": 32}
    dataset = add_dataset("mine", [photos], **options).dataset
    assert "2 training images are copies of" in find_leakage(dataset, settings.cache_dir)
    with check_data("mine").table.open() as file:
        rows = {(row["file"], row["kind"]): row["twin"] for row in csv.DictReader(file)}
    assert rows["photos/train/stripes/flat.png", "near-duplicate across splits"] == "photos/test/stripes/flat.png"
    assert "near-duplicates of validation or test" in find_leakage(dataset, settings.cache_dir)
    assert find_divided_copies(dataset, settings.cache_dir) == ""
    shutil.copy(photos / "train/stripes/05.png", photos / "train/stripes/again.png")
    dataset = add_dataset("mine", [photos], **options).dataset
    assert find_divided_copies(dataset, settings.cache_dir).startswith("1 training image is a copy of another, and a ")


def test_of_duplicates_with_two_labels_both_are_listed_for_a_person_to_choose(photos):
    same, other, *_ = sorted((photos / "train/stripes").glob("1*.png"))
    (photos / "train/stripes/same.png").write_bytes(same.read_bytes())
    (photos / "train/blobs/other.png").write_bytes(other.read_bytes())
    settings = load_settings()
    add_dataset("mine", [photos], cache_dir=settings.cache_dir, data_dir=settings.data_dir, image_size=32)
    with check_data("mine").table.open() as file:
        rows = {row["file"]: row for row in csv.DictReader(file) if row["kind"] == "near-duplicate"}
    stripes = "photos/train/stripes/"
    assert {name: (row["detail"], row["twin"]) for name, row in rows.items()} == {
        f"{stripes}same.png": ("", stripes + same.name),
        "photos/train/blobs/other.png": ("duplicate labelled stripes", stripes + other.name),
        stripes + other.name: ("duplicate labelled blobs", "photos/train/blobs/other.png"),
    }


def test_a_second_round_keeps_the_edited_table_and_names_the_first(photos, capsys):
    settings = load_settings()
    folders = {"cache_dir": settings.cache_dir, "data_dir": settings.data_dir, "image_size": 32, "progress": False}
    add_dataset("mine", [photos], **folders)
    first = check_data("mine").table
    edited = "file,kind\nphotos/train/blobs/<b>.png,blank\n"
    first.write_text(edited)
    again = check_data("mine")
    assert (again.table, first.read_text()) == (first, edited)
    assert any(f"{first.name} was edited and stays" in line for line in again.lines)
    add_dataset("mine", [photos], **folders, exclude=[first])
    second = check_data("mine")
    assert (second.table != first, first.read_text()) == (True, edited)
    assert any(line.endswith(f"or its images come back: {first.name}") for line in second.lines)
    second.table.write_text("file\nphotos/train/stripes/copy.png\n")
    AddData(name="mine", sources=(photos,), image_size=32, exclude=(second.table, first)).run()
    files = {one.file for one in read_revision("mine", settings.cache_dir).images}
    assert len(files) == 80
    assert not files & {"photos/train/blobs/<b>.png", "photos/train/stripes/copy.png"}
    assert f"copy.png: named in {second.table.name}" in capsys.readouterr().out


def test_a_set_that_is_not_here_is_refused_before_a_framework_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"'nope'.*is not in"):
        CheckData(name="nope").check()
