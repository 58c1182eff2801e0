"""The sweep command: what it refuses, what ends a trial early."""

import os
import shlex
import signal
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from threading import Barrier, Event, Lock
from types import SimpleNamespace

import pytest

from flows.jobs import sweeps
from flows.jobs.recipes import NewRecipe
from flows.jobs.sweeps import RunSweep
from flows.operations import sweep as operation
from flows.operations import trial as trial_
from flows.operations.runner import RunRequest, TrialRequest
from flows.operations.sweep import run_sweep
from flows.operations.trial import ACCURACY, Curve, train_requested, train_trial
from flows.printing.summaries import Outcome
from model_code.data.add import add_dataset
from model_code.disk import hold_lock, is_locked
from model_code.errors import DarkroomError, NodeError, PrunedError, TrainingError
from model_code.recipes.catalog import build_config, get_recipe
from model_code.settings import load_settings
from model_code.sweeps.trials import Sweep, get_accuracy
from model_code.training.results import EpochMetrics

LONGEST_S = 20


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARKROOM_HOME", str(folder))
        settings = load_settings()
        add_dataset("shapes", cache_dir=settings.cache_dir, data_dir=settings.data_dir, progress=False)
        yield folder


def make_sweep(folder, *, space="weight_decay = {low = 0.001, high = 0.01}", recipe="fastnet_cifar10", **given):
    file = folder / "space.toml"
    file.write_text(space, encoding="utf-8")
    return RunSweep.make(**{"recipe": recipe, "space_file": file, "dataset": "shapes", "trials": 2, **given})


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"trials": None}, "--trials N, --hours H"),
        ({"trials": 0}, "--trials=0"),
        ({"hours": -1.0}, "--hours=-1.0"),
        ({"name": "../up"}, "--name=../up"),
        ({"space": "weight_decay = 1"}, "weight_decay: 1 is one value"),
        ({"space": "weigth_decay = [1, 2]"}, "did you mean weight_decay"),
        ({"settings": ("weight_decay=0.1",)}, "weight_decay: given, and searched by"),
        ({"epochs": 2, "space": "epochs = [1, 2]"}, "epochs: given, and searched by"),
        ({"recipe": "resnet50_imagenet_untrained", "space": "batch_size = [10, 20]"}, "has no validation split"),
        ({"dataset": "flowers"}, "flowers"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(home, tmp_path, given, reason):
    with pytest.raises(DarkroomError) as refusal:
        make_sweep(tmp_path, **given).check()
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_without_optuna_a_line_says_what_installs_it(home, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "find_spec", lambda name: None if name == "optuna" else find_spec(name))
    with pytest.raises(DarkroomError, match=r'pip install "darkroom\[sweep\]"$'):
        make_sweep(tmp_path).check()


def make_epoch(epoch, score):
    return EpochMetrics(epoch, 0.1, 1.0, 10.0, 2.0, 0.1, 2.0, score, score)


@pytest.fixture
def sweep(home, tmp_path):
    job = make_sweep(tmp_path, profile="smoke")
    return Sweep(tmp_path / "sweep", job.training.config, "a" * 64, job.space, prune_after=1)


def test_a_curve_ends_its_trial_where_it_is_behind_but_not_after_the_last_epoch(sweep):
    with sweep.claim(None) as trial:
        whole = Curve(sweep, trial.number, epochs=2)
        whole.on_epoch_end(make_epoch(1, 0.5))
        whole.on_epoch_end(make_epoch(2, 0.6))
        sweep.complete(trial.number, 0.6)
    with sweep.claim(None) as trial:
        Curve(sweep, trial.number, epochs=1).on_epoch_end(make_epoch(1, 0.1))
        with pytest.raises(PrunedError, match="after epoch 1 of 2"):
            Curve(sweep, trial.number, epochs=2).on_epoch_end(make_epoch(1, 0.1))


def test_a_resumed_trial_is_judged_by_the_epochs_before_it_was_killed(sweep):
    with sweep.claim(None) as trial:
        Curve(sweep, trial.number, epochs=3).on_resume((make_epoch(1, 0.5), make_epoch(2, 0.6)))
        assert sweep.trials[0].intermediate_values == {1: 0.5, 2: 0.6}
        sweep.complete(trial.number, 0.6)
    with sweep.claim(None) as trial, pytest.raises(PrunedError):
        Curve(sweep, trial.number, epochs=3).on_resume((make_epoch(1, 0.4), make_epoch(2, 0.1)))


def test_the_best_trial_becomes_a_recipe_by_a_command(home, tmp_path):
    job = make_sweep(tmp_path, seed=3, epochs=2, settings=("label_smoothing=0.1",))
    words = shlex.split(job._name_recipe({"weight_decay": 0.002}))
    assert words[:6] == ["darkroom", "recipes", "new", "fastnet_cifar10_swept", "--from", "fastnet_cifar10"]
    assert {'dataset="shapes"', "label_smoothing=0.1", "epochs=2", "weight_decay=0.002"} <= set(words)


@pytest.mark.parametrize("given", [{}, {"profile": "smoke"}, {"limit_train": 300}, {"settings": ("learning_rate=1",)}])
def test_that_recipe_has_exactly_the_settings_of_the_trial(home, tmp_path, given):
    job = make_sweep(tmp_path, name="small", space="batch_size = [64, 128]", **given)
    values = {"batch_size": 128}
    words = shlex.split(job._name_recipe(values))
    name = f"swept_{'_'.join(given)}"
    NewRecipe.make(name=name, base=words[5], settings=tuple(words[7::2])).run()
    kept, trained = get_recipe(name).build(), job.make_config(values)
    neutral = {"recipe", "profile", "seed"}
    assert kept.model_dump(exclude=neutral) == trained.model_dump(exclude=neutral)
    own = build_config("fastnet_cifar10", given.get("profile", "full"))
    assert trained.learning_rate == (1 if "settings" in given else own.learning_rate), "not scaled with the batch"


@pytest.fixture
def without_mlflow(monkeypatch):
    study = SimpleNamespace(open=lambda *_, **__: "parent")
    monkeypatch.setattr(operation, "open_study", lambda *_: nullcontext(study))


def test_a_sweep_whose_first_trials_all_fail_ends(home, tmp_path, without_mlflow):
    job = make_sweep(tmp_path, profile="smoke", trials=10)
    sweep = Sweep(tmp_path / "sweep", job.training.config, "a" * 64, job.space, prune_after=1)
    with pytest.raises(TrainingError, match=r"^3 trials failed one after the other"):
        run_sweep(sweep, lambda _: job.training.config.model_copy(update={"device": "cuda"}), 10, None)
    assert len(sweep.trials) == 3


def test_a_pruned_trial_is_shown_with_its_best_epoch(sweep):
    with sweep.claim(None) as trial:
        sweep.report(trial.number, 1, 0.5)
        sweep.report(trial.number, 2, 0.25)
        sweep.prune(trial.number)
    assert get_accuracy(sweep.trials[0]) == 0.5


INTERRUPTED = object()  # end of a trial that a real runner answers with None


class Here:
    """Trains nothing: each trial is completed, or does what this module's test says.

    Attributes:
        begun: Trials in the order in which they began.
    """

    is_local = True

    def __init__(self, at_once=1, **ends):
        self.at_once, self.ends = at_once, ends
        self.begun, self.events, self.lock = [], defaultdict(Event), Lock()
        self.is_closed, self.interrupted = False, Event()

    def describe(self):
        return "in this process"

    def train(self, request, say):
        number = request.trial.number
        with self.lock:
            self.begun.append(number)
            began = self.events[number]
        began.set()
        say(f"{request.config.recipe}  seed {request.config.seed}  run 1\n")
        say(f"trial {number} keeps run 1\n")
        sweep = Sweep.join(request.trial.folder, request.trial.prune_after)
        end = self.ends.get(f"trial_{number}", complete)
        ended = end(self, sweep, number) or Outcome(recipe=request.config.recipe, seed=request.config.seed)
        return None if ended is INTERRUPTED else ended

    def wait_for(self, number):
        with self.lock:
            begun = self.events[number]
        assert begun.wait(LONGEST_S)

    def interrupt(self):
        self.interrupted.set()

    def close(self):
        self.is_closed = True


def complete(_runner, sweep, number):
    sweep.report(number, 1, number / 10)
    sweep.complete(number, number / 10)


def die(_runner, _sweep, _number):
    raise TrainingError("the process was ended")


@pytest.fixture
def train_with(home, tmp_path, without_mlflow):
    """Train a sweep by a runner; return it."""

    def train(runner, trials, folder="sweep"):
        job = make_sweep(tmp_path, profile="smoke", trials=trials)
        sweep = Sweep(tmp_path / folder, job.training.config, "a" * 64, job.space, prune_after=1)
        try:
            run_sweep(sweep, job.make_config, trials, None, runner)
        finally:
            assert runner.is_closed
        return sweep

    return train


def list_states(sweep):
    return [trial.state.name for trial in sweep.trials]


def test_trials_are_trained_side_by_side_and_their_lines_say_whose_they_are(train_with, capsys):
    def wait(runner, sweep, number):
        runner.wait_for(3)  # which begins when one of the first two has ended
        complete(runner, sweep, number)

    def prune(_runner, sweep, number):
        sweep.report(number, 1, 0.05)
        sweep.prune(number)

    sweep = train_with(Here(2, trial_0=wait, trial_2=prune), 4)
    assert list_states(sweep) == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "up to 2 trials at once, in this process"
    epochs = sweep.record.config.epochs
    for line in (
        "trial 0 | seed 0  run 1",
        "trial 1 | keeps run 1",
        "trial 1 finished: validation accuracy 0.1000, the best so far",
        f"trial 2 pruned after epoch 1 of {epochs}: validation accuracy 0.0500",
    ):
        assert lines.count(line) == 1, lines
    assert [line for line in lines if line.startswith("trial 3 begins: weight_decay=")]


def test_the_values_that_one_at_once_tries_do_not_depend_on_where_it_was_stopped(train_with):
    runner = Here()
    whole = train_with(runner, 12)
    assert runner.begun == list(range(12))
    with pytest.raises(TrainingError, match=r"^full$"):
        train_with(Here(trial_10=lambda *_: Outcome(recipe="", seed=0, error="full")), 12, "parts")
    assert [trial.params for trial in train_with(Here(), 12, "parts").trials] == [t.params for t in whole.trials]


def test_an_end_that_is_noted_already_stays(sweep):
    with sweep.claim(None) as trial:
        sweep.complete(trial.number, 0.6)
    sweep.fail(trial.number, "late")
    sweep.prune(trial.number)
    sweep.complete(trial.number, 0.1)
    [kept] = sweep.trials
    assert (kept.state.name, kept.value, kept.user_attrs) == ("COMPLETE", 0.6, {})


def test_who_waits_for_the_device_does_not_hold_the_settings(sweep, monkeypatch):
    file = trial_._name_lock(sweep, sweep.record.config)

    @contextmanager
    def hold_device(*_):
        with hold_lock(file, "another command trains an equal trial on its device"):
            pass  # would wait for ever
        yield

    def train(_inputs, _tracking, hold, **_):
        with hold(sweep.folder, "cpu"):
            assert is_locked(file)
        raise TrainingError("enough")

    monkeypatch.setattr(trial_, "open_inputs", lambda _: None)
    monkeypatch.setattr(trial_, "wait_for_run", lambda _: False)
    monkeypatch.setattr(trial_, "find_kept", lambda *_, **__: None)
    monkeypatch.setattr(trial_, "train", train)
    with sweep.claim(None) as trial:
        train_trial(sweep, trial.number, sweep.record.config, None, hold_device)
    assert sweep.trials[0].user_attrs == {"reason": "enough"}


def test_of_equal_trials_at_the_same_moment_one_is_trained(sweep, monkeypatch):
    result, trained = SimpleNamespace(run_id="3" * 32, metrics={ACCURACY: 0.5}), []
    both_looked = Barrier(2)  # before either trains neither has found a finished run

    def train(_inputs, _tracking, hold, **_):
        both_looked.wait(LONGEST_S)
        with hold(sweep.folder, "cpu"):
            trained.append(result)
        return result

    monkeypatch.setattr(trial_, "open_inputs", lambda _: None)
    monkeypatch.setattr(trial_, "wait_for_run", lambda _: False)
    monkeypatch.setattr(trial_, "find_kept", lambda _, **__: trained[0] if trained else None)
    monkeypatch.setattr(trial_, "train", train)
    with sweep.claim(None) as first, sweep.claim(None) as second, ThreadPoolExecutor(2) as threads:
        ends = [
            threads.submit(train_trial, sweep, trial.number, sweep.record.config, None, lambda *_: nullcontext())
            for trial in (first, second)
        ]
    assert [end.result() for end in ends] == [None, None]
    assert len(trained) == 1
    assert [(trial.state.name, trial.value) for trial in sweep.trials] == [("COMPLETE", 0.5)] * 2


def test_a_trial_whose_process_died_is_resumed_once(train_with, capsys):
    def die_once(runner, sweep, number):
        return (die if runner.begun.count(number) == 1 else complete)(runner, sweep, number)

    runner = Here(2, trial_0=die_once, trial_1=die)
    sweep = train_with(runner, 3)
    assert list_states(sweep) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert sorted(runner.begun) == [0, 0, 1, 1, 2]
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("trial 0 ended without a result: the process was ended") == 1
    assert lines.count("trial 1 failed: the process was ended") == 1


def test_three_trials_that_fail_at_the_start_end_the_sweep(train_with):
    with pytest.raises(TrainingError, match=r"^3 trials failed one after the other"):
        train_with(Here(**{f"trial_{number}": die for number in range(10)}), 10)


@pytest.mark.parametrize("is_node", [False, True])
def test_what_would_meet_every_trial_ends_the_sweep_and_no_trial(train_with, is_node):
    def refuse(runner, _sweep, _number):
        runner.wait_for(1)
        if is_node:
            raise NodeError("the disk is full")
        return Outcome(recipe="fastnet_cifar10", seed=0, error="the disk is full")

    def be_interrupted(runner, _sweep, _number):
        assert runner.interrupted.wait(LONGEST_S)
        return INTERRUPTED

    runner = Here(2, trial_0=refuse, trial_1=be_interrupted)
    with pytest.raises(TrainingError, match=r"^the disk is full$"):
        train_with(runner, 5)
    assert sorted(runner.begun) == [0, 1]
    sweep = train_with(Here(2), 5)
    assert list_states(sweep) == ["COMPLETE"] * 5


def test_a_signal_stops_the_trials_and_the_same_command_goes_on(train_with, capsys):
    def stop(runner, _sweep, number):
        if number == 0:
            runner.wait_for(1)
            os.kill(os.getpid(), signal.SIGINT)
        assert runner.interrupted.wait(LONGEST_S)
        return INTERRUPTED

    with pytest.raises(KeyboardInterrupt):
        train_with(Here(2, trial_0=stop, trial_1=stop), 3)
    lines = capsys.readouterr().out
    assert lines.count("stopping each training after its step") == 1
    assert "ended without a result" not in lines
    runner = Here(2)
    assert list_states(train_with(runner, 3)) == ["COMPLETE"] * 3
    assert sorted(runner.begun) == [0, 1, 2]


def test_trials_of_another_process_are_left_to_it_and_taken_when_it_has_died(train_with):
    with ExitStack() as other:

        def let_go(runner, sweep, number):
            complete(runner, sweep, number)
            if number == 3:
                other.close()

        sweep = train_with(Here(), 1)
        number = other.enter_context(Sweep.join(sweep.folder, 1).claim(None)).number
        runner = Here(trial_3=let_go)
        assert list_states(train_with(runner, 5)) == ["COMPLETE"] * 5
    assert (number, runner.begun) == (1, [2, 3, 1, 4])


def request_trial(sweep, number, **changes):
    trial = TrialRequest(folder=sweep.folder, number=number, prune_after=1)
    return RunRequest(config=sweep.record.config.model_copy(update=changes), parent_run_id="parent", trial=trial)


def test_a_request_notes_the_end_of_its_trial_and_what_ends_none_is_its_error(sweep):
    with sweep.claim(None) as trial:
        outcome = train_requested(request_trial(sweep, trial.number, dataset="flowers"), None)
        assert "flowers" in outcome.error
        assert list_states(sweep) == ["RUNNING"]
        assert not train_requested(request_trial(sweep, trial.number, device="cuda"), None).error
        assert list_states(sweep) == ["FAIL"]
        assert "cuda" in sweep.trials[0].user_attrs["reason"]
        assert not train_requested(request_trial(sweep, trial.number, dataset="flowers"), None).error, "it has ended"


def test_a_trial_that_another_process_prunes_meanwhile_is_not_trained_again(sweep, monkeypatch):
    def wait(_inputs):
        sweep.report(0, 1, 0.1)
        sweep.prune(0)
        return True

    monkeypatch.setattr(trial_, "wait_for_run", wait)
    with sweep.claim(None):
        assert not train_requested(request_trial(sweep, 0), None).error
    assert list_states(sweep) == ["PRUNED"]


def test_the_runner_is_chosen_like_that_of_train_all(home, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sweeps, "open_runner", lambda *given: asked.append(given))
    monkeypatch.setattr("flows.operations.sweep.run_sweep", lambda *_: None)
    for given in ({}, {"at_once": 1}, {"at_once": 9, "runner": "ray", "address": "a:1"}, {"hours": 1, "trials": None}):
        with pytest.raises(TrainingError, match="no trial is complete"):
            make_sweep(tmp_path, **given).run()
    assert asked == [("local", None, None), ("local", 1, None), ("ray", 2, "a:1"), ("local", None, None)]
    with pytest.raises(DarkroomError, match=r"^--address a:1 needs --runner ray$"):
        make_sweep(tmp_path, address="a:1").check()
    assert make_sweep(tmp_path, runner="ray").loading == ("PyTorch", "MLflow", "Ray")
