import hashlib
import json
import re
import shutil

import numpy as np
import pytest

from serving.bundle.store import (
    MANIFEST_FILE,
    MODEL_FILE,
    hash_file,
    list_released,
    read_bundle,
    read_champion,
    read_golden,
    read_pointer,
    write_bundle,
)
from serving.errors import BundleError
from tests.unit.serving.tiny_bundle import COLOURS, make_bundle, make_two_variants, point_at, release


def test_what_was_written_is_read(tmp_path):
    folder = make_bundle(tmp_path, "cifar10")
    manifest = read_bundle(folder)
    assert folder == tmp_path / "cifar10" / f"{manifest.fp32.sha256[:16]}-{manifest.run_id[:8]}"
    assert manifest.classes == tuple(COLOURS)
    assert sorted(file.name for file in folder.iterdir()) == [MANIFEST_FILE, MODEL_FILE]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_writing_the_same_bundle_again_repairs_it(tmp_path):
    folder = make_bundle(tmp_path)
    (folder / MODEL_FILE).write_bytes(b"damaged")
    assert make_bundle(tmp_path) == folder
    assert read_bundle(folder).name == "cifar10"


def test_a_model_that_is_not_the_manifests_is_refused(tmp_path):
    other = make_bundle(tmp_path)
    (other / MODEL_FILE).write_bytes(b"something else")
    with pytest.raises(BundleError, match="was changed after its release"):
        write_bundle(tmp_path / "new", other)
    assert not (tmp_path / "new").exists()


def test_each_piece_of_a_large_file_is_progress(tmp_path):
    (tmp_path / "large").write_bytes(bytes(2_500_000))
    pieces = []
    assert hash_file(tmp_path / "large", lambda: pieces.append(1)) == hashlib.sha256(bytes(2_500_000)).hexdigest()
    assert len(pieces) == 3
    pieces.clear()
    read_bundle(make_two_variants(tmp_path), on_progress=lambda: pieces.append(1))
    assert len(pieces) == 3, "two models and the golden images"


@pytest.mark.parametrize("name", [MODEL_FILE, MANIFEST_FILE])
def test_a_missing_file_is_named(tmp_path, name):
    folder = make_bundle(tmp_path)
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        read_bundle(folder)


def test_a_changed_model_is_refused(tmp_path):
    folder = make_bundle(tmp_path)
    with (folder / MODEL_FILE).open("r+b") as file:
        file.write(b"\xff")
    with pytest.raises(BundleError, match="was changed after its release"):
        read_bundle(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "cifar10"}'])
def test_a_damaged_manifest_is_refused(tmp_path, text):
    folder = make_bundle(tmp_path)
    (folder / MANIFEST_FILE).write_text(text)
    with pytest.raises(BundleError, match="is not a manifest"):
        read_bundle(folder)


def test_a_pointer_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    folder = release(tmp_path, version="1")
    first = read_pointer(tmp_path, "cifar10")

    def write_half(content, stream):
        stream.write('{"version": ')
        stream.flush()
        raise OSError("the disk is full")

    monkeypatch.setattr(json, "dump", write_half)
    with pytest.raises(OSError, match="the disk is full"):
        point_at(tmp_path, "cifar10", "2", folder)
    assert read_pointer(tmp_path, "cifar10") == first
    assert sorted(file.name for file in (tmp_path / "cifar10").iterdir()) == sorted([folder.name, "champion.json"])


def test_a_bundle_that_is_written_in_part_is_not_there(tmp_path, monkeypatch):
    source = make_two_variants(tmp_path / "source")
    copies, copy = [], shutil.copyfile

    def copy_some(*given):
        copies.append(given)
        if len(copies) == 3:
            raise OSError("the disk is full")
        return copy(*given)

    monkeypatch.setattr(shutil, "copyfile", copy_some)
    with pytest.raises(OSError, match="the disk is full"):
        write_bundle(tmp_path / "target", source)
    assert list((tmp_path / "target" / "cifar10").iterdir()) == []


def test_the_pointer_moves_and_leaves_nothing_behind(tmp_path):
    folder = release(tmp_path, version="1")
    first = read_pointer(tmp_path, "cifar10")
    point_at(tmp_path, "cifar10", "2", folder)
    second = read_pointer(tmp_path, "cifar10")
    assert (first.version, second.version) == ("1", "2")
    assert second.model_copy(update={"version": "1", "change": first.change}) == first
    assert sorted(file.name for file in (tmp_path / "cifar10").iterdir()) == sorted([folder.name, "champion.json"])


def test_names_with_a_pointer_are_listed(tmp_path):
    assert list_released(tmp_path / "nothing") == []
    release(tmp_path, "food")
    release(tmp_path, "cifar10")
    make_bundle(tmp_path, "unreleased")
    assert list_released(tmp_path) == ["cifar10", "food"]


def test_a_missing_pointer_says_what_to_run(tmp_path):
    with pytest.raises(BundleError, match="darkroom release RECIPE --as food"):
        read_pointer(tmp_path, "food")


@pytest.mark.parametrize("bundle", ["../food/abc", "/etc", "", "..", "a/b"])
def test_a_pointer_out_of_its_folder_is_refused(tmp_path, bundle):
    release(tmp_path)
    file = tmp_path / "cifar10" / "champion.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bundle": bundle}))
    with pytest.raises(BundleError, match="is damaged"):
        read_pointer(tmp_path, "cifar10")


def test_a_bundle_whose_manifest_is_known_is_never_touched(tmp_path):
    folder = make_bundle(tmp_path)
    known = {hash_file(folder / MANIFEST_FILE)}
    before = {file.name: file.stat().st_ino for file in folder.iterdir()}
    later = {"created": "2030-01-01T00:00:00+00:00", "versions": {"torch": "9"}}
    assert make_bundle(tmp_path, manifest=later, trusted=known) == folder
    assert {file.name: file.stat().st_ino for file in folder.iterdir()} == before


def test_a_manifest_that_was_changed_where_it_lies_is_replaced(tmp_path):
    """Its files fit it, but it says something else: the classes in another order."""
    folder = make_bundle(tmp_path)
    known, kept = {hash_file(folder / MANIFEST_FILE)}, (folder / MANIFEST_FILE).read_text()
    swapped = kept.replace('"red"', '"x"').replace('"green"', '"red"').replace('"x"', '"green"')
    (folder / MANIFEST_FILE).write_text(swapped)
    assert read_bundle(folder).classes[:2] == ("green", "red")
    assert make_bundle(tmp_path, trusted=known) == folder
    assert read_bundle(folder).classes[:2] == ("red", "green")


@pytest.mark.parametrize("name", ["../escaped", "a/b", ""])
def test_a_name_that_leaves_its_folder_is_refused(tmp_path, name):
    folder = make_bundle(tmp_path)
    text = (folder / MANIFEST_FILE).read_text()
    (folder / MANIFEST_FILE).write_text(text.replace('"name": "cifar10"', f'"name": "{name}"'))
    with pytest.raises(BundleError, match="name String should match pattern"):
        write_bundle(tmp_path / "new", folder)


def test_golden_images_must_cover_what_is_offered(tmp_path):
    folder = make_two_variants(tmp_path)
    manifest = read_bundle(folder)
    with np.load(folder / "golden.npz") as golden:
        np.savez(folder / "golden.npz", **{name: golden[name] for name in ("images_NHWC", "fp32")})
    with pytest.raises(BundleError, match=r"golden\.npz lacks int8"):
        read_golden(folder, manifest)
    (folder / "golden.npz").write_bytes(b"no archive")
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read"):
        read_golden(folder, manifest)
    assert read_golden(folder, manifest.model_copy(update={"golden_sha256": None})) == {}


def test_the_same_model_of_another_run_has_its_own_folder(tmp_path):
    first = make_bundle(tmp_path)
    second = make_bundle(tmp_path, manifest={"run_id": "f" * 32})
    assert first != second
    assert read_bundle(first).run_id != read_bundle(second).run_id


def test_a_manifest_that_is_not_the_registered_one_is_refused(tmp_path):
    folder = release(tmp_path)
    manifest_file = folder / MANIFEST_FILE
    manifest_file.write_text(manifest_file.read_text().replace("mean_colour", "mean_color"))
    assert read_bundle(folder).recipe == "mean_color"
    with pytest.raises(BundleError, match=r"manifest\.json was changed after its release: .* registered"):
        read_champion(tmp_path, "cifar10")


def test_every_file_is_checked(tmp_path):
    folder = make_two_variants(tmp_path)
    assert sorted(file.name for file in folder.iterdir()) == [
        "golden.npz",
        MANIFEST_FILE,
        "model.int8.onnx",
        MODEL_FILE,
    ]
    assert folder.name.endswith("-int8")
    for file in folder.iterdir():
        kept = file.read_bytes()
        damaged = bytearray(kept)
        damaged[len(damaged) // 2] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(BundleError, match=re.escape(file.name)):
            read_bundle(folder, hashlib.sha256(kept).hexdigest() if file.name == MANIFEST_FILE else None)
        file.write_bytes(kept)
    assert read_golden(folder, read_bundle(folder))["images_NHWC"].dtype == "uint8"


def test_a_bundle_of_the_first_format_says_what_to_do(tmp_path):
    folder = make_bundle(tmp_path)
    (folder / MANIFEST_FILE).write_text('{"format": 1, "name": "cifar10"}')
    with pytest.raises(BundleError, match=r"not a manifest of this version: format .* release the model again"):
        read_bundle(folder)
