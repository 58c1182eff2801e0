"""Two processes on a CPU, started by torchrun, beside one."""

import json
import subprocess
import sys

import pytest
import torch

from model_code.errors import UsageError
from model_code.training.processes import ALONE, Processes
from model_code.training.supervised import fit
from tests.unit.training.small_runs import CPU, make_config, make_images

pytestmark = pytest.mark.slow

MODULE = "tests.unit.training.shared_run"


def start(folder, count, *names):
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"] if count > 1 else []
    command = [sys.executable, "-m", *launcher, MODULE, str(folder), *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """{(name, processes): what came out}."""
    found = {}
    both = ("supervised", "simsiam", "fast", "half")
    for count, names in ((1, both), (2, (*both, "plain", "stops"))):
        folder = tmp_path_factory.mktemp(f"processes-{count}")
        done = start(folder, count, *names)
        assert done.returncode == 0, done.stderr[-3000:]
        found |= {(name, count): json.loads((folder / f"{name}.json").read_text()) for name in names}
    return found


@pytest.mark.parametrize(("kind", "steps"), [("supervised", 30), ("simsiam", 8), ("fast", 15)])
def test_two_processes_have_the_loss_curve_of_one(outcomes, kind, steps):
    one, two = outcomes[kind, 1], outcomes[kind, 2]
    assert len(one["losses"]) == steps
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-4)
    assert one["losses"][0] != pytest.approx(one["losses"][-1], abs=1e-2)  # something was learned
    for alone, shared in zip(one["history"], two["history"], strict=True):
        compared = [key for key in alone if key not in ("seconds", "pictures_per_s")]
        assert [shared[key] for key in compared] == pytest.approx([alone[key] for key in compared], abs=1e-4)
    assert two.get("untrained") == one.get("untrained")


def test_the_plateau_fell_while_it_was_shared(outcomes):
    rates = [metrics["learning_rate"] for metrics in outcomes["supervised", 2]["history"]]
    assert rates[-1] < rates[0]


def test_a_signal_to_one_process_stops_both_and_nothing_is_lost(outcomes):
    stopped, whole = outcomes["stops", 2], outcomes["plain", 2]
    assert len(stopped["first"]) == 5
    assert stopped["first"] + stopped["then"] == whole["losses"]
    for learned, expected in zip(stopped["history"], whole["history"], strict=True):
        compared = [key for key in expected if key not in ("seconds", "pictures_per_s")]
        assert [learned[key] for key in compared] == [expected[key] for key in compared]


def test_bfloat16_is_shared_with_statistics_in_float32(outcomes):
    assert outcomes["half", 2]["losses"] == pytest.approx(outcomes["half", 1]["losses"], rel=2e-2)
    assert outcomes["half", 2]["losses"] != outcomes["plain", 2]["losses"]


def test_a_killed_process_is_one_line(tmp_path):
    done = start(tmp_path, 2, "dies")
    assert done.returncode != 0
    assert "another process of this training has ended" in json.loads((tmp_path / "dies.json").read_text())["line"]
    assert (tmp_path / "dies" / "state.pt").exists()


def test_a_batch_that_cannot_be_shared_is_one_line(tmp_path):
    with pytest.raises(
        UsageError, match=r"a batch of 8 cannot be shared evenly by 3 processes; change --set batch_size"
    ):
        fit(make_config(), make_images(), tmp_path, Processes(CPU, rank=0, count=3))


def test_shares_cover_everything_once():
    for total in (0, 1, 7, 8):
        shared = [index for rank in range(3) for index in range(total)[Processes(CPU, rank, 3).share(total)]]
        assert shared == list(range(total))


def test_one_process_exchanges_nothing():
    rows = torch.arange(3)
    assert ALONE.gather(rows) is rows
    assert ALONE.add(rows) is rows
    assert ALONE.tell("something") == "something"
