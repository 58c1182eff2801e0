import contextlib
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch

from model_code.training.interruption import InterruptionWatcher, stop_after_step
from model_code.training.processes import ALONE
from model_code.training.results import Callback
from model_code.training.supervised import fit
from tests.unit.training.small_runs import make_config, make_images


class Signaller(Callback):
    """Sends this process a signal in the middle of step 2 of epoch 2 and notes what is done after it."""

    def __init__(self, signum):
        self.signum = signum
        self.seen = []

    def on_step(self, epoch, step, steps, loss):
        if (epoch, step) == (2, 2) and self.signum:
            signal.raise_signal(self.signum)
        self.seen.append((epoch, step))


def raise_first():
    """Send SIGINT to a watcher and return once it knows: two that fall together would be one."""
    handler = signal.getsignal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    while signal.getsignal(signal.SIGINT) == handler:
        time.sleep(0.01)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step(tmp_path, signum, capsys):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    signaller = Signaller(signum)
    with pytest.raises(KeyboardInterrupt), InterruptionWatcher() as watcher:
        fit(make_config(), make_images(), tmp_path, ALONE, [signaller, watcher])
    assert signaller.seen[-1] == (2, 2)
    assert (tmp_path / "state.pt").exists()
    assert capsys.readouterr().out.count("stopping after this step\n") == 1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_another_thread_ends_the_run_after_its_step_and_signals_still_end_it_at_once(capsys):
    acted = []

    def interrupt():
        raise_first()  # it waits as well
        try:
            signal.raise_signal(signal.SIGINT)
            time.sleep(30)  # Python may run the handler a moment later
        except KeyboardInterrupt:
            acted.append(1)

    def train():
        with InterruptionWatcher() as watcher:
            thread = threading.Thread(target=stop_after_step)
            thread.start()
            thread.join()
            assert watcher.wants_stop
            interrupt()

    with pytest.raises(KeyboardInterrupt):
        train()
    assert acted == [1]
    assert capsys.readouterr().out == "stopping after this step\n"
    stop_after_step()  # no run is left


def test_a_run_that_was_stopped_goes_on_with_the_next_step(tmp_path):
    config, images = make_config(ema_decay=0.9, schedule="cosine"), make_images()
    whole = fit(config, images, tmp_path / "whole", ALONE)
    signaller = Signaller(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), InterruptionWatcher() as watcher:
        fit(config, images, tmp_path / "parts", ALONE, [signaller, watcher])
    torch.rand(7)
    later = Signaller(None)
    parts = fit(config, images, tmp_path / "parts", ALONE, [later])
    assert signaller.seen + later.seen == [(epoch, step) for epoch in range(1, 5) for step in range(1, 4)]
    for learned, expected in zip(parts.history, whole.history, strict=True):
        assert replace(learned, seconds=0, pictures_per_s=0) == replace(expected, seconds=0, pictures_per_s=0)
    for name in (parts.best_weights.name, "last.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert whole.seconds_before == 0
    assert parts.history[0].seconds < parts.seconds_before < parts.history[0].seconds + parts.history[1].seconds


class StopAt(Callback):
    """Wants to stop after every step of the first epoch, one run at a time."""

    def __init__(self):
        self.seen = []

    def on_step(self, epoch, step, steps, loss):
        self.seen.append((epoch, step))
        self.wants_stop = True

    def on_epoch_end(self, metrics):
        self.wants_stop = True


def test_a_run_stopped_after_every_step_ends_like_one_that_was_not(tmp_path):
    config, images = make_config(epochs=2), make_images()
    whole = fit(config, images, tmp_path / "whole", ALONE)
    seen, stops = [], 0
    while True:
        stopper = StopAt()
        try:
            parts = fit(config, images, tmp_path / "parts", ALONE, [stopper])
            break
        except KeyboardInterrupt:
            stops += 1
        finally:
            seen += stopper.seen
    assert seen == [(epoch, step) for epoch in (1, 2) for step in (1, 2, 3)]
    assert stops == len(seen) + 2  # after each step, and after each epoch
    assert parts.last_weights.read_bytes() == whole.last_weights.read_bytes()


@pytest.fixture
def default_handler():
    """A shell that starts a job in the background lets it ignore SIGINT: that is not what is tested here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_handler")
def test_a_second_signal_acts_at_once():
    heard = []
    with contextlib.suppress(KeyboardInterrupt), InterruptionWatcher():
        raise_first()
        heard.append("first")
        signal.raise_signal(signal.SIGINT)
        time.sleep(30)
        heard.append("second")
    assert heard == ["first"]


def test_a_signal_outside_the_steps_is_not_lost():
    with pytest.raises(KeyboardInterrupt), InterruptionWatcher():
        signal.raise_signal(signal.SIGTERM)
