"""What stays on disk when packing is killed, runs twice at once or fills the disk."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from model_code.data import packing
from model_code.data.cache import list_datasets, open_dataset
from model_code.errors import DataError, DiskFullError

SCRIPT = """
import os, signal, sys
from pathlib import Path
from model_code.data import packing
from model_code.data.add import add_dataset

source, root, die_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
step = 0

def dying(function):
    def run(*args, **kwargs):
        global step
        step += 1
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return run

if die_at:
    packing.flush_folder = dying(packing.flush_folder)
    packing._flush_file = dying(packing._flush_file)
    Path.rename, Path.replace = dying(Path.rename), dying(Path.replace)
    packing.shutil.rmtree = dying(packing.shutil.rmtree)
add_dataset("x", [source], cache_dir=root / "cache", data_dir=root, image_size=16, progress=False)
"""


def start(source, root, die_at=0):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(source), str(root), str(die_at)])


def hash_split(split):
    return split.images_NHWC.tobytes(), split.labels_N.tobytes()


def list_folder(folder):
    """What a data set's folder holds, but for its revisions."""
    return {path.name for path in folder.iterdir() if not path.name.startswith("revision-")}


def test_killed_while_reading_images(add, tmp_path, write_tree, class_files):
    source = write_tree(class_files(per_class=900))
    process = start(source, tmp_path)
    while not list((tmp_path / "cache").glob("x/scratch-*/*-images-*.npy")):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(DataError, match=r"'x' is not in .*darkroom data add x --from PATH"):
        open_dataset("x", tmp_path / "cache")
    assert list_datasets(tmp_path / "cache") == []
    added = add("x", source, image_size=16)
    assert not added.reused
    assert list_folder(tmp_path / "cache" / "x") == {"manifest.json", added.dataset.path.name}


@pytest.mark.parametrize("die_at", range(1, 17))
def test_killed_at_every_step_leaves_the_old_or_the_new(add, tmp_path, write_tree, class_files, encode, die_at):
    source = write_tree(class_files())
    old = add("x", source, image_size=16).dataset
    (source / "train" / "cat" / "0000.png").write_bytes(encode((255, 255, 255)))
    process = start(source, tmp_path, die_at)
    assert process.wait() in (0, -signal.SIGKILL)
    kept = open_dataset("x", tmp_path / "cache")
    is_new = kept.checksum != old.checksum
    assert kept.splits["train"].images_NHWC[0, 0, 0].tolist() == ([255] * 3 if is_new else [0, 0, 0])
    added = add("x", source, image_size=16)
    assert added.reused == is_new
    assert added.dataset.splits["train"].images_NHWC[0, 0, 0].tolist() == [255] * 3
    if not added.reused:
        assert list_folder(tmp_path / "cache" / "x") == {"manifest.json", added.dataset.path.name}


def test_two_processes_at_once(tmp_path, write_tree, class_files):
    source = write_tree(class_files(per_class=200))
    processes = [start(source, tmp_path) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    dataset = open_dataset("x", tmp_path / "cache")
    assert len(dataset.splits["train"].labels_N) == 400
    assert list_folder(tmp_path / "cache" / "x") == {"manifest.json", dataset.path.name}


def test_worker_processes_give_the_same_and_load_no_framework(add, monkeypatch, write_tree, class_files):
    source = write_tree(class_files(per_class=60))
    serial = add("one", source).dataset.checksum
    monkeypatch.setattr(packing, "count_workers", lambda image_count: 2)
    assert add("two", source).dataset.checksum == serial
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, model_code.data.add; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"torch", "torchvision", "mlflow", "prefect", "matplotlib"} & set(loaded)


def test_an_open_set_stays_readable_while_it_is_replaced(add, write_tree, class_files, encode):
    source = write_tree(class_files())
    old = add("x", source).dataset
    (source / "train" / "cat" / "0000.png").write_bytes(encode((255, 255, 255)))
    new = add("x", source).dataset
    assert old.splits["train"].images_NHWC[0, 0, 0].tolist() == [0, 0, 0]
    assert new.splits["train"].images_NHWC[0, 0, 0].tolist() == [255, 255, 255]
    assert not old.path.exists()


def test_a_source_that_changes_while_it_is_read(add, monkeypatch, tmp_path, write_tree, class_files):
    source = write_tree(class_files())
    kept = packing.decode_images

    def change_and_decode(*args):
        (source / "train" / "cat" / "late.png").touch()
        return kept(*args)

    monkeypatch.setattr(packing, "decode_images", change_and_decode)
    with pytest.raises(DataError, match="changed while it was read"):
        add("x", source)
    assert not (tmp_path / "cache" / "x").exists()


def test_full_disk_is_seen_before_anything_is_written(add, small_disk, write_tree, class_files):
    with pytest.raises(DiskFullError, match=r"packing x needs 2\.4 MB, 1\.0 MB is free; nothing .*lost"):
        add("x", write_tree(class_files(per_class=2)), cache_dir=small_disk / "cache", image_size=310)
    assert not (small_disk / "cache" / "x").exists()


def test_disk_that_fills_up_meanwhile_keeps_the_old_version(
    add, small_disk, monkeypatch, write_tree, class_files, encode
):
    source = write_tree(class_files(per_class=20))
    old = add("x", source, cache_dir=small_disk / "cache", image_size=32).dataset
    before = hash_split(old.splits["train"])
    (source / "train" / "cat" / "0000.png").write_bytes(encode((255, 255, 255)))
    (small_disk / "ballast").write_bytes(bytes(600_000))
    monkeypatch.setattr(packing, "check_free_space", lambda *args: None)
    with pytest.raises(DiskFullError, match=r"packing x needs 311\.9 kB, .* is free"):
        add("x", source, cache_dir=small_disk / "cache", image_size=32)
    kept = open_dataset("x", small_disk / "cache")
    assert hash_split(kept.splits["train"]) == before
    assert list_folder(small_disk / "cache" / "x") == {"manifest.json", kept.path.name}


def test_a_folder_that_cannot_be_written(add, tmp_path, write_tree, class_files):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write below .*Not a directory; make the folder writable"):
        add("x", write_tree(class_files()), cache_dir=tmp_path / "file" / "cache")


def test_pixels_are_those_that_serving_decodes(add, write_tree, encode):
    from serving.bundle.preprocess import decode_picture

    images = {
        f"{name}/{number}.jpg": encode((number * 40, 90, 200), size=20 + 13 * number, kind="JPEG")
        for name in ("a", "b")
        for number in range(4)
    }
    packed = add("x", write_tree(images), image_size=24).dataset.splits["train"].images_NHWC
    assert np.array_equal(packed, np.stack([decode_picture(content, 24) for content in images.values()]))
    assert Path(packed.filename).stat().st_size == 128 + 8 * 24 * 24 * 3
