"""`train-all --release` from an empty home: trained, released, reported; killed and repeated, it ends the same way."""

import re
import signal

import pytest

from serving.bundle.store import read_pointer
from tests.integration.conftest import home_entered, read_until
from tests.integration.test_survival import KILLS

STUDY = ("train-all", "--release", "--profile", "smoke", "--set", "dataset=shapes", "--set", "limit_train=200")
RECIPES = ("--set", "epochs=1", "--only", "resnet18_cifar10_exp2*")
# Lines after which it is killed, in the order of a whole run; DARKROOM_KILLS=5 takes all of them, one keeps the suite
# short.
MOMENTS = ("certifying fp32", "shapes packed", "epoch 1/1", "[2/2]", "report on")


@pytest.mark.parametrize("moment", MOMENTS[:KILLS])
def test_killed_at_any_step_the_same_command_ends_with_champion_report_and_table(
    darkroom, start_darkroom, prefect_server, tmp_path, moment
):
    process = start_darkroom(*STUDY, *RECIPES, DARKROOM_HOME=str(tmp_path), **prefect_server)
    read_until(process, re.escape(moment))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    with home_entered(tmp_path):
        again = darkroom(*STUDY, *RECIPES)
        assert again.status == 0, again.err
        champion = read_pointer(tmp_path / "bundles", "shapes")
        assert (tmp_path / "report" / "report.html").is_file()
        assert "best run by validation" in again.out
        repeated = darkroom(*STUDY, *RECIPES)
    assert repeated.status == 0, repeated.err
    assert repeated.out.count("kept from run") == 2
    assert "champion already" in repeated.out
    assert read_pointer(tmp_path / "bundles", "shapes") == champion
