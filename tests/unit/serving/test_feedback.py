import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from serving.errors import BadParameterError, NotStoredError
from serving.feedback import FeedbackStore, count_pictures
from tests.unit.serving.tiny_bundle import encode, paint

LABELS = ("red", "green", "Zürich 🐈", "a b;$(x)")
STRANGE = ("..", ".", "", "../up", "a/b", "/etc", ".hidden", "nul\0", "x" * 300, "back\\slash")


def save(store, label="red", data=None, labels=LABELS):
    data = data or paint()
    return store.save("cifar10", label, labels, hashlib.sha256(data).hexdigest(), data)


def list_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_pictures_lie_in_class_folders(tmp_path):
    store = FeedbackStore(tmp_path / "feedback")
    for count, label in enumerate(LABELS, start=1):
        assert save(store, label, paint(size=(count, 9))) == count
    data = paint(kind="JPEG")
    assert save(store, "red", data) == len(LABELS) + 1
    file = tmp_path / "feedback/cifar10/red" / f"{hashlib.sha256(data).hexdigest()}.jpg"
    assert file.read_bytes() == data
    assert {path.name for path in (tmp_path / "feedback/cifar10").iterdir()} == set(LABELS)
    assert count_pictures(tmp_path / "feedback/cifar10") == len(LABELS) + 1
    assert (tmp_path / "feedback").stat().st_mode & 0o777 == 0o700, "pictures of other people"


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("PNG", ".png"), ("WEBP", ".webp"), ("GIF", ".gif"), ("BMP", ".bmp"), ("TIFF", ".tif"), ("PPM", ".ppm")],
)
def test_a_file_ends_as_its_content_says(tmp_path, kind, suffix):
    save(FeedbackStore(tmp_path), data=encode(Image.new("RGB", (9, 9)), kind))
    (name,) = list_files(tmp_path)
    assert name.endswith(suffix)


def test_a_data_set_reads_them_as_they_are(tmp_path):
    from model_code.data.add import add_dataset

    store = FeedbackStore(tmp_path / "feedback")
    for position, label in enumerate(LABELS):
        for number in range(4):
            save(store, label, paint(size=(9 + number, 9 + position)))
    source = tmp_path / "feedback/cifar10"
    added = add_dataset("pets", [source], cache_dir=tmp_path / "cache", data_dir=tmp_path, progress=False)
    assert set(added.dataset.classes) == set(LABELS)
    assert len(added.dataset.splits["train"].labels_N) == 4 * len(LABELS)


def test_a_second_label_takes_the_place_of_the_first(tmp_path):
    store = FeedbackStore(tmp_path)
    assert save(store, "red") == 1
    assert save(store, "red") == 1
    assert save(store, "green") == 1
    (name,) = list_files(tmp_path)
    assert name.startswith("cifar10/green/")
    assert not (tmp_path / "cifar10/red").exists(), "a data set refuses a class without pictures"


@pytest.mark.parametrize("label", STRANGE)
def test_no_label_leaves_the_folder(tmp_path, label):
    """A model may have such a class: its pictures may have come from anywhere."""
    home = tmp_path / "a/b/c"
    with pytest.raises(BadParameterError):
        save(FeedbackStore(home), label, labels=(*LABELS, *STRANGE))
    assert list_files(tmp_path) == []


def test_a_class_with_a_strange_name_spoils_no_other(tmp_path):
    assert save(FeedbackStore(tmp_path), "red", labels=(*LABELS, *STRANGE)) == 1


def test_a_label_that_the_model_does_not_know(tmp_path):
    with pytest.raises(BadParameterError, match=r"'mauve' is none of cifar10's classes; they are .*green.*red"):
        save(FeedbackStore(tmp_path), "mauve")
    with pytest.raises(BadParameterError, match=r"class19 and 980 more|and 980 more"):
        save(FeedbackStore(tmp_path), "mauve", labels=[f"class{number}" for number in range(1000)])


def test_there_is_a_limit_and_a_move_needs_no_room(tmp_path):
    store = FeedbackStore(tmp_path, max_bytes=2 * len(paint()) + 10)
    save(store, "red", paint("red"))
    save(store, "red", paint("green"))
    with pytest.raises(NotStoredError, match="may take"):
        save(store, "red", paint("blue"))
    assert save(store, "green", paint("green")) == 2
    assert len(list_files(tmp_path)) == 2
    with pytest.raises(NotStoredError, match="may take"):
        save(FeedbackStore(tmp_path, max_bytes=2 * len(paint()) + 10), "red", paint("blue"))


def test_a_full_disk_is_one_line_and_leaves_nothing_half(mount_disk):
    folder = mount_disk("1m")
    store = FeedbackStore(folder / "feedback")
    noise = [os.urandom(100_000) for _ in range(20)]
    stored, message = 0, ""
    for number, data in enumerate(noise):
        try:
            stored = save(store, data=paint(size=(9 + number, 9)) + data)
        except NotStoredError as error:
            message = str(error)
    assert 3 < stored < 20
    assert "No space left on device" in message
    assert "free some space" in message
    sizes = [path.stat().st_size for path in (folder / "feedback/cifar10/red").iterdir()]
    assert len(sizes) == stored
    assert min(sizes) > 100_000
    assert not list((folder / "feedback/.scratch").iterdir())
    # Full as the disk is, a label can still be put right.
    assert save(store, "green", paint(size=(9, 9)) + noise[0]) == stored


def test_a_killed_service_leaves_whole_pictures(tmp_path):
    code = f"""
import hashlib, itertools, pathlib
from serving.feedback import FeedbackStore
from tests.unit.serving.tiny_bundle import paint
store = FeedbackStore(pathlib.Path({str(tmp_path)!r}))
print("ready", flush=True)
for number in itertools.count(1):
    data = paint(size=(9 + number % 50, 9)) + bytes([number % 256]) * 300_000
    for label in ("red", "green"):
        store.save("cifar10", label, ("red", "green"), hashlib.sha256(data).hexdigest(), data)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    files = list((tmp_path / "cifar10").glob("*/*"))
    assert files
    assert all(hashlib.sha256(file.read_bytes()).hexdigest() == file.stem for file in files)
    assert len({file.name for file in files}) == len(files), "a picture has one label"
