import multiprocessing
import random
import shutil
import signal
import threading
import time

import pytest
import torch

from model_code.errors import DiskFullError
from model_code.training import checkpoint_writer, checkpoints, epoch_loop
from model_code.training.checkpoint_writer import CheckpointWriter, Snapshot, copy_tensors
from model_code.training.processes import ALONE
from model_code.training.results import Callback
from model_code.training.supervised import fit
from tests.unit.training.small_runs import CPU, TinyNetwork, make_config, make_images, tiny_network_entered

SHA256 = "a" * 64


def make_snapshot(epoch, best_epoch, value):
    """Return a snapshot whose weights all have one value."""
    weights = {"weight": torch.full((3,), float(value))}
    state = checkpoints.TrainingState(
        config_sha256=SHA256,
        epoch=epoch,
        best_epoch=best_epoch,
        network=weights,
        average=None,
        optimizer={},
        schedule={},
        generator=torch.Generator().get_state(),
        torch_rng=torch.get_rng_state(),
        history=[],
    )
    return Snapshot(state, weights, weights if epoch == best_epoch else {"weight": torch.full((3,), -1.0)})


def list_files(folder):
    return sorted(file.name for file in folder.iterdir())


def test_the_first_is_written_at_once_the_next_after_the_interval_and_the_newest_at_the_end(tmp_path):
    writer = CheckpointWriter(tmp_path, CPU, interval_s=3600)
    writer.keep(make_snapshot(1, 1, 1))
    writer._join()
    assert checkpoints.load_state(tmp_path, SHA256).epoch == 1
    for epoch in (2, 3):
        writer.keep(make_snapshot(epoch, epoch, epoch))
    writer._join()
    assert checkpoints.load_state(tmp_path, SHA256).epoch == 1
    writer.close()
    state = checkpoints.load_state(tmp_path, SHA256)
    assert (state.epoch, state.best_epoch) == (3, 3)
    assert list_files(tmp_path) == ["best-0003.safetensors", "last.safetensors", "state.pt"]


def test_what_waits_is_written_once_the_interval_is_over(tmp_path):
    writer = CheckpointWriter(tmp_path, CPU, interval_s=0.2)
    writer.keep(make_snapshot(1, 1, 1))
    writer.keep(make_snapshot(10, 10, 10))
    time.sleep(0.3)
    writer.write_due()
    writer._join()
    assert checkpoints.load_state(tmp_path, SHA256).epoch == 10


def test_a_best_epoch_whose_snapshot_was_passed_over_is_written_with_a_later_one(tmp_path):
    writer = CheckpointWriter(tmp_path, CPU, interval_s=3600)
    writer.keep(make_snapshot(1, 1, 1))
    writer.keep(make_snapshot(2, 2, 2))
    later = make_snapshot(3, 2, 3)
    writer.keep(Snapshot(later.state, later.last, {"weight": torch.full((3,), 2.0)}))
    writer.close()
    best = checkpoints.safetensors.torch.load_file(checkpoints.best_file(tmp_path, 2))
    assert best["weight"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("dies_after", ["best", "last", "state"])
def test_files_belong_together_wherever_writing_ends(tmp_path, monkeypatch, dies_after):
    first = CheckpointWriter(tmp_path, CPU, interval_s=0)
    first.keep(make_snapshot(1, 1, 1))
    first.close()
    written, write = [], checkpoints.write_atomically

    def die(file, content):
        written.append(file.name.partition(".")[0].partition("-")[0])
        write(file, content)
        if written[-1] == dies_after:
            raise DiskFullError("no space")

    monkeypatch.setattr(checkpoints, "write_atomically", die)
    writer = CheckpointWriter(tmp_path, CPU, 1, interval_s=0)
    writer.keep(make_snapshot(2, 2, 2))
    with pytest.raises(DiskFullError):
        writer.close()
    assert written == ["best", "last", "state"][: len(written)]
    state = checkpoints.load_state(tmp_path, SHA256)
    assert checkpoints.best_file(tmp_path, state.best_epoch).exists()


class Mover(Callback):
    """Notes at each epoch's end whether the thread still writes; the next epoch then moves the weights."""

    def __init__(self, gate):
        self.gate = gate

    def on_step(self, epoch, step, steps, loss):
        if (epoch, step) == (2, 3):
            self.gate.set()


def test_weights_that_train_on_while_a_thread_writes_are_those_of_their_epoch(tmp_path, monkeypatch):
    gate, seen = threading.Event(), []
    save = checkpoints.save_weights

    def wait(weights, file):
        assert gate.wait(60)
        seen.append((file.name, copy_tensors(weights)))
        save(weights, file)

    config, images = make_config(epochs=1), make_images()
    fit(config, images, tmp_path / "one", ALONE)
    monkeypatch.setattr(checkpoints, "save_weights", wait)
    fit(make_config(epochs=2), images, tmp_path / "two", ALONE, [Mover(gate)])
    expected = TinyNetwork(4)
    checkpoints.load_weights(expected, tmp_path / "one" / checkpoints.LAST_FILE)
    name, first = seen[0]
    assert name == "best-0001.safetensors"
    assert all(torch.equal(first[key], value) for key, value in expected.state_dict().items())


def test_short_epochs_do_not_write_each(tmp_path, monkeypatch):
    saved = []
    save = checkpoints.save_state
    monkeypatch.setattr(checkpoints, "save_state", lambda *given: saved.append(given[1].epoch) or save(*given))
    monkeypatch.setattr(checkpoint_writer, "SECONDS_BETWEEN_CHECKPOINTS", 3600)
    fit(make_config(epochs=6), make_images(), tmp_path, ALONE)
    assert saved == [1, 6]


@pytest.mark.parametrize("fails", ["always", "every third"])
def test_without_memory_for_copies_the_same_files_are_written(tmp_path, monkeypatch, fails):
    config, images = make_config(epochs=7, ema_decay=0.9, schedule="cosine"), make_images()
    whole = fit(config, images, tmp_path / "whole", ALONE)
    calls = []

    def fail(tensors):
        calls.append(1)
        if fails == "always" or len(calls) % 3 == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return copy_tensors(tensors)

    monkeypatch.setattr(epoch_loop, "copy_tensors", fail)
    without = fit(config, images, tmp_path / "without", ALONE)
    assert len(calls) == 7
    assert without.best_epoch == whole.best_epoch
    assert list_files(tmp_path / "without") == list_files(tmp_path / "whole")
    for name in (whole.best_weights.name, checkpoints.LAST_FILE):
        assert (tmp_path / "without" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert fit(config, images, tmp_path / "without", ALONE).history == without.history


class Slow(Callback):
    """Tells of the first step and gives the thread time to write."""

    def __init__(self, begun):
        self.begun = begun

    def on_step(self, epoch, step, steps, loss):
        self.begun.set()

    def on_epoch_end(self, metrics):
        time.sleep(0.02)


def _train_slowly(config, images, folder, begun):
    checkpoint_writer.SECONDS_BETWEEN_CHECKPOINTS = 0.05
    with tiny_network_entered():
        fit(config, images, folder, ALONE, [Slow(begun)])


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_like_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "SECONDS_BETWEEN_CHECKPOINTS", 0.05)
    config, images = make_config(epochs=60, ema_decay=0.9, schedule="cosine"), make_images()
    whole = fit(config, images, tmp_path / "whole", ALONE)
    # A copy of this process might lack threads that PyTorch believes it has.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    draw, exits, resumed = random.Random(0), [], set()
    while exits.count(-signal.SIGKILL) < 20:
        begun = processes.Event()
        child = processes.Process(target=_train_slowly, args=(config, images, tmp_path / "killed", begun))
        child.start()
        assert begun.wait(60)
        time.sleep(draw.uniform(0.05, 0.5))
        child.kill()
        child.join()
        exits.append(child.exitcode)
        assert exits[-1] in (0, -signal.SIGKILL)
        state = checkpoints.load_state(tmp_path / "killed", config.sha256())
        if state is not None:
            resumed.add(state.epoch)
            assert checkpoints.best_file(tmp_path / "killed", state.best_epoch).exists()
            if state.epoch == config.epochs and exits.count(-signal.SIGKILL) < 20:
                shutil.rmtree(tmp_path / "killed")
    killed = fit(config, images, tmp_path / "killed", ALONE)
    assert len(resumed) > 3
    assert killed.best_epoch == whole.best_epoch
    for name in (whole.best_weights.name, checkpoints.LAST_FILE):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
