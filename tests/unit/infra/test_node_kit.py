import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from model_code.data.add import add_dataset
from model_code.data.cache import open_dataset

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "infra/node_kit.py"


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


@pytest.mark.slow
def test_the_proof_starts_from_what_the_kit_brings(home, tmp_path):
    wheels = make_wheels(tmp_path / "kit", "darkroom-1.whl")
    done = run(home, wheels, "--proof", "--out", tmp_path / "parts")
    assert done.returncode == 0, done.stderr
    subprocess.run("cat parts/kit.tar.* | tar x --one-top-level=there", shell=True, cwd=tmp_path, check=True)
    installed = tmp_path / "installed"  # what the wheel brings
    installed.mkdir()
    for package in ("flows", "model_code", "serving"):
        (installed / package).symlink_to(ROOT / package)

    def start(*arguments):
        # Without `site`, which would find the checkout.
        return subprocess.run(
            [sys.executable, "-S", "-m", *arguments],
            env={"PYTHONPATH": f"{installed}:{sysconfig.get_path('purelib')}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            cwd=tmp_path / "there" / "proof",
            check=False,
            capture_output=True,
            text=True,
        )

    shown = start("benchmarks.gpu", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "--dry-run" in shown.stdout
    collected = start("pytest", "--collect-only", "-q", "-c", "/dev/null", "--rootdir", ".", "tests/gpu")
    assert collected.returncode == 0, collected.stdout
    assert "test_engine_on_cuda.py::test_a_recorded_step" in collected.stdout
    assert "test_serving_on_cuda.py::test_graphs_answer" in collected.stdout


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


def test_packages_without_a_wheel_are_named(home, tmp_path):
    wheels = make_wheels(tmp_path / "kit", "darkroom-1.whl", "torch-2.15.0-cp311.whl", "Pillow-12-cp311.whl")
    done = run(home, wheels)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("no wheel of ")]
    assert "torchvision" in line
    assert "numpy" in line
    assert not {"torch", "pillow"} & set(line.replace(":", ",").split(", "))


@pytest.mark.parametrize("size", [0, -5, 1000])
def test_a_part_size_that_is_too_small_is_refused(home, tmp_path, size):
    wheels = make_wheels(tmp_path / "kit", "darkroom-1.whl")
    done = run(home, wheels, "--out", tmp_path / "parts", "--part-bytes", size)
    assert (done.returncode, done.stderr) == (1, f"node_kit: --part-bytes {size}: at least 1000000 are allowed\n")
    assert not (tmp_path / "parts").exists()
