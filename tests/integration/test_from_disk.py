"""Images that stay on disk while a network is trained: killed and resumed, and with a damaged file."""

import subprocess
import time

import pytest

from model_code.training.run_folder import RESULT_FILE, STATE_FILE, RunResult
from tests.integration.conftest import COMMAND, home_entered, make_environment

TRAIN = ("train", "fastnet_cifar10", "--profile", "smoke", "--set", "dataset=shapes", "--epochs", "3", "--offline")
FROM_DISK = ("--set", "engine.pictures=disk", "--set", "engine.readers=2")


@pytest.fixture
def own_home(tmp_path):
    """A home of its own, with the drawn images in it."""
    from flows.api import add_data

    with home_entered(tmp_path):
        add_data("shapes")
    return tmp_path


def test_training_from_disk_resumes_after_kill_9_and_names_a_damaged_file(darkroom, own_home):
    environment = make_environment(DARKROOM_HOME=str(own_home))
    command = [COMMAND, *TRAIN, *FROM_DISK]
    whole = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert "of images read from disk, shuffled in windows" in whole.stdout
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert any("epoch 1/3" in line for line in process.stdout)
    while not list(own_home.glob(f"checkpoints/*/{STATE_FILE}")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    resumed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert "goes on " in resumed.stdout
    files = sorted(own_home.glob(f"checkpoints/*/{RESULT_FILE}"))
    results = [RunResult.model_validate_json(file.read_bytes()) for file in files]
    assert len(results) == 2
    assert len({result.weights_sha256 for result in results}) == 1

    [file] = own_home.glob("cache/shapes/*/train-images-00000.npy")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with home_entered(own_home):
        done = darkroom(*TRAIN, *FROM_DISK, "--seed", "1")
        assert done.status == 1
        [line] = done.err.splitlines()[-1:]
        assert "train-images-00000.npy: images" in line
        assert "add it again with `darkroom data add shapes`" in line
        assert "Traceback" not in done.err
        assert darkroom("data", "check", "shapes").status == 1
        assert darkroom("data", "add", "shapes", "--offline").status == 0
        assert darkroom("data", "check", "shapes").status == 0
