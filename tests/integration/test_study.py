"""`train-all --release` from an empty home: trained, released, reported; killed and repeated, it ends the same way."""

import os
import signal
import subprocess

import pytest

from serving.bundle.store import read_pointer
from tests.integration.conftest import COMMAND
from tests.integration.test_survival import KILLS

STUDY = ("train-all", "--release", "--profile", "smoke", "--set", "dataset=shapes", "--set", "limit_train=200")
RECIPES = ("--set", "epochs=1", "--only", "resnet18_cifar10_exp[23]")
# Lines after which it is killed, in the order of a whole run; DARKROOM_KILLS=5 takes all of them, one keeps the suite
# short.
MOMENTS = ("certifying fp32", "shapes packed", "epoch 1/1", "[2/2]", "report on")


def start(home, *arguments):
    kept = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")}
    environment = kept | {"DARKROOM_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [COMMAND, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("moment", MOMENTS[:KILLS])
def test_killed_at_any_step_the_same_command_ends_with_champion_report_and_table(tmp_path, moment):
    with start(tmp_path, *STUDY, *RECIPES) as process:
        for line in process.stdout:
            if moment in line:
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    with start(tmp_path, *STUDY, *RECIPES) as process:
        printed = process.stdout.read()
    assert process.returncode == 0, printed
    champion = read_pointer(tmp_path / "bundles", "shapes")
    assert (tmp_path / "report" / "report.html").is_file()
    assert "best run by validation" in printed
    with start(tmp_path, *STUDY, *RECIPES) as process:
        repeated = process.stdout.read()
    assert process.returncode == 0, repeated
    assert repeated.count("kept from run") == 2
    assert "champion already" in repeated
    assert read_pointer(tmp_path / "bundles", "shapes") == champion
