import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

import model_code  # noqa: F401 - sets what MLflow reads when a test imports it


@pytest.fixture(scope="session", autouse=True)
def _shapes_drawn_once() -> Iterator[None]:
    """Draw `shapes` of a size once in this process, however many tests pack them."""
    from model_code.data.sources.layout import DATASETS
    from model_code.data.sources.shapes import generate_shapes

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "shapes", replace(DATASETS["shapes"], draw=cache(generate_shapes)))
        yield


@pytest.fixture
def mount_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a real disk of a size such as `1m`; it is gone after the test."""
    mounted = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk-{size}"
        folder.mkdir()
        if shutil.which("mount") is None:
            pytest.skip("there is no mount command here")
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, check=False, text=True)
        if done.returncode:
            pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
