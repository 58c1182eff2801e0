import contextlib
import os
import signal

import pytest

from model_code.training.interruption import InterruptionWatcher
from model_code.training.results import Callback
from model_code.training.supervised import fit
from tests.unit.training.small_runs import CPU, make_config, make_pictures


class Signaller(Callback):
    """Sends this process a signal in the middle of step 2 of epoch 2 and notes what is done after it."""

    def __init__(self, signum):
        self.signum = signum
        self.seen = []

    def on_step(self, epoch, step, steps, loss):
        if (epoch, step) == (2, 2):
            os.kill(os.getpid(), self.signum)
        self.seen.append((epoch, step))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step(tmp_path, signum, capsys):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    signaller = Signaller(signum)
    with pytest.raises(KeyboardInterrupt), InterruptionWatcher() as watcher:
        fit(make_config(), make_pictures(), tmp_path, CPU, [signaller, watcher])
    assert signaller.seen[-1] == (2, 2)
    assert (tmp_path / "state.pt").exists()
    assert "the same command goes on" in capsys.readouterr().out
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


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
        os.kill(os.getpid(), signal.SIGINT)
        heard.append("first")
        os.kill(os.getpid(), signal.SIGINT)
        heard.append("second")
    assert heard == ["first"]


def test_a_signal_outside_the_steps_is_not_lost():
    with pytest.raises(KeyboardInterrupt), InterruptionWatcher():
        os.kill(os.getpid(), signal.SIGTERM)
