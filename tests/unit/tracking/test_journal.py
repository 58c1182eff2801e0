import json
import math
import os
import resource
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from model_code.errors import DataError, TrackingError, TrainingError
from model_code.tracking.journal import JournalTracking, read_journal
from model_code.training.processes import ALONE
from model_code.training.results import Callback
from model_code.training.run_folder import JOURNAL_FILE, STATE_FILE, RunRecord, create_run_folder, making_run
from model_code.training.supervised import fit
from tests.unit.training.small_runs import make_config, make_images
from tests.unit.training.test_another_device import CUDA_STATE, StopAfter

TAGS = {"device": "cpu (test)", "budget": "full"}


class StopAfterTwo(Callback):
    def on_epoch_end(self, metrics):
        if metrics.epoch == 2:
            raise TrainingError("stopped")


def start(tmp_path, **settings):
    """A tracking and the folder of a new run in it."""
    tracking = JournalTracking(tmp_path)
    record = RunRecord(run_id="", data_checksum="c" * 64, config=make_config(**settings))
    with making_run(tmp_path, record) as attempt:
        run_id = tracking.create_run(record.config, attempt)
        folder = create_run_folder(tmp_path, record.model_copy(update={"run_id": run_id}))
    return tracking, folder


def read_points(folder):
    return [(entry.step, entry.metrics) for entry in read_journal(folder.path) if entry.step is not None]


def test_a_run_is_recorded_in_its_folder(tmp_path):
    tracking, folder = start(tmp_path, epochs=2)
    assert tracking.has_run(folder.record.run_id)
    assert folder.is_offline
    with tracking.track(folder, TAGS) as tracker:
        result = fit(folder.record.config, make_images(), folder.path, ALONE, [tracker])
        tracker.log_config(folder)
        tracker.log_training(result, "d" * 64)
        tracker.log_checkpoints(folder, result)
    entries = read_journal(folder.path)
    first, last = entries[0], entries[-1]
    assert (first.status, last.status) == ("RUNNING", "FINISHED")
    assert first.params["learning_rate"] == "0.05"
    assert first.tags["config_sha256"] == folder.record.config.sha256()
    assert first.tags["device"] == "cpu (test)"
    assert "version.torch" in first.tags
    assert [entry.time_ms for entry in entries] == sorted(entry.time_ms for entry in entries)
    points = read_points(folder)
    assert [step for step, _ in points] == [1, 2, 0]
    assert points[1][1] == result.history[1].list_metrics()
    assert points[2][1] == {"validation/best_accuracy": result.best.score, "validation/best_epoch": result.best_epoch}
    files = {entry.artifact: entry.file for entry in entries if entry.artifact}
    assert files == {
        "config.json": "artifacts/config.json",
        "figures/curves.png": "artifacts/figures/curves.png",
        "checkpoints/best.safetensors": result.best_weights.name,
        "checkpoints/last.safetensors": "last.safetensors",
    }
    assert json.loads((folder.path / files["config.json"]).read_text())["recipe"] == "tiny_pets_test"
    with Image.open(folder.path / files["figures/curves.png"]) as image:
        assert image.format == "PNG"


@pytest.mark.parametrize("is_checkpoint_lost", [False, True])
def test_a_resumed_run_records_each_epoch_once(tmp_path, is_checkpoint_lost):
    tracking, folder = start(tmp_path)
    with pytest.raises(TrainingError), tracking.track(folder, TAGS) as tracker:
        fit(folder.record.config, make_images(), folder.path, ALONE, [tracker, StopAfterTwo()])
    assert read_journal(folder.path)[-1].status == "FAILED"
    before = read_points(folder)
    if is_checkpoint_lost:
        (folder.path / STATE_FILE).unlink()
    for _ in range(2):
        with tracking.track(folder, TAGS) as tracker:
            fit(folder.record.config, make_images(), folder.path, ALONE, [tracker])
            tracker.log_metrics({"test/accuracy": 0.5})
    points = read_points(folder)
    assert [step for step, _ in points] == [1, 2, 3, 4, 0]
    assert points[:2] == before


@pytest.mark.parametrize("torn", [b'{"time_ms":1,"st', b"\x00" * 9, b"{"])
def test_a_line_that_was_cut_short_spoils_no_other(tmp_path, torn):
    tracking, folder = start(tmp_path)
    with tracking.track(folder, TAGS) as tracker:
        tracker.log_metrics({"test/loss": 0.5})
    whole = read_journal(folder.path)
    with (folder.path / JOURNAL_FILE).open("ab") as file:
        file.write(torn)
    assert read_journal(folder.path) == whole
    with tracking.track(folder, TAGS) as tracker:
        tracker.log_metrics({"test/loss": 0.5, "test/accuracy": 0.75})
    assert read_journal(folder.path)[: len(whole)] == whole
    assert read_points(folder) == [(0, {"test/loss": 0.5}), (0, {"test/accuracy": 0.75})]


def test_a_disk_that_is_full_leaves_whole_lines(tmp_path):
    """It takes the beginning of a line, and has room again when the run's end is recorded."""
    tracking, folder = start(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(tracker):
        size = (folder.path / JOURNAL_FILE).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, limits[1]))
        try:
            tracker.log_metrics({"test/loss": 0.5})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with pytest.raises(DataError, match="recording the run"), tracking.track(folder, TAGS) as tracker:
        fill(tracker)
    assert [entry.status for entry in read_journal(folder.path)] == ["RUNNING", "FAILED"]


def test_the_end_of_a_run_is_on_the_disk_before_its_result(tmp_path, monkeypatch):
    tracking, folder = start(tmp_path)
    synced, fsync = [], os.fsync

    def watch(descriptor):
        fsync(descriptor)
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink(), read_journal(folder.path)[-1].status))

    with tracking.track(folder, TAGS):
        monkeypatch.setattr(os, "fsync", watch)
    assert synced == [(folder.path / JOURNAL_FILE, "FINISHED")]


def test_values_that_are_no_numbers_are_kept(tmp_path):
    tracking, folder = start(tmp_path)
    with tracking.track(folder, TAGS) as tracker:
        tracker.log_metrics({"test/loss": math.nan, "train/loss": math.inf})
    [(_, metrics)] = read_points(folder)
    assert math.isnan(metrics["test/loss"])
    assert metrics["train/loss"] == math.inf


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "KILLED"), (TrainingError, "FAILED"), (MemoryError, "FAILED")]
)
def test_how_a_run_ends(tmp_path, error, status):
    tracking, folder = start(tmp_path)
    with pytest.raises(error), tracking.track(folder, TAGS):
        raise error
    assert read_journal(folder.path)[-1].status == status


def test_a_figure_drawn_again_replaces_the_first(tmp_path):
    tracking, folder = start(tmp_path)
    with tracking.track(folder, TAGS) as tracker:
        for side in (1, 2):
            tracker._log.log_figure(Figure(figsize=(side, side)), "figures/one.png")
    with Image.open(folder.path / "artifacts/figures/one.png") as image:
        assert image.size == (200, 200)


@pytest.mark.parametrize(
    "line",
    [
        b"not JSON",
        b'{"time_ms":1,"unknown":2}',
        b'{"metrics":{}}',
        b'{"time_ms":1,"artifact":"../outside","file":"x"}',
        b'{"time_ms":1,"artifact":"/etc/passwd","file":"x"}',
    ],
)
def test_a_line_of_something_else_is_named(tmp_path, line):
    _, folder = start(tmp_path)
    (folder.path / JOURNAL_FILE).write_bytes(b'{"time_ms":1}\n' + line + b"\n")
    with pytest.raises(TrackingError, match=r"^line 2 of .*journal\.jsonl is damaged"):
        read_journal(folder.path)


def test_a_folder_without_a_journal_is_named(tmp_path):
    with pytest.raises(TrackingError, match=r"has no journal\.jsonl: only runs of `darkroom train --offline`"):
        read_journal(tmp_path)


def test_an_attempt_that_was_killed_is_taken_up(tmp_path):
    tracking, config = JournalTracking(tmp_path), make_config()
    assert tracking.create_run(config, "a" * 32) == tracking.create_run(config, "a" * 32) == "a" * 32
    create_run_folder(tmp_path, RunRecord(run_id="a" * 32, data_checksum="c" * 64, config=config))
    assert tracking.create_run(config, "a" * 32) != "a" * 32


def test_epochs_that_another_device_trains_again_are_recorded_once(tmp_path, capsys):
    """Its checkpoint, of the middle of an epoch on CUDA, is older than what is recorded."""
    tracking, folder = start(tmp_path)
    images, config = make_images(), folder.record.config
    with pytest.raises(KeyboardInterrupt), tracking.track(folder, TAGS) as tracker:
        fit(config, images, folder.path, ALONE, [tracker, StopAfter(2, 2)])
    state = torch.load(folder.path / STATE_FILE, weights_only=True)
    with pytest.raises(KeyboardInterrupt), tracking.track(folder, TAGS) as tracker:
        fit(config, images, folder.path, ALONE, [tracker, StopAfter(4, 1)])
    before = read_points(folder)
    assert [step for step, _ in before] == [1, 2, 3]
    torch.save(state | {"generator": CUDA_STATE, "cuda_rng": CUDA_STATE}, folder.path / STATE_FILE)
    capsys.readouterr()
    with tracking.track(folder, TAGS) as tracker:
        fit(config, images, folder.path, ALONE, [tracker])
    assert "the run began on cuda and continues on cpu" in capsys.readouterr().out
    tags = [entry.tags["resumed_on"] for entry in read_journal(folder.path) if "resumed_on" in entry.tags]
    assert tags == ["cuda to cpu after epoch 1"]
    after = read_points(folder)
    assert [step for step, _ in after] == [1, 2, 3, 4]
    assert after[:3] == before
