import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from model_code.errors import BusyError, TrainingError
from model_code.training.run_folder import (
    RESULT_FILE,
    RUN_FILE,
    STATE_FILE,
    RunRecord,
    RunResult,
    create_run_folder,
    find_finished,
    find_interrupted,
    find_run_place,
    list_damaged,
    list_interrupted,
    making_run,
    open_run_folder,
)
from tests.unit.training.small_runs import make_config

CHECKSUM = "c" * 64


def describe(data_checksum=CHECKSUM, **settings):
    return RunRecord(run_id="", data_checksum=data_checksum, config=make_config(**settings))


# The record's config may name the tests' own network; a lock needs the file's name only.
HOLD_LOCK = """
import sys, time
from pathlib import Path
from model_code.disk import take_lock
with take_lock(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(60)
"""


def make_record(run_id="1" * 32, **settings):
    return RunRecord(run_id=run_id, data_checksum=CHECKSUM, config=make_config(**settings))


def make_result(record):
    return RunResult(
        run_id=record.run_id,
        kind=record.config.kind,
        recipe=record.config.recipe,
        profile=record.config.profile,
        dataset=record.config.dataset,
        epochs=4,
        best_epoch=2,
        best_weights="best-0002.safetensors",
        weights_sha256="d" * 64,
        metrics={"validation/best_accuracy": 0.75},
        seconds=1.5,
    )


@pytest.fixture
def hold_elsewhere():
    """Start a process that holds a run folder's lock; it ends with the test."""
    started = []

    def start(folder):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD_LOCK, str(folder.path / "run.lock")], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_what_was_created_is_opened(tmp_path):
    record = make_record(decay_points=(0.3, 0.6), learning_rate=0.1)
    created = create_run_folder(tmp_path / "checkpoints", record)
    opened = open_run_folder(tmp_path / "checkpoints", record.run_id)
    assert opened.path == created.path == tmp_path / "checkpoints" / record.run_id
    assert opened.record == record
    assert opened.result is None
    assert not opened.is_busy


def test_a_complete_run_has_a_result_and_no_state(tmp_path):
    folder = create_run_folder(tmp_path, make_record())
    (folder.path / STATE_FILE).write_bytes(b"state")
    result = make_result(folder.record)
    folder.complete(result)
    assert open_run_folder(tmp_path, folder.record.run_id).result == result
    assert not (folder.path / STATE_FILE).exists()
    assert find_interrupted(tmp_path, folder.record) is None
    folder.complete(result)


def test_unknown_run(tmp_path):
    for checkpoints_dir in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(
            TrainingError, match=r"^no run 'abc' in .*; give its id or .*, as `darkroom runs list` shows them$"
        ):
            open_run_folder(checkpoints_dir, "abc")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"run_id": "1"}'])
def test_damaged_record(tmp_path, content):
    folder = create_run_folder(tmp_path, make_record())
    (folder.path / RUN_FILE).write_bytes(content)
    with pytest.raises(TrainingError, match=rf"{RUN_FILE} is damaged or was written by another version") as e:
        open_run_folder(tmp_path, folder.record.run_id)
    assert "\n" not in str(e.value)
    assert f"darkroom runs remove {folder.record.run_id}" in str(e.value)
    assert find_interrupted(tmp_path, folder.record) is None
    assert list_damaged(tmp_path) == [find_run_place(tmp_path, folder.record.run_id).path.name]


def test_a_record_of_another_version(tmp_path):
    folder = create_run_folder(tmp_path, make_record())
    file = folder.path / RUN_FILE
    file.write_text(file.read_text().replace('"momentum"', '"inertia"'))
    with pytest.raises(TrainingError, match="written by another version"):
        open_run_folder(tmp_path, folder.record.run_id)


def test_the_newest_interrupted_run_of_the_same_experiment_is_found(tmp_path):
    assert find_interrupted(tmp_path / "nothing", describe()) is None
    names = ["1" * 32, "2" * 32, "3" * 32]
    for age, name in zip([200, 100, 300], names, strict=True):
        folder = create_run_folder(tmp_path, make_record(name))
        when = (folder.path / RUN_FILE).stat().st_mtime - age
        os.utime(folder.path / RUN_FILE, (when, when))
    create_run_folder(tmp_path, make_record("4" * 32, seed=9))
    assert find_interrupted(tmp_path, describe()).record.run_id == names[1]
    assert find_interrupted(tmp_path, describe(seed=9)).record.run_id == "4" * 32
    assert find_interrupted(tmp_path, describe(seed=8)) is None
    assert find_interrupted(tmp_path, describe(data_checksum="e" * 64)) is None
    newest = open_run_folder(tmp_path, names[1])
    newest.complete(make_result(newest.record))
    assert find_interrupted(tmp_path, describe()).record.run_id == names[0]


def test_the_newest_finished_run_of_the_same_experiment_and_code_is_found(tmp_path):
    assert find_finished(tmp_path / "nothing", describe(), "a" * 64) is None
    for age, name, code in ((300, "1" * 32, "a" * 64), (200, "2" * 32, "a" * 64), (100, "3" * 32, "b" * 64)):
        folder = create_run_folder(tmp_path, make_record(name))
        when = (folder.path / RUN_FILE).stat().st_mtime - age
        os.utime(folder.path / RUN_FILE, (when, when))
        folder.complete(make_result(folder.record).model_copy(update={"code_sha256": code}))
    create_run_folder(tmp_path, make_record("4" * 32))
    assert find_finished(tmp_path, describe(), "a" * 64).run_id == "2" * 32
    assert find_finished(tmp_path, describe(), "c" * 64) is None
    assert find_finished(tmp_path, describe(seed=9), "a" * 64) is None
    assert find_finished(tmp_path, describe(data_checksum="e" * 64), "a" * 64) is None
    (tmp_path / ("2" * 32) / RESULT_FILE).write_bytes(b"{")
    assert find_finished(tmp_path, describe(), "a" * 64).run_id == "1" * 32


def test_a_result_of_an_earlier_version_is_read_and_not_kept(tmp_path):
    folder = create_run_folder(tmp_path, make_record())
    folder.complete(make_result(folder.record))
    file = folder.path / RESULT_FILE
    fields = json.loads(file.read_text())
    del fields["code_sha256"]
    file.write_text(json.dumps(fields))
    assert folder.result == make_result(folder.record)
    assert find_finished(tmp_path, describe(), "a" * 64) is None


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path, hold_elsewhere):
    busy, free = (create_run_folder(tmp_path, make_record(name)) for name in ("1" * 32, "2" * 32))
    for folder, when in [(busy, 2000), (free, 1000)]:
        os.utime(folder.path / RUN_FILE, (when, when))
    process = hold_elsewhere(busy)
    assert busy.is_busy
    assert find_interrupted(tmp_path, describe()).record == free.record
    with pytest.raises(BusyError, match=rf"^run {'1' * 32} is used by another command"), busy.lock():
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not busy.is_busy
    assert find_interrupted(tmp_path, describe()).record == busy.record


@pytest.mark.parametrize("is_read", [False, True])
def test_a_run_that_is_removed_while_runs_are_listed_is_passed_over(tmp_path, monkeypatch, is_read):
    """Whether it goes before its record is read or after, when its time is asked for."""
    going, kept = (create_run_folder(tmp_path, make_record(name)) for name in ("1" * 32, "2" * 32))
    read = Path.read_bytes

    def read_and_remove(file):
        content = read(file) if is_read else None
        if file.parent == going.path:
            shutil.rmtree(going.path)
        return content or read(file)

    monkeypatch.setattr(Path, "read_bytes", read_and_remove)
    assert [one.path for one in list_interrupted(tmp_path)] == [kept.path]


def test_the_lock_is_free_again_after_its_block(tmp_path):
    folder = create_run_folder(tmp_path, make_record())
    with folder.lock():
        assert folder.is_busy
        assert open_run_folder(tmp_path, folder.record.run_id).is_busy
    assert not folder.is_busy
    with pytest.raises(KeyError), folder.lock():
        raise KeyError
    assert not folder.is_busy


def test_result_file_is_written_last_and_whole(tmp_path):
    folder = create_run_folder(tmp_path, make_record())
    folder.complete(make_result(folder.record))
    assert sorted(file.name for file in folder.path.iterdir()) == [RESULT_FILE, RUN_FILE]


def test_a_run_whose_making_was_interrupted_is_made_under_the_same_name(tmp_path):
    names = []

    def make(seed, dies=False):
        with making_run(tmp_path, describe(seed=seed)) as name:
            names.append(name)
            if dies:
                raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make(1, dies=True)
    make(2)
    make(1)
    make(1)
    died, died_again, other, made, anew = names
    assert died == died_again == made
    assert len({died, other, anew}) == 3
