"""Packed images in several files: what is read, what damage is seen, and what a killed packing leaves to the next."""

import errno
import hashlib
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from model_code.data import packing, shards
from model_code.data.cache import open_dataset
from model_code.errors import DataError, UsageError

SIDE = 8
ROW_BYTES = 3 * SIDE**2
# Three images in a block, two blocks in a shard.
BLOCK_BYTES, SHARD_BYTES = 3 * ROW_BYTES + 10, 6 * ROW_BYTES + 100
SCRIPT = f"""
import signal, sys, time
from pathlib import Path
from model_code.data import decoding, packing, shards
from model_code.data.add import add_dataset

signal.signal(signal.SIGINT, signal.default_int_handler)  # the background of a shell ignores it
shards.BLOCK_BYTES, shards.SHARD_BYTES = {BLOCK_BYTES}, {SHARD_BYTES}
decoding._CHUNK_IMAGES = 4
real = decoding.decode_chunk

def decode_slowly(*args):
    time.sleep(0.2)
    return real(*args)

decoding.decode_chunk = decode_slowly
root = Path(sys.argv[2])
add_dataset("pets", [Path(sys.argv[1])], cache_dir=root / "cache", data_dir=root, image_size={SIDE}, progress=False,
            max_bad_fraction=0.5)
"""


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "BLOCK_BYTES", BLOCK_BYTES)
    monkeypatch.setattr(shards, "SHARD_BYTES", SHARD_BYTES)


@pytest.fixture
def source(write_tree, class_files):
    return write_tree(class_files(per_class=10))


@pytest.fixture
def packed(add, small_shards, source):
    """20 training images in shards of 6, 6, 6 and 2."""
    return add("pets", source, image_size=SIDE).dataset


def read_files(folder):
    """The bytes of each file, but for the manifest, which names its folder and time."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_shards_hold_what_one_file_held(packed, add, monkeypatch, tmp_path, source):
    names = sorted(path.name for path in packed.path.glob("train-images*"))
    assert names == [f"train-images-{number:05}.npy" for number in range(4)]
    assert [len(np.load(packed.path / name)) for name in names] == [6, 6, 6, 2]
    monkeypatch.undo()
    whole = add("whole", source, image_size=SIDE).dataset
    assert isinstance(whole.splits["train"].images_NHWC, np.memmap)
    assert packed.checksum == whole.checksum
    images, expected = packed.splits["train"].images_NHWC, whole.splits["train"].images_NHWC
    assert (images.shape, images.nbytes, images.dtype, len(images)) == (expected.shape, expected.nbytes, np.uint8, 20)
    for index in (0, 19, -1, slice(None), slice(4, 15), slice(1, 20, 7), slice(3, 3), [5, 6, 19, 0, 0], np.arange(20)):
        assert np.array_equal(images[index], expected[index]), index
        assert np.array_equal(whole.splits["train"].shards[index], expected[index]), index
    assert np.array_equal(np.stack(list(images)), expected)
    for index in (20, -21, [3, 20]):
        with pytest.raises(IndexError):
            images[index]


def test_an_earlier_cache_is_read_and_reused(add, source, tmp_path):
    """Its manifest has no shards, and its images are one file for each split."""
    dataset = add("pets", source, image_size=SIDE).dataset
    expected = {name: split.images_NHWC.copy() for name, split in dataset.splits.items()}
    file = tmp_path / "cache" / "pets" / "manifest.json"
    manifest = json.loads(file.read_text()) | {"format_version": 1}
    for name, split in manifest["splits"].items():
        del split["shards"], split["block_rows"]
        (dataset.path / f"{name}-images-00000.npy").rename(dataset.path / f"{name}-images.npy")
    file.write_text(json.dumps(manifest))
    earlier = open_dataset("pets", tmp_path / "cache")
    for name, split in earlier.splits.items():
        assert isinstance(split.images_NHWC, np.memmap)
        assert np.array_equal(split.images_NHWC, expected[name])
        assert np.array_equal(split.shards[:], expected[name])
    assert add("pets", source, image_size=SIDE).reused


@pytest.mark.parametrize("place", [5, 128, 128 + 3 * ROW_BYTES, -1])
def test_a_flipped_byte_is_named_and_mended(packed, add, source, tmp_path, place):
    flip(packed.path / "train-images-00002.npy", place)
    first = 3 if place in (-1, 128 + 3 * ROW_BYTES) else 0
    message = (
        rf"^data set 'pets' is damaged \(.*train-images-00002\.npy: images {first} to {first + 2} have other bytes "
        r"than were packed\); add it again with `darkroom data add pets --from PATH`$"
    )
    damaged = open_dataset("pets", tmp_path / "cache")
    with pytest.raises(DataError, match=message):
        damaged.verify()
    with pytest.raises(DataError, match=message):
        damaged.splits["train"].images_NHWC[:]
    mended = add("pets", source, image_size=SIDE)
    assert not mended.reused
    assert mended.dataset.checksum == packed.checksum
    mended.dataset.verify()
    assert add("pets", source, image_size=SIDE).reused


def test_a_block_is_compared_once(packed, monkeypatch):
    seen, real = [], shards.zlib.crc32
    monkeypatch.setattr(shards.zlib, "crc32", lambda content: seen.append(len(content)) or real(content))
    for _ in range(3):
        packed.splits["train"].images_NHWC[:6]
    assert seen == [128 + 3 * ROW_BYTES, 3 * ROW_BYTES]


@pytest.mark.parametrize("change", ["truncate", "unlink"])
def test_a_missing_or_short_shard_is_named(packed, tmp_path, change):
    path = packed.path / "train-images-00001.npy"
    path.write_bytes(path.read_bytes()[:-1]) if change == "truncate" else path.unlink()
    with pytest.raises(DataError, match=r"is damaged \(.*train-images-00001\.npy(: No such file| has 1279 bytes)"):
        open_dataset("pets", tmp_path / "cache")


def test_a_replaced_set_can_still_be_read(packed, add, source, encode):
    expected = packed.splits["train"].images_NHWC[:]
    (source / "train" / "cat" / "0000.png").write_bytes(encode((255, 255, 255)))
    add("pets", source, image_size=SIDE)
    assert not packed.path.exists()
    assert np.array_equal(packed.splits["train"].images_NHWC[:], expected)


def test_more_shards_than_a_process_may_have_open(packed, tmp_path):
    script = (
        "import resource, sys; from pathlib import Path; from model_code.data.cache import open_dataset;"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (8, hard));"
        "open_dataset('pets', Path(sys.argv[1])).verify()"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "cache"], check=True)


def test_too_many_open_files_are_no_damage(packed, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(shards.os, "open", refuse)
    with pytest.raises(UsageError, match=r"^.*\.npy: Too many open files; raise the limit: ulimit -n$"):
        open_dataset("pets", tmp_path / "cache")


@pytest.mark.parametrize("index", [(3, 0), np.ones(20, dtype=bool), 1.5])
def test_an_index_that_is_no_row_is_refused(packed, index):
    with pytest.raises(TypeError, match=r"^images are indexed by an integer, a slice or integers, not by "):
        packed.splits["train"].images_NHWC[index]


def test_images_that_do_not_decode_leave_no_gaps(add, small_shards, write_tree, class_files, monkeypatch):
    files = class_files(per_class=10, splits=("train",))
    bad = {1, 6, 7, 8, 9, 10, 11, 19}  # one of the first shard, all of the second, the last image
    names = sorted(files)
    source = write_tree({name: b"no image" if index in bad else files[name] for index, name in enumerate(names)})
    sharded = add("sharded", source, image_size=SIDE, max_bad_fraction=0.5)
    monkeypatch.undo()
    whole = add("whole", source, image_size=SIDE, max_bad_fraction=0.5)
    assert sharded.dataset.checksum == whole.dataset.checksum
    assert sharded.skipped == whole.skipped
    assert len(sharded.skipped) == len(bad)
    images = sharded.dataset.splits["train"].images_NHWC
    assert np.array_equal(images[:], whole.dataset.splits["train"].images_NHWC)
    assert sorted(path.name for path in sharded.dataset.path.iterdir()) == [
        "train-images-00000.npy",
        "train-images-00002.npy",
        "train-images-00003.npy",
        "train-labels.npy",
    ]
    sharded.dataset.verify()


def kill_while_packing(source, root, finished, how=signal.SIGKILL):
    """Pack in another process and end it once so many shards are finished; return the journal."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(source), str(root)])
    journal = []
    while len(journal) < finished:
        assert process.poll() is None
        time.sleep(0.01)
        journal = [line for file in (root / "cache").glob("pets/scratch-*/journal.jsonl") for line in file.open()]
    process.send_signal(how)
    process.wait()
    return journal


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_packing_that_was_ended_is_resumed(add, tmp_path, small_shards, monkeypatch, write_tree, class_files, how):
    files = class_files(per_class=10)
    bad = sorted(files)[23]
    source = write_tree({name: b"no image" if name == bad else content for name, content in files.items()})
    journal = kill_while_packing(source, tmp_path, 5, how)
    [scratch] = (tmp_path / "cache" / "pets").iterdir()
    (scratch / "journal.jsonl").open("a").write('["torn')
    (scratch / "train-images-00003.npy").write_bytes(b"unfinished")
    decoded, real = [], packing.decode_images

    def count(images, *args):
        decoded.extend(image.member for image in images)
        return real(images, *args)

    monkeypatch.setattr(packing, "decode_images", count)
    resumed = add("pets", source, image_size=SIDE, max_bad_fraction=0.5)
    # All four shards of the test images, 20, and at least one of the training images.
    assert len(journal) >= 5
    assert len(decoded) == len(set(decoded)) <= 14
    assert not any(member.startswith("test/") for member in decoded)
    again = add("again", source, image_size=SIDE, max_bad_fraction=0.5)
    assert len(decoded) == 40 + len(set(decoded[: len(decoded) - 40]))
    assert read_files(resumed.dataset.path) == read_files(again.dataset.path)
    assert resumed.dataset.checksum == again.dataset.checksum
    assert resumed.skipped == again.skipped
    assert [path.name for path in resumed.dataset.path.glob("journal*")] == []


@pytest.mark.parametrize("damage", ["flipped", "short", "missing", "journal"])
def test_a_finished_shard_that_was_damaged_is_written_again(add, tmp_path, small_shards, source, damage):
    kill_while_packing(source, tmp_path, 6)
    [scratch] = (tmp_path / "cache" / "pets").iterdir()
    shard = scratch / "test-images-00001.npy"
    if damage == "flipped":
        flip(shard, 200)
    elif damage == "short":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "missing":
        shard.unlink()
    else:
        journal = scratch / "journal.jsonl"
        journal.write_bytes(b"\0" * 40 + b"\n" + journal.read_bytes())
    added, whole = (add(name, source, image_size=SIDE).dataset for name in ("pets", "again"))
    assert added.checksum == whole.checksum
    assert read_files(added.path) == read_files(whole.path)


def test_what_an_interrupted_packing_of_other_images_left_is_removed_by_a_repeated_one(add, tmp_path, source, packed):
    scratch = packed.path.parent / "scratch-0"
    scratch.mkdir()
    assert add("pets", source, image_size=SIDE).reused
    assert not scratch.exists()


@pytest.mark.parametrize("change", ["image", "size"])
def test_what_another_packing_left_is_removed(add, tmp_path, small_shards, source, encode, change):
    kill_while_packing(source, tmp_path, 2)
    [scratch] = (tmp_path / "cache" / "pets").iterdir()
    if change == "image":
        (source / "train" / "cat" / "0003.png").write_bytes(encode((255, 255, 255)))
    added = add("pets", source, image_size=SIDE if change == "image" else 2 * SIDE, max_bad_fraction=0.5)
    assert not scratch.exists()
    if change == "image":
        assert added.dataset.splits["train"].images_NHWC[3].min() == 255
    hashes = [hashlib.sha256(image_HWC).hexdigest() for image_HWC in added.dataset.splits["train"].images_NHWC]
    assert len(set(hashes)) == 20
