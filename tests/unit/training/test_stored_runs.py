"""Run folders in a storage: another machine gets one whole state, and one machine at a time trains a run."""

import errno
import math
import shutil
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from model_code.errors import BusyError, LostRunError, StorageError
from model_code.storage import Storage
from model_code.training import stored_runs
from model_code.training.interruption import InterruptionWatcher
from model_code.training.run_folder import (
    LOCK_FILE,
    RESULT_FILE,
    RUN_FILE,
    STATE_FILE,
    create_run_folder,
    open_run_folder,
)
from model_code.training.stored_runs import FETCHED_FILE, OWNERS_FILE, RunUploader, StoredRuns
from tests.unit.training.test_run_folder import make_record, make_result

RUN_ID = "1" * 32


@pytest.fixture
def storage(tmp_path):
    return Storage((tmp_path / "storage").as_uri())


@pytest.fixture
def here(tmp_path):
    return create_run_folder(tmp_path / "here", make_record(RUN_ID))


@pytest.fixture
def there(tmp_path):
    """Where another machine has its runs."""
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    """States are stored when a test says so, and at the end; who does not live is soon dead."""
    monkeypatch.setattr(stored_runs, "FIRST_WAIT_S", 3600.0)
    monkeypatch.setattr(stored_runs, "SECONDS_BETWEEN_TRIES", 0.01)
    monkeypatch.setattr(stored_runs, "DEAD_AFTER_S", 0.02)


@pytest.fixture
def lively(monkeypatch):
    """Beats and states follow each other quickly."""
    monkeypatch.setattr(stored_runs, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(stored_runs, "SECONDS_BETWEEN_HEARTBEATS", 0.01)
    monkeypatch.setattr(stored_runs, "DEAD_AFTER_S", 1.0)


def wait_until(is_true):
    deadline_s = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def is_said(capsys, said, words):
    """Whether words were printed so far; `said` keeps what was."""
    said.append(capsys.readouterr().out)
    return words in "".join(said)


def replace(file, content):
    scratch = file.with_name(f".{file.name}")
    scratch.write_bytes(content)
    scratch.replace(file)


def write_state(folder, epoch):
    """Write what a training leaves after an epoch, in its order; the first is the best of each two."""
    best = epoch - (epoch + 1) % 2
    if best == epoch:
        replace(folder.path / f"best-{best:04d}.safetensors", b"best %d" % best * 1000)
    replace(folder.path / "last.safetensors", b"last %d" % epoch * 1000)
    with (folder.path / "journal.jsonl").open("ab") as journal:
        journal.write(b"epoch %d\n" % epoch)
    replace(folder.path / STATE_FILE, b"%d %d" % (epoch, best))
    for file in folder.path.glob("best-*"):
        if file.name != f"best-{best:04d}.safetensors":
            file.unlink()


def check_state(path, *epochs):
    """A run's folder holds one whole state, of one of the epochs; return which."""
    epoch, best = map(int, (path / STATE_FILE).read_bytes().split())
    assert epoch in epochs
    assert (path / f"best-{best:04d}.safetensors").read_bytes() == b"best %d" % best * 1000
    # Weights and journal are written before the state: the next ones may be there already.
    assert (path / "last.safetensors").read_bytes() in [b"last %d" % one * 1000 for one in (epoch, epoch + 1)]
    assert b"epoch %d\n" % epoch in (path / "journal.jsonl").read_bytes()
    assert (path / RUN_FILE).is_file()
    return epoch


def read_run(path):
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name not in (LOCK_FILE, OWNERS_FILE, FETCHED_FILE)
    }


def upload(storage, folder):
    return RunUploader(storage, folder, is_offline=True)


def train(storage, folder, *epochs, then=lambda: None):
    """Train epochs whose states are stored at the end; `then` may interrupt or break something."""
    with upload(storage, folder):
        for epoch in epochs:
            write_state(folder, epoch)
        then()


def interrupt():
    raise KeyboardInterrupt


def find_stored(storage):
    """Return the files of a storage in a folder."""
    return [file for file in Path(storage.address.removeprefix("file://")).rglob("*") if file.is_file()]


def refuse(*_):
    raise StorageError("away")


def fetch(storage, checkpoints_dir):
    for is_complete in (True, False):
        fetch_like(storage, checkpoints_dir, is_complete=is_complete)


def fetch_like(storage, checkpoints_dir, *, is_complete):
    StoredRuns(storage, checkpoints_dir).fetch_like(make_record(), is_offline=True, is_complete=is_complete)


def wait_for_like(storage, checkpoints_dir):
    return StoredRuns(storage, checkpoints_dir).wait_for_like(make_record(), is_offline=True)


def list_runs(checkpoints_dir):
    return [file.parent.name for file in checkpoints_dir.glob("[!.]*/run.json")]


@contextmanager
def killed(storage, folder):
    """Store while the block trains; at its end the process is gone as by kill -9, so that no last state is stored."""
    uploader = upload(storage, folder)
    uploader.__enter__()
    yield uploader
    uploader._is_over.set()
    uploader._is_left.set()
    for thread in uploader._threads:
        thread.join()


def test_another_machine_gets_the_folder_as_it_was_stored(storage, here, there):
    with killed(storage, here) as uploader:
        (here.path / "tensorboard").mkdir()
        (here.path / "tensorboard" / "events.out.tfevents.1.host.2.0").write_bytes(b"curve")
        write_state(here, 1)
        uploader._store()
        stored = read_run(here.path)
        write_state(here, 2)
    fetch(storage, there)
    assert read_run(there / RUN_ID) == stored
    assert open_run_folder(there, RUN_ID).record == here.record


def test_a_state_takes_the_place_of_the_one_before(storage, here, there, tmp_path):
    with killed(storage, here) as uploader:
        for epoch in range(1, 8):
            write_state(here, epoch)
            uploader._remove_unused()
            uploader._store()
        uploader._remove_unused()
    fetch(storage, there)
    assert read_run(there / RUN_ID) == read_run(here.path)
    stored = [file for file in (tmp_path / "storage").rglob("*") if file.is_file()]
    assert len(stored) == len(read_run(here.path)) + 2  # and manifest and heartbeat


def test_what_has_not_changed_is_not_sent_again(storage, here, monkeypatch):
    sent, store = [], storage.store
    monkeypatch.setattr(storage, "store", lambda file, *given: sent.append(file.read_bytes()) or store(file, *given))
    train(storage, here, 1)
    assert sorted(sent) == sorted(read_run(here.path).values())


class FailingStorage(Storage):
    """Answers `left` requests; the one after them is answered too, but the answer is lost."""

    left = math.inf

    @contextmanager
    def _naming(self, action):
        self.left -= 1
        if self.left < -1:
            raise StorageError("away")
        with super()._naming(action):
            yield
        if self.left < 0:
            raise StorageError("lost")


def is_stored(uploader):
    try:
        uploader._remove_unused()
        uploader._store()
    except StorageError:
        return False
    return True


def test_a_state_is_whole_whichever_request_is_the_last(tmp_path, here, there):
    """The storage answers no request, then one, and so on, until a state is stored."""
    storage = FailingStorage((tmp_path / "storage").as_uri())
    with killed(storage, here) as uploader:
        write_state(here, 1)
        uploader._store()
        epoch, answered, has_ended = 1, 0, False
        while not has_ended:
            epoch += 1
            write_state(here, epoch)
            storage.left = answered
            has_ended = is_stored(uploader)
            storage.left = math.inf
            shutil.rmtree(there / RUN_ID, ignore_errors=True)
            fetch(storage, there)
            check_state(there / RUN_ID, epoch - 1, epoch)
            assert is_stored(uploader)
            answered += 1
    assert answered > 5
    fetch(storage, there)
    assert check_state(there / RUN_ID, epoch)


def test_a_state_is_whole_while_the_training_writes_the_next_ones(storage, here, there):
    is_over, seen = threading.Event(), set()

    def train():
        epoch = 1
        while not is_over.is_set():
            epoch += 1
            write_state(here, epoch)

    write_state(here, 1)
    with killed(storage, here) as uploader:
        training = threading.Thread(target=train)
        training.start()
        try:
            for _ in range(40):
                uploader._store()
                shutil.rmtree(there / RUN_ID, ignore_errors=True)
                fetch(storage, there)
                seen.add(check_state(there / RUN_ID, *range(1, 1_000_000)))
        finally:
            is_over.set()
            training.join()
    assert len(seen) > 5


def test_a_run_that_another_machine_trains_is_left_to_it(storage, here, there, lively, capsys):
    with upload(storage, here):
        write_state(here, 1)
        fetch(storage, there)
        assert list_runs(there) == []
        other = create_run_folder(there, make_record(RUN_ID))
        with pytest.raises(BusyError, match=f"another machine trains run {RUN_ID}; repeat the command when it has"):
            train(storage, other, 2)
        shutil.rmtree(other.path)
        waiting = threading.Thread(target=wait_for_like, args=(storage, there))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(30)
    assert not waiting.is_alive()
    fetch(storage, there)
    assert check_state(there / RUN_ID, 1)
    assert f"another machine trains run {RUN_ID}; waiting for it" in capsys.readouterr().out


def test_a_run_whose_owner_is_dead_is_taken_over(storage, here, there):
    with killed(storage, here) as uploader:
        write_state(here, 1)
        uploader._store()
    assert not wait_for_like(storage, there)
    fetch(storage, there)
    train(storage, open_run_folder(there, RUN_ID), 2)
    fetch(storage, here.path.parent)
    assert check_state(here.path, 2)


def test_an_owner_that_lives_after_all_ends_its_training_after_a_step(storage, here, there, monkeypatch, lively):
    def lose():
        with InterruptionWatcher() as watcher:
            monkeypatch.setattr(stored_runs, "_is_trained", lambda *_: False)
            fetch_like(storage, there, is_complete=False)
            train(storage, open_run_folder(there, RUN_ID), 2)
            write_state(here, 3)
            wait_until(lambda: watcher.wants_stop)

    write_state(here, 1)
    lost = f"run {RUN_ID} is trained by another machine now; this training of it ends"
    with pytest.raises(LostRunError, match=lost) as ended:
        train(storage, here, then=lose)
    assert isinstance(ended.value.__cause__, KeyboardInterrupt)
    fetch(storage, here.path.parent)
    assert check_state(here.path, 2)

    # Outside of the loop of epochs nothing is interrupted, and the end of the training says it.
    def take_over():
        fetch(storage, there)
        train(storage, open_run_folder(there, RUN_ID), 4)

    write_state(here, 3)
    with pytest.raises(LostRunError, match=lost):
        train(storage, here, then=take_over)


def test_a_state_that_comes_too_late_changes_nothing(storage, here, there, tmp_path):
    """The storage takes the manifest of an owner so late that another one has trained the run meanwhile."""
    delayed = Storage((tmp_path / "storage").as_uri())
    with killed(delayed, here) as uploader:
        write_state(here, 1)
        uploader._store()
        write, is_late = delayed.write, []

        def write_late(name, content):
            if name.endswith("manifest.json") and not is_late:
                is_late.append(name)
                fetch(storage, there)
                train(storage, open_run_folder(there, RUN_ID), 2, 3)
            write(name, content)

        delayed.write = write_late
        write_state(here, 5)
        uploader._store()
        assert is_late
        with pytest.raises(LostRunError):
            uploader._check_owner()
    fetch(storage, tmp_path / "third")
    assert check_state(tmp_path / "third" / RUN_ID, 3)
    # The folder here is given up for the state of the last owner.
    with pytest.raises(BusyError, match=f"another machine has trained run {RUN_ID} since; repeat the command"):
        train(storage, here, 6)
    fetch(storage, here.path.parent)
    assert check_state(here.path, 3)


def test_an_interrupted_run_that_another_machine_completed_comes_as_complete(storage, here, there):
    train(storage, here, 1)
    fetch(storage, there)
    other = open_run_folder(there, RUN_ID)
    train(storage, other, 2, then=lambda: other.complete(make_result(other.record)))
    fetch_like(storage, here.path.parent, is_complete=False)
    assert open_run_folder(here.path.parent, RUN_ID).result == other.result


def test_a_run_that_was_completed_while_the_storage_was_away_is_stored_later(storage, here, there, monkeypatch):
    monkeypatch.setattr(stored_runs, "PATIENCE_S", 0.05)

    def complete_alone():
        here.complete(make_result(here.record))
        monkeypatch.setattr(storage, "write", refuse)

    with pytest.raises(StorageError, match="the next run like it stores it"):
        train(storage, here, 1, then=complete_alone)
    monkeypatch.undo()
    fetch(storage, there)
    assert not (there / RUN_ID / RESULT_FILE).exists()
    StoredRuns(storage, here.path.parent).store_complete(lambda _: True)
    fetch(storage, there)
    assert (there / RUN_ID / RESULT_FILE).is_file()


@pytest.mark.parametrize("name", ["heartbeat", "manifest.json"])
def test_a_machine_that_dies_as_it_becomes_owner_keeps_what_it_has(storage, here, monkeypatch, name):
    train(storage, here, 1)
    write_state(here, 9)  # without a storage
    write = storage.write

    def write_and_die(place, content):
        write(place, content)
        if place.endswith(name):
            raise StorageError("the answer was lost")

    monkeypatch.setattr(storage, "write", write_and_die)
    with pytest.raises(StorageError, match="the answer was lost"):
        train(storage, here)
    monkeypatch.setattr(storage, "write", write)
    fetch(storage, here.path.parent)
    assert check_state(here.path, 9)


def test_a_full_disk_ends_no_storing(storage, here, there, monkeypatch, capsys, lively):
    said = []

    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with upload(storage, here):
        with monkeypatch.context() as patch:
            patch.setattr(stored_runs, "_copy", fill)
            write_state(here, 1)
            wait_until(lambda: is_said(capsys, said, "the training continues, its state is stored later"))
        write_state(here, 2)
        wait_until(lambda: any(file.read_bytes()[:3] == b"2 1" for file in find_stored(storage)))


def test_two_owners_never_leave_a_state_that_is_not_whole(storage, here, there, tmp_path, monkeypatch, lively):
    """Each takes the run over while the other one uploads."""
    monkeypatch.setattr(stored_runs, "_is_trained", lambda *_: False)
    train(storage, here, 1)
    fetch(storage, there)
    ended, is_over = [], threading.Event()

    def fight(folder):
        while not is_over.is_set():
            try:
                fetch(storage, folder.path.parent)
                with upload(storage, folder):
                    for epoch in range(2, 30):
                        write_state(folder, epoch)
                        time.sleep(0.002)
            except (LostRunError, BusyError) as error:
                ended.append(error)

    fighters = [threading.Thread(target=fight, args=(one,)) for one in (here, open_run_folder(there, RUN_ID))]
    for fighter in fighters:
        fighter.start()
    wait_until(lambda: len(ended) > 10)
    is_over.set()
    for fighter in fighters:
        fighter.join()
    fetch(storage, tmp_path / "third")
    assert check_state(tmp_path / "third" / RUN_ID, *range(1, 30))


def test_what_was_fetched_is_fetched_again_once_there_is_a_newer_state_or_an_end(storage, here, there):
    with killed(storage, here) as uploader:
        write_state(here, 1)
        uploader._store()
        fetch(storage, there)
        write_state(here, 2)
        uploader._store()
        fetch(storage, there)
        assert check_state(there / RUN_ID, 2)
        here.complete(make_result(here.record))
        uploader._store()
    fetch(storage, there)
    assert open_run_folder(there, RUN_ID).result == here.result


def test_a_complete_run_comes_with_its_result_and_without_its_state(storage, here, there):
    train(storage, here, 1, then=lambda: here.complete(make_result(here.record)))
    fetch_like(storage, there, is_complete=False)
    assert list_runs(there) == []
    fetch(storage, there)
    assert open_run_folder(there, RUN_ID).result == here.result
    assert not (there / RUN_ID / STATE_FILE).exists()


def test_what_this_machine_trained_last_or_to_its_end_stays(storage, here):
    train(storage, here, 1)
    write_state(here, 2)  # without a storage
    before = read_run(here.path)
    fetch(storage, here.path.parent)
    assert read_run(here.path) == before
    here.complete(make_result(here.record))
    (here.path / OWNERS_FILE).unlink()
    fetch(storage, here.path.parent)
    assert (here.path / RESULT_FILE).is_file()


def test_runs_with_other_settings_or_images_do_not_come(storage, here, there):
    train(storage, here, 1)
    other = make_record("2" * 32, seed=5)
    StoredRuns(storage, there).fetch_like(other, is_offline=True, is_complete=False)
    StoredRuns(storage, there).fetch_like(make_record(), is_offline=False, is_complete=False)
    assert list_runs(there) == []
    StoredRuns(storage, there).fetch(here.record.config.recipe, "2" * 32)
    assert list_runs(there) == []
    StoredRuns(storage, there).fetch(here.record.config.recipe, RUN_ID)
    check_state(there / RUN_ID, 1)


def test_a_storage_that_is_away_for_a_while_stops_nothing(storage, here, there, monkeypatch, capsys, lively):
    said = []
    with upload(storage, here):
        with monkeypatch.context() as patch:
            patch.setattr(storage, "list_folders", refuse)
            write_state(here, 1)
            wait_until(lambda: is_said(capsys, said, "the training continues, its state is stored later"))
        write_state(here, 2)
    assert "".join(said) == "the training continues, its state is stored later: away\n"
    fetch(storage, there)
    assert check_state(there / RUN_ID, 2)


def test_a_storage_that_stays_away_at_the_end_is_an_error_that_says_where_the_run_is(storage, here, monkeypatch):
    monkeypatch.setattr(stored_runs, "PATIENCE_S", 0.05)
    with pytest.raises(StorageError, match=f"the last state of run {RUN_ID} is in {here.path} only; .*: away"):
        train(storage, here, 1, then=lambda: monkeypatch.setattr(storage, "write", refuse))


def test_an_interrupted_training_stores_its_last_state_and_a_failing_storage_hides_no_other_error(
    storage, here, there, monkeypatch, capsys
):
    with pytest.raises(KeyboardInterrupt):
        train(storage, here, 1, then=interrupt)
    fetch(storage, there)
    assert check_state(there / RUN_ID, 1)

    def break_and_interrupt():
        monkeypatch.setattr(storage, "write", refuse)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(storage, here, 2, then=break_and_interrupt)
    assert f"the last state of run {RUN_ID} is in {here.path} only: away" in capsys.readouterr().out


def test_a_complete_run_that_was_not_stored_is_stored_later(storage, here, there):
    (here.path / "journal.jsonl").touch()
    here.complete(make_result(here.record))
    runs = StoredRuns(storage, here.path.parent)
    for _ in range(2):
        runs.store_complete(lambda record: record.config.seed == here.record.config.seed)
    fetch(storage, there)
    assert open_run_folder(there, RUN_ID).result == here.result


def test_a_storage_that_removes_nothing_keeps_a_run_all_the_same(storage, here, there, monkeypatch):
    train(storage, here, 1)
    monkeypatch.setattr(storage, "remove", refuse)
    train(storage, here, 2, 3)
    fetch(storage, there)
    assert check_state(there / RUN_ID, 3)


def test_files_that_are_none_of_a_training_are_left_out(storage, here, there):
    (here.path / ".hidden").mkdir()
    (here.path / ".hidden" / "file").write_bytes(b"hidden")
    (here.path / "notes (1).txt").write_bytes(b"odd")
    (here.path / "dangling").symlink_to("nowhere")
    train(storage, here, 1)
    fetch(storage, there)
    assert sorted(read_run(there / RUN_ID)) == sorted(
        ["best-0001.safetensors", "journal.jsonl", "last.safetensors", "run.json", "state.pt"]
    )


def test_what_killed_processes_left_is_removed(storage, here, there):
    train(storage, here, 1)
    for name in (f".storing-{RUN_ID}", ".fetched-" + "2" * 32):
        (there / name).mkdir()
        (there / name / "file").write_bytes(b"left")
    fetch(storage, there)
    assert [entry.name for entry in there.iterdir() if entry.is_dir()] == [RUN_ID]


def test_a_removed_run_does_not_come_back(storage, here, there):
    train(storage, here, 1)
    StoredRuns(storage, there).remove(here.record, is_offline=True)
    fetch(storage, there)
    assert list_runs(there) == []


@pytest.mark.parametrize("path", ["../../outside", "/etc/passwd", "a/../../b", ".hidden", "a//b", ""])
def test_a_manifest_that_leads_out_of_the_folder_is_left_out(storage, here, there, tmp_path, path, capsys):
    train(storage, here, 1)
    [manifest] = (tmp_path / "storage").rglob("manifest.json")
    manifest.write_text(manifest.read_text().replace('"last.safetensors"', f'"{path}"'))
    fetch(storage, there)
    assert "is damaged or of another version, and left out" in capsys.readouterr().out
    assert list(there.rglob("*.safetensors")) == []


def test_a_damaged_file_is_named_and_the_folder_here_stays(storage, here, there, tmp_path):
    train(storage, here, 1)
    [file] = [file for file in (tmp_path / "storage").rglob("*") if file.is_file() and b"last" in file.read_bytes()[:4]]
    file.write_bytes(b"something else")
    with pytest.raises(StorageError, match=rf"{file.name} \(last.safetensors\) is not what was stored"):
        fetch(storage, there)
    assert list_runs(there) == []
