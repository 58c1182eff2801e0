"""What the command says to bad input, and how fast it answers."""

import io
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.integration.conftest import COMMAND

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def encode_image(colour=(200, 30, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_classes(folder: Path, classes=CIFAR10, count=3) -> Path:
    for name in classes:
        (folder / "train" / name).mkdir(parents=True)
        for number in range(count):
            (folder / "train" / name / f"{number}.png").write_bytes(encode_image((number, 0, 0)))
    return folder


def make_missing(folder):
    return folder / "nowhere.zip"


def make_wrong_checksum(folder):
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"what"))
    return path


def make_truncated_zip(folder):
    whole = folder / "whole.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        for name in CIFAR10:
            archive.writestr(f"train/{name}/0.png", encode_image())
    path = folder / "cut.zip"
    path.write_bytes(whole.read_bytes()[:-200])
    return path


def make_truncated_tar(folder):
    whole = folder / "whole.tar.gz"
    with tarfile.open(whole, "w:gz") as archive:
        archive.add(write_classes(folder / "pictures"), "pictures")
    path = folder / "cut.tar.gz"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return path


def make_escaping_zip(folder):
    path = folder / "escape.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train/cat/0.png", encode_image())
        archive.writestr("../../train/cat/1.png", encode_image())
    return path


def make_linking_tar(folder):
    path = folder / "link.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("train/cat/0.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    return path


def make_undecodable(folder):
    write_classes(folder / "pictures", count=5)
    (folder / "pictures" / "train" / "cat" / "0.png").write_bytes(b"not an image")
    return folder / "pictures"


def make_kaggle(folder, ids, labelled):
    (folder / "trainImages").mkdir(parents=True)
    for number in ids:
        (folder / "trainImages" / f"{number}.png").write_bytes(encode_image())
    lines = [f"{number},{CIFAR10[index % 10]}" for index, number in enumerate(labelled)]
    (folder / "trainLabels.csv").write_text("\n".join(["id,label", *lines]))
    return folder


def make_label_without_image(folder):
    return make_kaggle(folder / "kaggle", range(1, 11), range(1, 12))


def make_image_without_label(folder):
    return make_kaggle(folder / "kaggle", range(1, 12), range(1, 11))


def make_nine_classes(folder):
    return write_classes(folder / "pictures", CIFAR10[:9])


def make_no_images(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


def make_no_archive(folder):
    (folder / "notes.zip").write_text("these are my notes")
    return folder / "notes.zip"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_missing, ("nowhere.zip",)),
        (make_wrong_checksum, ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")),
        (make_truncated_zip, ("cut.zip",)),
        (make_truncated_tar, ("cut.tar.gz",)),
        (make_escaping_zip, ("../../train/cat/1.png",)),
        (make_linking_tar, ("train/cat/0.png", "link")),
        (make_undecodable, ("train/cat/0.png", "1 of 50")),
        (make_label_without_image, ("11", "label")),
        (make_image_without_label, ("11", "label")),
        (make_nine_classes, ("9 classes", "truck")),
        (make_no_images, ("no images",)),
        (make_no_archive, ("notes.zip",)),
    ],
)
def test_broken_images_are_one_line_and_lose_nothing(darkroom, home, tmp_path, make, words):
    good = tmp_path / "good.zip"
    with zipfile.ZipFile(good, "w") as archive:
        for name in CIFAR10:
            archive.writestr(f"train/{name}/0.png", encode_image())
    assert darkroom("data", "add", "cifar10", "--from", good).status == 0
    before = sorted((home / "cache" / "cifar10").rglob("*.npy"))
    assert before
    done = darkroom("data", "add", "cifar10", "--from", make(tmp_path))
    assert done.status == 1
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("darkroom: ")
    for word in words:
        assert word in lines[0]
    assert sorted((home / "cache" / "cifar10").rglob("*.npy")) == before
    assert "10 train" in darkroom("data", "list").out


def test_full_disk_is_one_line_and_the_old_set_stays(start_darkroom, mount_disk, tmp_path):
    # Room for the databases and for a set of 30 images, not for one of 4,000.
    disk = mount_disk("9m")
    small = start_darkroom("data", "add", "cifar10", "--from", write_classes(tmp_path / "few"), DARKROOM_HOME=str(disk))
    assert "30 train images" in small.communicate()[0]
    large = start_darkroom("data", "add", "shapes", DARKROOM_HOME=str(disk))
    out = large.communicate()[0]
    assert large.returncode == 1
    (line,) = [line for line in out.splitlines() if line.startswith("darkroom: ")]
    assert "full" in line
    listing = start_darkroom("data", "list", DARKROOM_HOME=str(disk)).communicate()[0]
    assert "30 train" in listing
    assert "shapes" not in listing


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (
            ("train", "resnet18_cifar10_exp66"),
            2,
            ("resnet18_cifar10_exp66", "resnet18_cifar10_exp6", "darkroom recipes"),
        ),
        (("train", "resnet18_cifar10_exp", "--set", "learning_rat=1"), 2, ("learning_rat", "learning_rate")),
        (
            ("train", "resnet18_cifar10_exp", "--set", "learning_rate=-1"),
            2,
            ("learning_rate=-1", "must be more than 0"),
        ),
        (("train", "resnet18_cifar10_exp", "--set", "profile=full"), 2, ("profile",)),
        (("train", "resnet18_cifar10_exp", "--epochs", "0"), 2, ("epochs=0",)),
        (("train", "resnet18_cifar10_exp", "--set", "epochs"), 2, ("key=value",)),
        (("train", "resnet18_cifar10_exp", "--set", "dataset=never-added"), 1, ("never-added", "darkroom data add")),
        (("train", "resnet18_cifar10_exp", "--set", "dataset=../up"), 2, ("../up",)),
        (("train-all", "--only", "vgg*"), 2, ("vgg*", "darkroom recipes")),
        (("release", "resnet18_cifar10_exp5", "--as", "cifar10"), 1, ("finished run", "darkroom train")),
        (("release", "resnet18_cifar10_exp", "--as", "My Dogs"), 2, ("My Dogs", "a-z")),
        (("release", "nonsense", "--as", "cifar10"), 2, ("nonsense", "no recipe")),
        (("release", "0" * 32, "--as", "cifar10"), 1, ("0" * 32, "no run")),
        (("data", "add", "Weird Name"), 2, ("Weird Name",)),
        (("data", "add", "cifar10"), 2, ("--from", "--download")),
        (("data", "add", "flowers", "--download"), 2, ("flowers",)),
        (("predict", "x.png", "--server", "http://127.0.0.1:9"), 1, ("x.png",)),
        (("predict", "x.png", "--server", "localhost"), 1, ("localhost",)),
    ],
)
def test_a_wrong_command_is_one_line(darkroom, arguments, status, words):
    done = darkroom(*arguments)
    assert done.status == status
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, done.err
    for word in words:
        assert word in lines[0]


def test_an_unknown_option_is_wrong_usage(darkroom):
    assert darkroom("train", "--faster").status == 2


def test_two_first_commands_at_once_in_a_folder_with_packages_of_our_names(start_darkroom, tmp_path, monkeypatch):
    for name in ("flows", "serving", "model_code"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    both = [start_darkroom("data", "add", "shapes", DARKROOM_HOME=str(tmp_path / "home")) for _ in range(2)]
    outs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    assert sum("is there already" in out for out in outs) == 1


@pytest.mark.parametrize("kind", ["file", "full"])
def test_a_home_that_cannot_be_used_is_one_line(start_darkroom, mount_disk, tmp_path, kind):
    if kind == "full":
        home = mount_disk("1m")
    else:
        home = tmp_path / "home"
        home.touch()
    process = start_darkroom("data", "add", "shapes", DARKROOM_HOME=str(home))
    *_, line = process.communicate()[0].strip().splitlines()
    assert process.returncode == {"file": 2, "full": 1}[kind]
    assert line.startswith("darkroom: ")
    assert "DARKROOM_HOME" in line


def test_names_with_brackets_are_printed_as_they_are(darkroom, home, tmp_path):
    for label in ("a", "b"):
        folder = tmp_path / "pets[v2]" / label
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(encode_image())
    assert darkroom("data", "add", "brackets", "--from", tmp_path / "pets[v2]").status == 0
    listed = darkroom("data", "list")
    assert listed.status == 0, listed.err
    assert "[v2]" in "".join(line.strip() for line in listed.out.splitlines())


def test_help_answers_at_once():
    def measure(command):
        start_s = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return time.perf_counter() - start_s, done.stdout

    # In turns, the least of each: other work on the machine only adds to it.
    pairs = [
        (measure([COMMAND, "--help"]), measure([sys.executable, "-c", "import click, pydantic.fields"]))
        for _ in range(7)
    ]
    assert "train-all" in pairs[0][0][1]
    assert min(ours for (ours, _), _ in pairs) <= 3 * min(libraries for _, (libraries, _) in pairs)


def test_recipes_lists_every_published_figure(darkroom):
    out = darkroom("recipes").out
    rows = [line.split() for line in out.splitlines() if line.strip().startswith("resnet18_cifar10_")]
    published = {name: figure for name, figure, *_ in rows}
    assert len(published) == 16
    assert published["resnet18_cifar10_exp6"] == "0.9230"
    assert published["resnet18_cifar10_exp6_nopool"] == "-"
    assert "learning_rate=0.01" in darkroom("recipes", "resnet18_cifar10_exp6").out


def test_doctor_finds_what_is_installed(darkroom):
    done = darkroom("doctor")
    assert done.status == 0, done.out
    assert "torch" in done.out
    assert "training device" in done.out


def test_ui_prints_the_address_alone_and_ctrl_c_ends_it(start_darkroom, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = start_darkroom("ui", "--port", port, DARKROOM_HOME=str(tmp_path))
    assert process.stdout.readline() == "ui: loading MLflow\n"
    announced = next(line for line in process.stdout if "s so far" not in line)
    assert announced.startswith(f"MLflow on {tmp_path} at http://127.0.0.1:{port}/#/experiments/"), announced
    address = f"http://127.0.0.1:{port}"
    view = re.search(r"#\S+", announced).group()
    assert f'location.hash || "{view}"' in httpx.get(address).text
    assert "<title>MLflow</title>" in httpx.get(f"{address}/?page").text
    found = httpx.post(f"{address}/api/2.0/mlflow/experiments/search", json={"max_results": 9}).json()
    assert "darkroom" in [one["name"] for one in found["experiments"]]
    assert httpx.get(f"{address}/?page", headers={"Host": "elsewhere.example"}).status_code == 403
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 0
    assert process.stdout.read().strip() == "stopped"
