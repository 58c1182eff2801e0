import json
import re
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

import benchmarks.gpu.__main__ as proof
from benchmarks.gpu import engines, page, trainings
from benchmarks.gpu.__main__ import STAGES, main
from benchmarks.gpu.engines import ROOT, run_tests
from benchmarks.gpu.proof import NO_CUDA, Stage
from benchmarks.gpu.serving import NOT_MEASURED, compare
from benchmarks.gpu.trainings import JOURNAL_FILE, NINE
from model_code.errors import DarkroomError, DataError
from serving.errors import BundleError

KINDS = ("float32", "bfloat16")


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
    assert stage.failed == ["b (no data set cifar10)"]
    assert "c: not measured: no CUDA device" in capsys.readouterr().out
    again = open_stage(tmp_path)
    again.measure("a", fail)
    again.measure("b", lambda: {"images_per_s": 1.0})
    assert [figures["images_per_s"] for figures in again.entries.values()] == [12.5, 1.0]


def raise_one(error):
    raise error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Triton is not installed\nsecond line"), "RuntimeError: Triton is not installed"),
        (BundleError("no provider"), "BundleError: no provider"),
        (KeyError(), "KeyError: "),
    ],
)
def test_an_error_that_nobody_foresaw_ends_its_entry_only(error, reason, tmp_path, monkeypatch, capsys):
    def measure_all(stage):
        stage.measure("a", lambda: raise_one(error))
        stage.measure("b", lambda: {"images_per_s": 1.0})

    monkeypatch.setattr(proof, "STAGES", {"check": measure_all, "engine": measure_all})
    for _ in range(2):
        assert main(["--dry-run", "--out", str(tmp_path)]) == 1
        assert f"failed, a repetition tries again: check: a ({reason}); engine: a ({reason})" in capsys.readouterr().out
    for stage in ("check", "engine"):
        entries = json.loads((tmp_path / f"{stage}.json").read_text())["entries"]
        assert (entries["a"]["not_measured"], entries["b"]["images_per_s"]) == (reason, 1.0)


def test_what_wants_a_device_that_is_not_there_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "STAGES", {"check": lambda stage: stage.measure("a", stage.need_cuda)})
    monkeypatch.setattr(Stage, "is_cuda", False)
    assert main(["--dry-run", "--out", str(tmp_path)]) == 0


@pytest.mark.slow
def test_the_tests_that_need_a_gpu_start_with_nothing_but_pytest(tmp_path):
    figures = run_tests(ROOT / "tests" / "gpu", 300, tmp_path / "tests.txt")
    assert set(figures) == {"tests"}
    assert torch.cuda.is_available() or re.fullmatch(r"\d+ skipped in .*", figures["tests"])


def write_test(folder, body):
    folder.mkdir()
    (folder / "test_one.py").write_text(f"import subprocess\n\ndef test_one():\n    {body}\n")
    return folder


def test_a_test_that_fails_is_an_error_which_names_it(tmp_path):
    folder = write_test(tmp_path / "tests", "assert 1 == 2")
    with pytest.raises(DarkroomError, match=r"exit status 1: 1 failed in .*: .*test_one.py::test_one"):
        run_tests(folder, 300, tmp_path / "tests.txt")
    assert "assert 1 == 2" in (tmp_path / "tests.txt").read_text()


@pytest.mark.slow
def test_tests_that_hang_are_ended_with_what_they_started(tmp_path):
    folder = write_test(tmp_path / "tests", "subprocess.run(['sleep', '86399'])")
    with pytest.raises(DarkroomError, match="not over after 8 s; give more --minutes"):
        run_tests(folder, 8, tmp_path / "tests.txt")

    def is_left():
        return ["sleep", "86399"] in [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]

    end_s = time.monotonic() + 20
    while is_left() and time.monotonic() < end_s:  # the kernel ends it a moment later
        time.sleep(0.1)
    assert not is_left()


def test_runs_that_do_not_overlap_are_not_counted_as_if_they_did(tmp_path, monkeypatch):
    one_at_a_time = threading.Lock()

    def train(_stage, steps, epochs, changes, _run_dir, callbacks):
        (callback,) = callbacks
        time.sleep(0.1 * changes["seed"])
        callback.on_epoch_end(SimpleNamespace(epoch=1, pictures_per_s=1e6))
        with one_at_a_time:
            time.sleep(0.2)
            callback.on_epoch_end(SimpleNamespace(epoch=2, pictures_per_s=1e6))
        return SimpleNamespace(engine="eager", history=[SimpleNamespace(pictures_per_s=steps * 4 / 0.2)] * epochs)

    monkeypatch.setattr(engines, "train_drawn", train)
    stage = open_stage(tmp_path)
    stage.is_dry = True  # two steps of four images
    figures = engines.measure_streams(stage, 2)
    assert figures["images_per_s"] <= 16 / 0.4
    assert figures["images_per_s_slowest"] <= 8 / 0.4


def test_a_run_that_fails_ends_those_that_wait_for_it(tmp_path, monkeypatch):
    def train(_stage, _steps, _epochs, changes, _run_dir, callbacks):
        if changes["seed"]:
            raise DataError("no images")
        callbacks[0].on_epoch_end(SimpleNamespace(epoch=1))

    monkeypatch.setattr(engines, "train_drawn", train)
    with pytest.raises(DarkroomError, match="1 of 2 runs failed: no images"):
        engines.measure_streams(open_stage(tmp_path), 2)


def test_a_recorded_size_that_answers_otherwise_is_seen():
    images_NHWC = np.zeros((256, 2, 2, 3), np.uint8)
    expected_NK = np.tile(np.float32([0.75, 0.25]), (256, 1))

    def answer(some_NHWC):
        wrong = 17 <= len(some_NHWC) <= 32  # of one bucket
        return expected_NK[: len(some_NHWC), :: -1 if wrong else 1]

    assert compare(answer, images_NHWC, expected_NK) == {"largest_difference": 0.5, "labels_that_differ": 32}
    right = compare(lambda some: expected_NK[: len(some)], images_NHWC, expected_NK)
    assert right == {"largest_difference": 0.0, "labels_that_differ": 0}


def test_the_study_has_a_total_when_every_run_is_there(tmp_path, monkeypatch):
    stage = Stage("study", tmp_path, False, 60, tmp_path, device=torch.device("cpu"))
    stage.entries = {recipe: {"training_s": 10.0, "epochs": 2} for recipe in NINE[1:]}
    monkeypatch.setattr(trainings, "_train", lambda *_: None)
    trainings.study(stage)
    assert len(stage.entries) == 8
    monkeypatch.setattr(trainings, "_train", lambda *_: {"training_s": 20.0, "epochs": 3})
    trainings.study(stage)
    total = stage.entries["nine runs"]
    assert (total["training_s"], total["epochs"]) == (100.0, 19)


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


# What a dry run may take on two idle cores, and how many times that on busy ones.
DRY_RUN_S, SLACK = 180, 5
# Entries that only a GPU has figures of.
GPU_ONLY = {
    "check": {"tests/gpu", *(f"{name}, {kind}" for name in ("compiled", "CUDA graphs") for kind in KINDS)},
    "engine": {"deterministic, tf32", *(f"fastest, {kind}" for kind in ("float32", "tf32", "bfloat16"))},
    "serving": {
        *("onnxruntime, fp32, recorded graphs", "onnxruntime, fp16", "onnxruntime, fp16, recorded graphs"),
        "torch.compile, bfloat16",
    },
}


@pytest.mark.slow
def test_a_dry_run_without_the_libraries_of_the_service_measures_every_stage(tmp_path):
    command = [sys.executable, "-P", "-c", NODE, "--dry-run", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=DRY_RUN_S * SLACK)
    for stage in STAGES:
        entries = json.loads((tmp_path / f"{stage}.json").read_text())["entries"]
        unmeasured = {entry: figures["not_measured"] for entry, figures in entries.items() if "not_measured" in figures}
        gpu_only = set() if torch.cuda.is_available() else GPU_ONLY.get(stage, set())
        expected = dict.fromkeys(gpu_only, NO_CUDA) | (NOT_MEASURED if stage == "serving" else {})
        assert unmeasured == expected
        assert len(entries) > len(unmeasured)
    assert "nine runs" in json.loads((tmp_path / "study.json").read_text())["entries"]
    for stage, entry in (
        ("check", "whole step, float32"),
        ("engine", "1 runs at once"),
        ("study", "resnet18_cifar10_exp"),
    ):
        engine = json.loads((tmp_path / f"{stage}.json").read_text())["entries"][entry]["engine"]
        assert torch.cuda.is_available() or "eager" in engine
        assert ("steps replayed" in engine) == (stage != "engine")
    runs = [json.loads(line)["run"] for line in (tmp_path / "study" / JOURNAL_FILE).read_text().splitlines()]
    assert len(runs) == len(set(runs)) == 9
