import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from serving.errors import BadParameterError, NotStoredError
from serving.observation import feedback
from serving.observation.feedback import FeedbackStore, count_images
from tests.unit.serving.tiny_bundle import encode, paint

LABELS = ("red", "green", "Zürich 🐈", "a b;$(x)")
STRANGE = ("..", ".", "", "../up", "a/b", "/etc", ".hidden", "nul\0", "x" * 300, "back\\slash")


def save(store, label="red", data=None, labels=LABELS):
    data = data or paint()
    return store.save("cifar10", label, labels, hashlib.sha256(data).hexdigest(), data)


def list_files(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return sorted(str(path.relative_to(folder)) for path in files)


def test_images_lie_in_class_folders(tmp_path):
    store = FeedbackStore(tmp_path / "feedback")
    for count, label in enumerate(LABELS, start=1):
        assert save(store, label, paint(size=(count, 9))) == count
    data = paint(kind="JPEG")
    assert save(store, "red", data) == len(LABELS) + 1
    file = tmp_path / "feedback/cifar10/red" / f"{hashlib.sha256(data).hexdigest()}.jpg"
    assert file.read_bytes() == data
    assert {path.name for path in (tmp_path / "feedback/cifar10").iterdir()} == set(LABELS)
    assert count_images(tmp_path / "feedback/cifar10") == len(LABELS) + 1
    assert (tmp_path / "feedback").stat().st_mode & 0o777 == 0o700, "images of other people"


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("PNG", ".png"), ("WEBP", ".webp"), ("GIF", ".gif"), ("BMP", ".bmp"), ("TIFF", ".tif"), ("PPM", ".ppm")],
)
def test_a_file_ends_as_its_content_says_without_being_opened(tmp_path, monkeypatch, kind, suffix):
    """Outside of the sandbox no decoder sees an image, not even its head."""
    data = encode(Image.new("RGB", (9, 9)), kind)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image is opened in the service"))
    save(FeedbackStore(tmp_path), data=data)
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
    assert not (tmp_path / "cifar10/red").exists(), "a data set refuses a class without images"


@pytest.mark.parametrize("label", STRANGE)
def test_no_label_leaves_the_folder(tmp_path, label):
    """A model may have such a class: its images may have come from anywhere."""
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


def test_a_new_label_replaces_one_that_the_model_no_longer_has(tmp_path):
    store = FeedbackStore(tmp_path)
    save(store, "red", paint("blue"))
    save(store, "red")
    assert save(store, "crimson", labels=("crimson", "green")) == 2
    assert sorted(path.parent.name for path in tmp_path.glob("cifar10/*/*")) == ["crimson", "red"]


def test_a_save_counts_the_images_once_and_right(tmp_path, monkeypatch):
    calls, real = [], feedback.count_images
    monkeypatch.setattr(feedback, "count_images", lambda root: calls.append(root) or real(root))
    store = FeedbackStore(tmp_path)
    for label, color in (("red", "red"), ("red", "red"), ("green", "red"), ("red", "blue")):
        count = save(store, label, paint(color))
        assert count == real(tmp_path / "cifar10")
    for folder in ("old", "older"):
        (tmp_path / "cifar10" / folder).mkdir()
        (file,) = tmp_path.glob("cifar10/green/*")
        (tmp_path / "cifar10" / folder / file.name).write_bytes(file.read_bytes())
    assert save(store, "red") == real(tmp_path / "cifar10") == 2
    assert len(calls) == 5


def test_there_is_a_limit_and_a_move_needs_no_room(tmp_path):
    store = FeedbackStore(tmp_path, max_bytes=2 * 4096 + 10)
    save(store, "red", paint("red"))
    save(store, "red", paint("green"))
    with pytest.raises(NotStoredError, match="may take"):
        save(store, "red", paint("blue"))
    assert save(store, "green", paint("green")) == 2
    assert len(list_files(tmp_path)) == 2
    with pytest.raises(NotStoredError, match="may take"):
        save(FeedbackStore(tmp_path, max_bytes=2 * 4096 + 10), "red", paint("blue"))


def test_services_keep_the_limit_together_and_forget_what_people_removed(tmp_path, monkeypatch):
    stores = [FeedbackStore(tmp_path, max_bytes=6 * 4096) for _ in range(3)]
    for number in range(6):
        save(stores[number % 3], data=paint(size=(9 + number, 9)))
    for number, store in enumerate(stores):
        with pytest.raises(NotStoredError, match="feedback takes 24,576 bytes and may take 24,576"):
            save(store, data=paint(size=(20 + number, 9)))
    next((tmp_path / "cifar10/red").iterdir()).unlink()
    monkeypatch.setattr(feedback, "_REFUSAL_INTERVAL_S", 0)
    assert save(stores[0], data=paint(size=(30, 9))) == 6


@pytest.mark.parametrize("noted", ["", "12", "x y", "-5 nan", "8 99999999999"])
def test_a_size_that_nobody_wrote_whole_is_measured_again(tmp_path, noted):
    store = FeedbackStore(tmp_path, max_bytes=2 * 4096)
    save(store)
    (tmp_path / ".lock").write_text(noted)
    save(store, data=paint(size=(10, 9)))
    with pytest.raises(NotStoredError, match="feedback takes 8,192 bytes"):
        save(store, data=paint(size=(11, 9)))


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


def test_a_killed_service_leaves_whole_images(tmp_path):
    code = f"""
import hashlib, itertools, pathlib
from serving.observation.feedback import FeedbackStore
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
    deadline_s = time.monotonic() + 60
    found = 0
    while found < 5 and time.monotonic() < deadline_s:
        with contextlib.suppress(FileNotFoundError):  # a label's folder goes with its last image
            found = len(list((tmp_path / "cifar10").glob("*/*")))
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    files = list((tmp_path / "cifar10").glob("*/*"))
    assert files
    assert all(hashlib.sha256(file.read_bytes()).hexdigest() == file.stem for file in files)
    assert len({file.name for file in files}) == len(files), "an image has one label"


RELABEL = """
import hashlib, pathlib, sys
from serving.observation.feedback import FeedbackStore
from tests.unit.serving.tiny_bundle import paint
store, mine, count = FeedbackStore(pathlib.Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
images = [paint(size=(9 + number, 9)) for number in range(count)]
print("ready", flush=True)
sys.stdin.readline()
for data in images:
    store.save("cifar10", mine, ("red", "green", "blue"), hashlib.sha256(data).hexdigest(), data)
"""


def test_services_that_say_different_labels_at_once_leave_one_copy(tmp_path):
    count = 40
    running = [
        subprocess.Popen(
            [sys.executable, "-c", RELABEL, str(tmp_path), label, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for label in ("red", "green", "blue")
    ]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
    wanted = {hashlib.sha256(paint(size=(9 + number, 9))).hexdigest() for number in range(count)}
    files = [path for path in (tmp_path / "cifar10").glob("*/*") if path.is_file()]
    assert len(files) == count, "each once"
    assert {path.stem for path in files} == wanted, "none is lost"
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.stem for path in files)
    assert not list((tmp_path / ".scratch").iterdir())


def test_processes_of_one_number_do_not_share_a_scratch_file(tmp_path, monkeypatch):
    """The first process of each container is number 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    seen = []
    real = os.fsync

    def note(descriptor):
        seen.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    data = paint()
    for home in ("a", "b"):
        save(FeedbackStore(tmp_path / home), data=data)
    names = [Path(name).name for name in seen if ".scratch" in name]
    assert len(names) == len(set(names)) == 2


def test_a_service_that_hangs_with_the_lock_holds_up_nobody_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(feedback, "LOCK_TIMEOUT_S", 0.2)
    store = FeedbackStore(tmp_path)
    save(store)
    with (tmp_path / ".lock").open("r+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        start_s = time.monotonic()
        with pytest.raises(NotStoredError, match="another service has held the feedback"):
            save(store, "green")
        assert time.monotonic() - start_s < 2
    assert save(store, "green") == 1


def test_what_a_killed_service_left_is_removed(tmp_path):
    (tmp_path / ".scratch").mkdir()
    for name, age_s in (("old", 7200), ("new", 60)):
        (tmp_path / ".scratch" / name).write_bytes(b"half")
        when = time.time() - age_s
        os.utime(tmp_path / ".scratch" / name, (when, when))
    save(FeedbackStore(tmp_path))
    assert [path.name for path in (tmp_path / ".scratch").iterdir()] == ["new"]


def test_tiny_images_count_as_the_blocks_that_they_take(tmp_path):
    store = FeedbackStore(tmp_path, max_bytes=5 * 4096)
    for number in range(5):
        save(store, data=paint(size=(9 + number, 9)))
    with pytest.raises(NotStoredError, match="may take"):
        save(store, data=paint(size=(20, 9)))
