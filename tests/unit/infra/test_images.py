import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
HADOLINT = str(Path(sys.executable).with_name("hadolint"))


def lint(file):
    return subprocess.run([HADOLINT, "--no-color", str(file)], capture_output=True, text=True, check=False).stdout


def test_the_dockerfile_is_clean():
    assert lint(ROOT / "Dockerfile") == ""


def test_the_linter_can_fail(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN apt-get install gcc\n")
    assert "DL3006" in lint(tmp_path / "Dockerfile")


@pytest.mark.parametrize("role", ["train", "serve", "cuda", "build", "uv"])
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


def make_with_uv(tmp_path, version):
    """Return where `make` takes uv from on a machine that has this version of it."""
    (tmp_path / "uv").write_text(f"#!/bin/sh\necho uv {version} '(somewhere)'\n")
    (tmp_path / "uv").chmod(0o755)
    ask = "include Makefile\nshow: ; @echo $(UV)\n"
    done = subprocess.run(
        ["make", "--no-print-directory", "-f", "-", "show"],
        cwd=ROOT,
        input=ask,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_uv_is_the_pinned_one(tmp_path):
    (line,) = [line for line in (ROOT / "requirements/uv.txt").read_text().splitlines() if "==" in line]
    pinned = line.split("==")[1].split()[0]
    assert make_with_uv(tmp_path, pinned) == str(tmp_path / "uv")
    assert make_with_uv(tmp_path, "0.0.1") == ".uv/bin/uv"


def test_every_image_of_others_is_set_in_one_place():
    """So that a digest can pin it."""
    compose = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())["services"]
    images = {service["image"] for service in compose.values() if "image" in service}
    foreign = {image for image in images if not image.startswith("darkroom-")}
    assert len(foreign) == 3
    assert all(image.split(":", 1)[1].startswith("${") for image in foreign)
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    sources = {line.split()[1] for line in lines if line.startswith("FROM ")}
    assert sources == {"${PYTHON_IMAGE}", "base", "serve-cpu"}
