import json
import subprocess
import sys

import pytest
import torch

from benchmarks.gpu import page
from benchmarks.gpu.__main__ import STAGES, main
from benchmarks.gpu.proof import Stage
from benchmarks.gpu.trainings import JOURNAL_FILE
from model_code.errors import DataError


def open_stage(folder, limit_s=60.0, **options):
    return Stage("check", folder, False, limit_s, folder / "cache", device=torch.device("cpu"), **options)


def fail():
    raise DataError("no data set cifar10\nsecond line")


def test_an_entry_is_measured_once_and_what_cannot_be_is_tried_again(tmp_path, capsys):
    stage = open_stage(tmp_path)
    stage.measure("a", lambda: {"images_per_s": 12.5})
    stage.measure("b", fail)
    stage.measure("c", stage.need_cuda)
    assert json.loads(stage.file.read_text())["entries"]["b"]["not_measured"] == "no data set cifar10"
    assert "c: not measured: no CUDA device" in capsys.readouterr().out
    again = open_stage(tmp_path)
    again.measure("a", fail)
    again.measure("b", lambda: {"images_per_s": 1.0})
    assert [figures["images_per_s"] for figures in again.entries.values()] == [12.5, 1.0]


def test_what_the_budget_does_not_hold_is_left(tmp_path):
    stage = open_stage(tmp_path, limit_s=0)
    stage.measure("a", lambda: {"images_per_s": 12.5})
    stopped = open_stage(tmp_path)
    stopped.measure("b", lambda: None)
    assert (stage.entries, stage.left, stopped.entries, stopped.left) == ({}, ["a"], {}, ["b"])


def test_figures_of_another_machine_are_measured_anew(tmp_path):
    stage = open_stage(tmp_path)
    stage.measure("a", lambda: {"images_per_s": 12.5})
    record = json.loads(stage.file.read_text())
    record["machine"]["git_sha"] = "0" * 40
    stage.file.write_text(json.dumps(record))
    assert open_stage(tmp_path).entries == {}


def make_record(device="cuda (H100)", **more):
    machine = {"device": device, "cuda": "13.0", "python": "3.12.1", "versions": {"torch": "2.11"}, "git_sha": "a" * 40}
    entries = {"eager": {"ms_a_step": 2.5, "entry_s": 9.0}, "tests/gpu": {"not_measured": "no pytest"}}
    return {"stage": "check", "is_dry": False, "machine": machine, "entries": entries} | more


def test_the_page_shows_what_a_gpu_measured_and_nothing_else(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    for records in ([make_record(device="cpu (x86_64)")], [make_record(is_dry=True)], []):
        page.write_page(records, ["check"], file)
        assert file.read_text() == f"before\n{page.BEGIN}\n`check`: not measured.\n{page.END}\nafter\n"
    page.write_page([make_record()], ["check", "study"], file)
    text = file.read_text()
    assert "`check`: cuda (H100), CUDA 13.0, Python 3.12.1, torch 2.11, commit `aaaaaaaaaaaa`; n = 1." in text
    assert "| eager | 2.5 | 9 |" in text
    assert "| tests/gpu | not measured: no pytest |" in text
    assert "`study`: not measured." in text


def test_the_part_of_the_documentation_has_every_stage():
    part = page.PAGE.read_text().partition(page.BEGIN)[2].partition(page.END)[0]
    assert all(f"`{stage}`:" in part for stage in STAGES)


def test_an_unknown_stage_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as e:
        main(["chekc"])
    assert e.value.code == 2
    assert "no stage chekc" in capsys.readouterr().err


NODE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"mlflow", "prefect", "bentoml", "rich", "click", "matplotlib"}:
            raise ImportError(f"{name} is not on the node")
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, ".")
from benchmarks.gpu.__main__ import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_dry_run_without_the_libraries_of_the_service_measures_every_stage(tmp_path):
    command = [sys.executable, "-P", "-c", NODE, "--dry-run", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    for stage in STAGES:
        entries = json.loads((tmp_path / f"{stage}.json").read_text())["entries"]
        reasons = {figures["not_measured"] for figures in entries.values() if "not_measured" in figures}
        assert entries
        assert torch.cuda.is_available() or reasons <= {"no CUDA device"}, reasons
    runs = [json.loads(line)["run"] for line in (tmp_path / "study" / JOURNAL_FILE).read_text().splitlines()]
    assert len(runs) == len(set(runs)) == 9
