import shutil
import subprocess

import pytest

from tests.unit.training.small_runs import tiny_network_entered


@pytest.fixture(scope="module", autouse=True)
def tiny_network():
    with tiny_network_entered():
        yield


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of 1 MiB."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
