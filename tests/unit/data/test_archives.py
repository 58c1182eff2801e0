import gzip
import io
import os
import struct
import tarfile
import zipfile
import zlib

import pytest

from model_code.data.sources.archives import Problem, open_archive
from model_code.errors import DataError


def write_zip(path, *infos):
    with zipfile.ZipFile(path, "w") as file:
        for info, content in infos:
            file.writestr(info, content)
    return path


def write_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def test_folder_zip_and_tar_read_alike(tmp_path, write_tree):
    files = {"a/1.txt": b"one", "a/b/2.txt": b"two", "3.txt": b"three"}
    paths = [
        write_tree(files),
        write_zip(tmp_path / "x.zip", *files.items()),
        write_tar(tmp_path / "x.tar.gz", files),
        write_tar(tmp_path / "x.tar", {f"./{name}": content for name, content in files.items()}, "w"),
    ]
    for path in paths:
        with open_archive(path) as archive:
            assert {name: archive.read(name) for name in archive.files} == files
            assert archive.folders == {"a", "a/b"}


def test_hidden_files_are_passed_over_and_hidden_folders_are_listed(tmp_path, write_tree):
    names = ["__MACOSX/a/._1.png", "a/.DS_Store", "a/Thumbs.db", "a/desktop.ini", ".git/x/y", "a/.cat/1.png", "a/1.png"]
    files = dict.fromkeys(names, b"x")
    for path in (
        write_tree(files),
        write_zip(tmp_path / "x.zip", *files.items()),
        write_tar(tmp_path / "x.tar", files),
    ):
        with open_archive(path) as archive:
            assert archive.files == ("a/1.png",)
            assert archive.hidden == {".git", "a/.cat"}


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "a\\..\\evil.png"])
def test_names_that_escape(tmp_path, name):
    for path in (write_zip(tmp_path / "x.zip", (name, b"x")), write_tar(tmp_path / "x.tar", {name: b"x"}, "w")):
        with pytest.raises(DataError, match=r"evil\.png' is outside of the archive; .*remove it"):
            open_archive(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_tar_links_and_devices(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        info = tarfile.TarInfo("a/link.png")
        info.type, info.linkname = kind, "/etc/passwd"
        file.addfile(info)
    with open_archive(tmp_path / "x.tar") as archive:
        assert archive.files == ()
        assert archive.problems == [Problem("link or device in an archive", "x.tar/a/link.png")]


def test_zip_link(tmp_path):
    info = zipfile.ZipInfo("a/link.png")
    info.external_attr = 0o120777 << 16
    with open_archive(write_zip(tmp_path / "x.zip", (info, b"/etc/passwd"))) as archive:
        assert archive.files == ()
        assert archive.problems == [Problem("link or device in an archive", "x.zip/a/link.png")]


def test_a_folder_below_a_link_is_read_once(tmp_path, write_tree):
    source = tmp_path / "all"
    (source / "x").mkdir(parents=True)
    (source / "x/1.png").write_bytes(b"one")
    folder = write_tree({"a/2.png": b"two"})
    (folder / "aa").symlink_to(source / "x")
    (folder / "bb").symlink_to(source)
    archive = open_archive(folder)
    assert archive.files == ("a/2.png", "aa/1.png")
    assert archive.folders == {"a", "aa", "bb"}
    assert [one.name for one in archive.problems] == ["source/bb/x"]


def test_folder_links_are_followed_once(tmp_path, write_tree):
    write_tree({"2.png": b"two"}, "elsewhere")
    folder = write_tree({"a/1.png": b"one"})
    (folder / "a" / "2.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (folder / "a" / "gone.png").symlink_to(tmp_path / "nothing.png")
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(tmp_path / "elsewhere")
    (folder / "early").symlink_to(folder / "a")
    os.mkfifo(folder / "a" / "3.png")
    archive = open_archive(folder)
    assert {name: archive.read(name) for name in archive.files} == {
        "a/1.png": b"one",
        "a/2.png": b"two",
        "again/2.png": b"two",
    }
    assert [(one.kind, one.name) for one in archive.problems] == [
        ("device or pipe", "source/a/3.png"),
        ("link whose target is missing", "source/a/gone.png"),
        ("folder that was read already, under another name", "source/a/loop"),
        ("folder that was read already, under another name", "source/b"),
        ("folder that was read already, under another name", "source/early"),
    ]


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        open_archive(tmp_path / "nothing.zip")
    for name, magic in (
        ("RAR", b"Rar!\x1a\x07\x01\0"),
        ("7z", b"7z\xbc\xaf\x27\x1c"),
        ("Zstandard", b"\x28\xb5\x2f\xfd"),
    ):
        (tmp_path / "x.bin").write_bytes(magic + bytes(500))
        with pytest.raises(DataError, match=f"is a {name} archive, which is not read; extract it and give the folder"):
            open_archive(tmp_path / "x.bin")
    (tmp_path / "x.rar").write_bytes(bytes(500))
    with pytest.raises(DataError, match="neither a folder nor a zip nor a tar"):
        open_archive(tmp_path / "x.rar")
    (tmp_path / "empty.zip").touch()
    with pytest.raises(DataError, match="truncated or damaged"):
        open_archive(tmp_path / "empty.zip")


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.99])
def test_truncated_archives(tmp_path, kept):
    files = {f"a/{number}.bin": os.urandom(700) for number in range(30)}
    write_zip(tmp_path / "x.zip", *files.items())
    write_tar(tmp_path / "x.tar.gz", files)
    for path in (tmp_path / "x.zip", tmp_path / "x.tar.gz"):
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
        with pytest.raises(DataError, match=r"truncated or damaged .*copy or download it again"):
            open_archive(path)


def test_tar_cut_exactly_before_a_header(tmp_path):
    write_tar(tmp_path / "x.tar", {"a/1.bin": bytes(512), "a/2.bin": bytes(512)}, "w")
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes()[:1024])
    with pytest.raises(DataError, match="its end is missing"):
        open_archive(tmp_path / "x.tar")


def test_damage_inside(tmp_path):
    write_zip(tmp_path / "x.zip", ("a/1.bin", b"hello" * 50))
    content = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(content.replace(b"hello", b"jello", 1))
    with open_archive(tmp_path / "x.zip") as archive, pytest.raises(DataError, match=r"a/1\.bin: Bad CRC-32"):
        archive.read("a/1.bin")
    packed = bytearray(gzip.compress(b"".join(os.urandom(512) for _ in range(50))))
    packed[5000] ^= 255
    (tmp_path / "y.tar.gz").write_bytes(packed)
    with pytest.raises(DataError, match="truncated or damaged"):
        open_archive(tmp_path / "y.tar.gz")


def test_encrypted_zip_and_a_name_that_is_there_twice(tmp_path):
    write_zip(tmp_path / "x.zip", ("a/1.bin", b"hello"))
    content = bytearray((tmp_path / "x.zip").read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"'a/1\.bin' is encrypted, which is not read; extract the archive"):
        open_archive(tmp_path / "x.zip")
    write_tar(tmp_path / "y.tar", {"a/1.bin": b"1", "./a/1.bin": b"2"}, "w")
    with pytest.raises(DataError, match=r"'a/1\.bin' is there twice"):
        open_archive(tmp_path / "y.tar")


@pytest.mark.parametrize(
    ("method", "name"), [(9, "Deflate64"), (93, "Zstandard"), (98, "PPMd"), (99, "AES encryption")]
)
def test_zip_methods_that_are_not_read_are_named(tmp_path, method, name):
    content = bytearray(write_zip(tmp_path / "x.zip", ("a/1.bin", b"hello")).read_bytes())
    content[8] = content[content.index(b"PK\x01\x02") + 10] = method
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(
        DataError, match=rf"compressed with {name} \({method}\), which is not read; extract the archive"
    ):
        open_archive(tmp_path / "x.zip")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [("Käse".encode(), "Käse"), ("チーズ".encode(), "チーズ"), (b"plain", "plain")],
)
def test_zip_names_without_the_flag_of_utf8(tmp_path, raw, expected):
    stand_in = "x" * len(raw)
    content = write_zip(tmp_path / "x.zip", (f"{stand_in}/1.png", b"hello")).read_bytes()
    (tmp_path / "x.zip").write_bytes(content.replace(stand_in.encode(), raw))
    with open_archive(tmp_path / "x.zip") as archive:
        assert archive.files == (f"{expected}/1.png",)
        assert archive.read(f"{expected}/1.png") == b"hello"


@pytest.mark.parametrize(
    "raw",
    [
        "Käse".encode("latin1"),
        "Käse".encode("cp437"),
        "stół".encode("cp852"),
        "Škoda".encode("cp1252"),
        "café".encode("mac-roman"),
        "сыр".encode("cp866"),
        "ПАПКА".encode("cp866"),
        "チーズ".encode("shift-jis"),
        "テスト".encode("shift-jis"),
        "奶酪".encode("gbk"),
    ],
)
def test_zip_names_whose_encoding_is_not_stated_are_problems(tmp_path, raw):
    stand_in = "x" * len(raw)
    content = write_zip(tmp_path / "x.zip", (f"{stand_in}/1.png", b"hello"), ("b/1.png", b"")).read_bytes()
    (tmp_path / "x.zip").write_bytes(content.replace(stand_in.encode(), raw))
    with open_archive(tmp_path / "x.zip") as archive:
        assert archive.files == ("b/1.png",)
        [problem] = archive.problems
    assert problem.kind.startswith("name in an encoding that the archive does not state")
    assert problem.name == f"x.zip/{raw.decode('ascii', errors='backslashreplace')}/1.png"


def test_a_file_of_a_zip_keeps_a_name_of_unknown_bytes(tmp_path):
    content = write_zip(tmp_path / "x.zip", ("cat/xxxx.png", b"hello")).read_bytes()
    (tmp_path / "x.zip").write_bytes(content.replace(b"xxxx", "Käse".encode("cp437")))
    with open_archive(tmp_path / "x.zip") as archive:
        assert archive.files == ("cat/K\udc84se.png",)
        assert archive.read("cat/K\udc84se.png") == b"hello"


@pytest.mark.parametrize("is_for_these_bytes", [True, False])
def test_the_unicode_path_beside_a_zip_name(tmp_path, is_for_these_bytes):
    raw, text = "сыр/1.png".encode("cp866"), "сыр/1.png".encode()
    checksum = zlib.crc32(raw if is_for_these_bytes else b"renamed")
    info = zipfile.ZipInfo("x" * len(raw))
    info.extra = struct.pack("<HH4x", 0x5455, 4) + struct.pack("<HHBI", 0x7075, 5 + len(text), 1, checksum) + text
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, b"hello")
    content = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(content.replace(b"x" * len(raw), raw))
    with open_archive(tmp_path / "x.zip") as archive:
        assert archive.files == (("сыр/1.png",) if is_for_these_bytes else ())
        assert len(archive.problems) == (not is_for_these_bytes)
        if is_for_these_bytes:
            assert archive.read("сыр/1.png") == b"hello"
