import json
import os
import shutil

import pytest

from model_code.errors import ChecksumError, DataError, UsageError
from model_code.tracking.pack import Pack, find_packs, parse_size, unpack, write_pack

RUN, OTHER = "a" * 32, "b" * 32
PART = 4096


def describe(run_id=RUN):
    return Pack(run_id=run_id, config_sha256="c" * 64, data_checksum="d" * 64, sources_sha256=None, weights="best")


def write(tmp_path, run_id=RUN, part_bytes=PART, size=10_000):
    """Pack two files and an empty one; the folder of the pack and the files come back."""
    source, out = tmp_path / f"source-{run_id[:1]}", tmp_path / "out"
    source.mkdir(exist_ok=True)
    names = ("run.json", "artifacts/reports/test.json", "best-0001.safetensors")
    files = {name: source / name.rpartition("/")[2] for name in names}
    for (name, file), content in zip(files.items(), (b"{}", b"", os.urandom(size)), strict=True):
        assert name
        file.write_bytes(content)
    return out, files, write_pack(describe(run_id), files, out, part_bytes)


def read(out, folder, *more):
    folder.mkdir(exist_ok=True)
    packs, problems, parts = find_packs([out, *more])
    assert problems == []
    for pack in packs:
        unpack(pack, parts, folder)


@pytest.mark.parametrize("size", [0, 1, PART - 2, PART - 1, 2 * PART - 2, 3 * PART + 5])
def test_what_is_unpacked_is_what_was_packed(tmp_path, size):
    out, files, pack = write(tmp_path, size=size)
    assert len(pack.parts) == max(1, -(-(size + 2) // PART))
    assert all(part.size_bytes == PART for part in pack.parts[:-1])
    read(out, tmp_path / "in")
    for name, file in files.items():
        assert (tmp_path / "in" / name).read_bytes() == file.read_bytes()


def test_a_pack_that_is_written_again_leaves_no_other_parts(tmp_path):
    out, _, _ = write(tmp_path)
    whole, _, _ = find_packs([out])
    write(tmp_path, part_bytes=2 * PART)
    assert len(list(out.glob("*.part"))) == 2
    again, _, _ = find_packs([out])
    assert len(again[0].parts) < len(whole[0].parts)
    read(out, tmp_path / "in")


def test_a_pack_is_known_by_its_manifest_and_its_parts_may_be_anywhere(tmp_path):
    out, _, pack = write(tmp_path)
    read(out / f"{RUN}.pack.json", tmp_path / "in")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (out / pack.parts[1].name).rename(elsewhere / pack.parts[1].name)
    read(out, tmp_path / "in", elsewhere)


def test_missing_parts_are_named(tmp_path):
    out, _, pack = write(tmp_path)
    (out / pack.parts[1].name).unlink()
    packs, _, parts = find_packs([out])
    with pytest.raises(DataError, match=f"1 of 3 parts is missing .*{pack.parts[1].name}"):
        unpack(packs[0], parts, tmp_path)


@pytest.mark.parametrize("place", [0, 5000, 9999])
def test_a_flipped_bit_is_found(tmp_path, place):
    out, _, pack = write(tmp_path)
    file = out / pack.parts[place // PART].name
    content = bytearray(file.read_bytes())
    content[place % PART] ^= 1
    file.write_bytes(content)
    packs, _, parts = find_packs([out])
    with pytest.raises(ChecksumError, match=f"{file.name} is damaged or of another pack; bring it again"):
        unpack(packs[0], parts, tmp_path)


def test_a_part_that_was_cut_is_found(tmp_path):
    out, _, pack = write(tmp_path)
    os.truncate(out / pack.parts[0].name, 100)
    packs, _, parts = find_packs([out])
    with pytest.raises(ChecksumError, match=r"damaged or of another pack \(100 bytes, not 4096\)"):
        unpack(packs[0], parts, tmp_path)


@pytest.mark.parametrize("is_good_first", [True, False])
def test_of_two_copies_of_a_part_the_right_one_is_taken(tmp_path, is_good_first):
    out, _, pack = write(tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    shutil.copyfile(out / pack.parts[0].name, again / pack.parts[0].name)
    os.truncate(out / pack.parts[0].name, 100)
    packs, _, parts = find_packs([again, out] if is_good_first else [out, again])
    unpack(packs[0], parts, tmp_path / "in")
    assert sorted(one.name for one in pack.files) == sorted(
        file.relative_to(tmp_path / "in").as_posix() for file in (tmp_path / "in").rglob("*") if file.is_file()
    )


def test_a_part_of_another_run_is_found(tmp_path):
    out, _, pack = write(tmp_path)
    _, _, other = write(tmp_path, run_id=OTHER)
    shutil.copyfile(out / other.parts[1].name, out / pack.parts[1].name)
    packs, _, parts = find_packs([out])
    by_run = {one.run_id: one for one in packs}
    with pytest.raises(ChecksumError, match=r"run a+: .* of another pack"):
        unpack(by_run[RUN], parts, tmp_path / "in")
    unpack(by_run[OTHER], parts, tmp_path / "other")


def test_a_manifest_that_was_changed_is_named_and_spoils_no_other_pack(tmp_path):
    out, _, _ = write(tmp_path)
    write(tmp_path, run_id=OTHER)
    manifest = out / f"{RUN}.pack.json"
    manifest.write_text(manifest.read_text().replace("d" * 64, "e" * 64))
    packs, [problem], _ = find_packs([out])
    assert [pack.run_id for pack in packs] == [OTHER]
    assert problem.startswith(f"{manifest} is damaged or of another version")


def test_parts_without_a_manifest_are_named(tmp_path):
    out, _, _ = write(tmp_path)
    (out / f"{RUN}.pack.json").unlink()
    packs, [problem], _ = find_packs([out])
    assert packs == []
    assert problem.startswith(f"the parts of run {RUN} came without {RUN}.pack.json")


def test_a_pack_is_complete_only_when_its_manifest_is_there(tmp_path, monkeypatch):
    out, files, _ = write(tmp_path)
    monkeypatch.setattr(Pack, "seal", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_pack(describe(), files, out, PART)
    assert not list(out.glob("*.json"))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../run.json", "artifacts/../../x", "artifacts/.x", "state.pt", "a/b.safetensors", "x.py"]
)
def test_a_pack_writes_only_what_a_run_folder_holds(tmp_path, name):
    out, _, _ = write(tmp_path)
    sealed = json.loads((out / f"{RUN}.pack.json").read_text())
    sealed["pack"]["files"][0]["name"] = name
    pack = Pack.model_construct(**sealed["pack"])
    (out / f"{RUN}.pack.json").write_bytes(pack.seal())
    packs, [problem], _ = find_packs([out])
    assert packs == []
    assert "damaged or of another version" in problem


def test_a_place_without_a_pack_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"^no pack in "):
        find_packs([tmp_path])
    with pytest.raises(UsageError, match=r"^no such file or folder: "):
        find_packs([tmp_path / "nothing"])


@pytest.mark.parametrize(
    ("text", "size"),
    [("15MiB", 15 * 2**20), ("60MB", 60_000_000), ("4096", 4096), ("1.5 MiB", 3 * 2**19), ("2GiB", 2**31)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "15 miles", "-1MB", "1B", "3GiB", "1e9", "15mib"])
def test_sizes_that_no_part_has(text):
    with pytest.raises(UsageError, match=r"^--part-size "):
        parse_size(text)
