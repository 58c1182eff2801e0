import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HADOLINT = str(Path(sys.executable).with_name("hadolint"))


def lint(file):
    return subprocess.run([HADOLINT, "--no-color", str(file)], capture_output=True, text=True, check=False).stdout


def test_the_dockerfile_is_clean():
    assert lint(ROOT / "Dockerfile") == ""


def test_the_linter_can_fail(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN apt-get install gcc\n")
    assert "DL3006" in lint(tmp_path / "Dockerfile")


@pytest.mark.parametrize("role", ["train", "serve", "cuda", "build"])
def test_what_images_install_is_locked_by_hash(role):
    lines = (ROOT / f"requirements/{role}.txt").read_text().splitlines()
    packages = [line for line in lines if "==" in line]
    assert packages
    assert all(line.endswith("\\") for line in packages)  # its hashes follow


def test_the_service_has_no_torch():
    names = {line.split("==")[0] for line in (ROOT / "requirements/serve.txt").read_text().splitlines() if "==" in line}
    assert "onnxruntime-gpu" in names
    assert names.isdisjoint({"torch", "torchvision", "mlflow", "prefect"})
    assert not any(name.startswith("nvidia-cu") for name in names)  # those are cuda.txt
