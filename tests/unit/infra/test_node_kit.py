import subprocess
import sys
from pathlib import Path

import pytest

from model_code.data.add import add_dataset
from model_code.data.cache import open_dataset

SCRIPT = Path(__file__).parents[3] / "infra/node_kit.py"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    add_dataset("shapes", cache_dir=home / "cache", data_dir=home / "data", image_size=16, progress=False)
    return home


def run(home, *arguments):
    return subprocess.run(
        [sys.executable, "-P", SCRIPT, *map(str, arguments)],
        env={"DARKROOM_HOME": str(home)},
        check=False,
        capture_output=True,
        text=True,
    )


def make_wheels(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(name.encode() * 1000)
    return folder


def test_the_parts_are_put_together_with_the_tools_of_any_machine(home, tmp_path):
    wheels = make_wheels(tmp_path / "kit", "darkroom-0.1.0-py3-none-any.whl", "torch-9-cp311.whl")
    done = run(home, wheels, "--data", "shapes", "--out", tmp_path / "parts", "--part-bytes", 1_000_000)
    assert done.returncode == 0, done.stderr
    parts = sorted((tmp_path / "parts").glob("kit.tar.*"))
    assert f"{len(parts)} parts and SHA256SUMS" in done.stdout
    assert len(parts) > 2
    assert all(part.stat().st_size <= 1_000_000 for part in parts)
    assert "home/cache/shapes/manifest.json" in done.stdout
    there = tmp_path / "there"
    there.mkdir()
    command = "(cd ../parts && sha256sum --check --quiet SHA256SUMS) && cat ../parts/kit.tar.* | tar x"
    subprocess.run(command, shell=True, cwd=there, check=True)
    assert (there / "kit/torch-9-cp311.whl").read_bytes() == (wheels / "torch-9-cp311.whl").read_bytes()
    brought, packed = (open_dataset("shapes", folder / "cache") for folder in (there / "home", home))
    assert brought.checksum == packed.checksum
    assert (brought.splits["test"].images_NHWC == packed.splits["test"].images_NHWC).all()


@pytest.mark.parametrize(
    ("wheel", "data", "message"),
    [("torch-9.whl", "shapes", "no darkroom-*.whl in"), ("darkroom-1.whl", "nothing", "data set 'nothing' is not in")],
)
def test_what_is_missing_is_one_line(home, tmp_path, wheel, data, message):
    done = run(home, make_wheels(tmp_path / "kit", wheel), "--data", data)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_parts_of_two_kits_are_not_mixed(home, tmp_path):
    wheels = make_wheels(tmp_path / "kit", "darkroom-1.whl")
    assert run(home, wheels, "--out", tmp_path / "parts").returncode == 0
    again = run(home, wheels, "--out", tmp_path / "parts")
    assert (again.returncode, "name an empty folder" in again.stderr) == (1, True)
