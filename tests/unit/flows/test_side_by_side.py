"""Runs of a study side by side: order, what waits for what, failures, signals, lines. Who trains is this module's."""

import os
import signal
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from threading import Event, Lock

import psutil
import pytest

from flows.experiments.inputs import open_inputs
from flows.jobs.study import TrainAll
from flows.operations.run_processes import RunProcesses
from flows.operations.runner import RunRequest
from flows.operations.side_by_side import train_side_by_side
from flows.printing.summaries import Outcome
from model_code.data.add import add_dataset
from model_code.errors import LostRunError, TrainingError, UsageError
from model_code.recipes.catalog import build_config
from model_code.settings import load_settings
from model_code.tracking.provenance import hash_code
from model_code.training.run_folder import JOURNAL_FILE, RunResult, create_run_folder
from serving.bundle.processors import count_cpus
from serving.bundle.store import hash_file

PLAIN, OTHER, SOURCE, TUNED = (
    "resnet18_cifar10_exp",
    "resnet18_cifar10_exp2",
    "simsiam_cifar10",
    "simsiam_cifar10_finetuned",
)
LONGEST_S = 20


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    settings = load_settings()
    add_dataset("shapes", cache_dir=settings.cache_dir, data_dir=settings.data_dir, image_size=16, progress=False)
    return tmp_path


def build(*names, **changes):
    return [build_config(name, changes={"dataset": "shapes", "network": "resnet18"} | changes) for name in names]


def finish(request):
    """Make the folder of a finished run, as an offline training leaves it; return its outcome."""
    config = request.config
    record = open_inputs(config, is_offline=True).record.model_copy(update={"run_id": uuid.uuid4().hex})
    folder = create_run_folder(load_settings().checkpoints_dir, record)
    (folder.path / JOURNAL_FILE).touch()
    weights = folder.path / "best.safetensors"
    weights.write_bytes(config.recipe.encode())
    result = RunResult(
        run_id=record.run_id,
        kind=config.kind,
        recipe=config.recipe,
        profile=config.profile,
        dataset=config.dataset,
        metrics={"validation/best_accuracy": 0.5},
        best_weights=weights.name,
        weights_sha256=hash_file(weights),
        seconds=1.0,
        code_sha256=hash_code(),
    )
    folder.complete(result)
    return Outcome(recipe=config.recipe, seed=config.seed, result=result)


class Here:
    """Trains nothing, but finishes each run; of some it waits until another one has begun.

    Attributes:
        begun: Recipes in the order in which they began.
        most: Most runs at the same time.
    """

    at_once, is_local = 2, True

    def __init__(self, waits=None, errors=None):
        self.waits, self.errors = waits or {}, errors or {}
        self.begun, self.most, self._now, self._lock = [], 0, 0, Lock()
        self.events, self.is_closed, self.interrupted = {}, False, Event()

    def describe(self):
        return "in this process"

    def get_event(self, recipe):
        with self._lock:
            return self.events.setdefault(recipe, Event())

    def train(self, request, say):
        recipe = request.config.recipe
        with self._lock:
            self.begun.append(recipe)
            self._now += 1
            self.most = max(self.most, self._now)
        self.get_event(recipe).set()
        try:
            say(f"{recipe}  seed {request.config.seed}  run 1\n")
            say("\n")
            say("  epoch 1/1\n")
            if recipe in self.waits:
                assert self.get_event(self.waits[recipe]).wait(LONGEST_S)
            if recipe in self.errors:
                return self.errors[recipe](self)
            return finish(request)
        finally:
            with self._lock:
                self._now -= 1

    def interrupt(self):
        self.interrupted.set()

    def close(self):
        self.is_closed = True


class Device:
    """Counts how often a device is held."""

    def __init__(self):
        self.held = []

    @contextmanager
    def hold(self, _locks_dir, device):
        self.held.append(device)
        yield


def fail(_runner):
    raise TrainingError("the process was ended")


def test_what_starts_from_another_run_waits_for_it_and_the_order_stays(capsys):
    device, runner = Device(), Here(waits={SOURCE: OTHER, PLAIN: OTHER})
    configs = build(SOURCE, TUNED, PLAIN, OTHER)
    # The third place is free only when one of the first two that began has ended: both wait for the last.
    runner.at_once = 3
    outcomes = train_side_by_side(configs, runner, device.hold)
    assert [outcome.recipe for outcome in outcomes] == [SOURCE, TUNED, PLAIN, OTHER]
    assert all(outcome.result is not None for outcome in outcomes), outcomes
    assert set(runner.begun[:3]) == {SOURCE, PLAIN, OTHER}
    assert runner.begun[3] == TUNED
    assert (len(device.held), runner.is_closed) == (1, True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "up to 3 runs at once, in this process"
    assert {line for line in lines if line.startswith("[")} == {
        f"[1/4] {SOURCE}",
        f"[2/4] {TUNED}",
        f"[3/4] {PLAIN}",
        f"[4/4] {OTHER}",
    }
    assert [line for line in lines if line.startswith(f"{PLAIN} ")] == [
        f"{PLAIN} seed 0 | seed 0  run 1",
        f"{PLAIN} seed 0 | epoch 1/1",
    ]


def test_never_more_than_wanted_are_trained_and_equal_runs_once():
    runner = Here(waits={PLAIN: OTHER})
    configs = build(PLAIN, PLAIN, OTHER) + build(PLAIN, OTHER, seed=1)
    outcomes = train_side_by_side(configs, runner, Device().hold)
    assert [outcome.was_cached for outcome in outcomes] == [False, True, False, False, False]
    assert outcomes[0].result == outcomes[1].result
    assert (len(runner.begun), runner.most) == (4, 2)


def test_kept_runs_need_no_device_and_no_runner(capsys):
    configs = build(PLAIN, OTHER)
    train_side_by_side(configs, Here(), Device().hold)
    device, runner = Device(), Here()
    outcomes = train_side_by_side(configs, runner, device.hold)
    assert [outcome.was_cached for outcome in outcomes] == [True, True]
    assert (runner.begun, device.held) == ([], [])
    assert capsys.readouterr().out.count("kept from run") == 2


def test_of_a_run_whose_process_died_the_command_that_resumes_it_is_told():
    def die(*_):
        raise LostRunError("the process was ended")

    [ended] = train_side_by_side(build(PLAIN), Here(errors={PLAIN: die}), Device().hold)
    assert ended.error == "the process was ended; the same command resumes it"


def test_one_that_fails_does_not_stop_the_others_but_what_starts_from_it(capsys):
    runner = Here(errors={SOURCE: fail})
    outcomes = train_side_by_side(build(SOURCE, TUNED, PLAIN), runner, Device().hold)
    ended, unstarted, trained = outcomes
    assert ended.error == "the process was ended"
    assert f"{TUNED} starts from {SOURCE}, which has no finished" in unstarted.error
    assert trained.result is not None
    assert f"{SOURCE}  failed: the process was ended" in capsys.readouterr().out


def test_a_signal_ends_every_run_and_begins_no_other(capsys):
    def stop(runner):
        os.kill(os.getpid(), signal.SIGINT)
        assert runner.interrupted.wait(LONGEST_S)

    def wait(runner):
        assert runner.interrupted.wait(LONGEST_S)

    runner = Here(waits={PLAIN: OTHER}, errors={PLAIN: stop, OTHER: wait})
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train_side_by_side(build(SOURCE, PLAIN, OTHER, TUNED), runner, Device().hold)
    assert (sorted(runner.begun), runner.is_closed) == (sorted([SOURCE, PLAIN, OTHER]), True)
    assert signal.getsignal(signal.SIGINT) is before
    *lines, last = capsys.readouterr().out.splitlines()
    told = "stopping each training after its step"
    assert lines.count(told) == 1
    # What runs have said until then may still follow.
    assert not any(line.startswith("[") for line in lines[lines.index(told) :])
    assert last == "interrupted with 3 of 4 runs to go: 1 complete"


@pytest.mark.parametrize("at_once", [0, -1, "two"])
def test_a_wrong_number_is_one_line(at_once):
    with pytest.raises(UsageError, match=rf"^--at-once={at_once}: must be [^\n]*$"):
        TrainAll.make(at_once=at_once)


def test_runs_share_the_processors_unless_the_environment_says_how_many(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert RunProcesses(count_cpus()).describe() == "each in a process of its own with 1 thread"
    assert RunProcesses(8 * count_cpus()).describe() == "each in a process of its own with 1 thread"
    monkeypatch.setattr("flows.operations.run_processes.count_cpus", lambda: 16)
    assert RunProcesses(3).describe() == "each in a process of its own with 5 threads"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert RunProcesses(3).describe() == "each in a process of its own with 2 threads"


def wait_for_process():
    end_s = time.monotonic() + LONGEST_S
    while time.monotonic() < end_s:
        for child in psutil.Process().children():
            with suppress(psutil.Error):  # children of other tests may end at this moment
                if f"{PLAIN}-seed-0" in child.cmdline():
                    return child
        time.sleep(0.02)
    raise AssertionError("no process was started")


def test_a_process_that_is_killed_is_an_error_and_after_an_interruption_none_begins():
    runner, request = RunProcesses(1), RunRequest(config=build(PLAIN)[0], is_offline=True)
    with ThreadPoolExecutor(1) as pool, closing(runner):
        killed = pool.submit(runner.train, request, print)
        wait_for_process().kill()
        with pytest.raises(TrainingError, match=r"^the process of seed 0 was ended by SIGKILL"):
            killed.result(LONGEST_S)
        interrupted = pool.submit(runner.train, request, print)
        process = wait_for_process()
        runner.interrupt()
        assert interrupted.result(LONGEST_S) is None
        assert not process.is_running()
    assert runner.train(request, print) is None


def test_a_dry_run_says_that_its_times_are_of_one_after_another(capsys):
    TrainAll.make(dry_run=True, only=(PLAIN,), seeds=(0,), at_once=2).run()
    assert "at once" not in capsys.readouterr().out, "there is only one"
    TrainAll.make(dry_run=True, only=(f"{PLAIN}[23]",), at_once=2).run()
    assert "the times below are of one run after another: 2 at once share the device" in capsys.readouterr().out
