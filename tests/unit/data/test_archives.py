import gzip
import io
import os
import tarfile
import zipfile

import pytest

from model_code.data.sources.archives import open_archive
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


def test_hidden_files_are_passed_over(tmp_path):
    names = ["__MACOSX/a/._1.png", "a/.DS_Store", "a/Thumbs.db", "a/desktop.ini", ".git/x", "a/1.png"]
    with open_archive(write_zip(tmp_path / "x.zip", *((name, b"x") for name in names))) as archive:
        assert archive.files == ("a/1.png",)


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
    with pytest.raises(DataError, match=r"'a/link\.png' is a link or device"):
        open_archive(tmp_path / "x.tar")


def test_zip_link(tmp_path):
    info = zipfile.ZipInfo("a/link.png")
    info.external_attr = 0o120777 << 16
    with pytest.raises(DataError, match=r"'a/link\.png' is a link or device"):
        open_archive(write_zip(tmp_path / "x.zip", (info, b"/etc/passwd")))


def test_folder_link_and_pipe(write_tree):
    folder = write_tree({"a/1.png": b"x"})
    (folder / "a" / "2.png").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match=r"'a/2\.png' is a link, device or pipe"):
        open_archive(folder)
    (folder / "a" / "2.png").unlink()
    os.mkfifo(folder / "a" / "3.png")
    with pytest.raises(DataError, match=r"'a/3\.png' is a link, device or pipe"):
        open_archive(folder)


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        open_archive(tmp_path / "nothing.zip")
    (tmp_path / "x.rar").write_bytes(b"Rar!" + bytes(500))
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
    with open_archive(tmp_path / "x.zip") as archive, pytest.raises(DataError, match="encrypted"):
        archive.read("a/1.bin")
    write_tar(tmp_path / "y.tar", {"a/1.bin": b"1", "./a/1.bin": b"2"}, "w")
    with pytest.raises(DataError, match=r"'a/1\.bin' is there twice"):
        open_archive(tmp_path / "y.tar")
