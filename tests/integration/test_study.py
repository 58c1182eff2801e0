"""`train-all --release` from an empty home: trained, released, reported; killed and repeated, it ends the same way."""

import os
import subprocess

import pytest

from serving.bundle.store import read_pointer
from tests.integration.conftest import COMMAND
from tests.integration.test_survival import KILLS

STUDY = ("train-all", "--release", "--profile", "smoke", "--set", "dataset=shapes", "--only", "resnet18_cifar10_exp?")
FEWER = ("--set", "limit_train=200", "--set", "epochs=1", "--only", "resnet18_cifar10_exp[23]")

# Lines after which it is killed; DARKROOM_KILLS=5 takes all of them.
MOMENTS = ("best of", "shapes packed", "epoch 1/1", "champion", "report on")


@pytest.fixture(scope="module")
def own_home(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


def start(home, *arguments):
    kept = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")}
    environment = kept | {"DARKROOM_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [COMMAND, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("moment", MOMENTS[:KILLS])
def test_killed_at_any_step_the_same_command_ends_the_same_way(own_home, moment):
    with start(own_home, *STUDY, *FEWER) as process:
        for line in process.stdout:
            if moment in line:
                process.kill()
                break


@pytest.mark.timeout(600)
def test_the_study_ends_with_champion_report_and_table(own_home):
    with start(own_home, *STUDY, *FEWER) as process:
        printed = process.stdout.read()
    assert process.returncode == 0, printed
    champion = read_pointer(own_home / "bundles", "shapes")
    assert (own_home / "report" / "report.html").is_file()
    assert "best run by validation" in printed
    with start(own_home, *STUDY, *FEWER) as again:
        repeated = again.stdout.read()
    assert again.returncode == 0, repeated
    assert "champion already" in repeated
    assert read_pointer(own_home / "bundles", "shapes") == champion
