"""Trials of a sweep: proposals by seed, locks of living and dead processes, pruning, a journal that was cut short."""

import itertools
import multiprocessing
import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from optuna.trial import TrialState

from model_code.disk import count_free_bytes
from model_code.errors import DiskFullError, UsageError
from model_code.recipes.catalog import build_config
from model_code.sweeps.space import Range
from model_code.sweeps.trials import JOURNAL_FILE, SWEEP_FILE, WEIGHED_TRIALS, MendingLock, Sweep

SPACE = {"batch_size": Range(low=32, high=100, step=32), "weight_decay": Range(low=1e-5, high=1e-2, log=True)}
SEED = 3


def open_sweep(folder, *, seed=SEED, images="a" * 64, space=SPACE, prune_after=2, **changes):
    config = build_config("fastnet_cifar10", "smoke", {"seed": seed, **changes})
    return Sweep(folder, config, images, space, prune_after)


def run_trial(sweep, *curve):
    """Take a trial, report a curve, end it as an ordinary one; its number comes back."""
    with sweep.claim(None) as trial:
        for epoch, score in enumerate(curve, start=1):
            sweep.report(trial.number, epoch, score)
        sweep.complete(trial.number, max(curve))
    return trial.number


def report_without_end(sweep, number):
    for epoch in itertools.count():
        sweep.report(number, epoch, 0.1)


def list_params(sweep):
    return [trial.params for trial in sweep.trials]


def test_a_sweep_that_is_opened_again_for_each_trial_proposes_the_same(tmp_path):
    whole, other = open_sweep(tmp_path / "whole"), open_sweep(tmp_path / "other", seed=SEED + 1)
    for number in range(14):  # random ones, then some that follow from the earlier ones
        accuracy = number % 5 / 10
        run_trial(whole, accuracy)
        run_trial(open_sweep(tmp_path / "parts"), accuracy)
        run_trial(other, accuracy)
    assert list_params(open_sweep(tmp_path / "parts")) == list_params(whole)
    assert list_params(other) != list_params(whole)
    assert {params["batch_size"] for params in list_params(whole)} == {32, 64, 96}
    assert all(1e-5 <= params["weight_decay"] <= 1e-2 for params in list_params(whole))
    assert len({params["weight_decay"] for params in list_params(whole)}) == 14


def test_the_first_ten_proposals_depend_on_seed_and_number_alone(tmp_path):
    in_turn, at_once = open_sweep(tmp_path / "in-turn"), open_sweep(tmp_path / "at-once")
    for number in range(10):
        run_trial(in_turn, number / 10)
    with ExitStack() as held:
        for _ in range(10):
            held.enter_context(at_once.claim(None))
        assert list_params(at_once) == list_params(in_turn)


def test_a_sweep_that_is_joined_is_the_same(tmp_path):
    space = SPACE | {"engine.pictures": ("auto", "streamed"), "pretrained_weights": (None, "torchvision")}
    made = open_sweep(tmp_path, space=space)
    run_trial(made, 0.5)
    run_trial(made, 0.5)
    joined = Sweep.join(tmp_path, prune_after=2)
    assert joined.record == made.record
    with joined.claim(None) as trial:
        joined.report(trial.number, 1, 0.1)
        assert joined.should_prune(trial.number)
        assert made.trials[2].params == trial.params
    (tmp_path / SWEEP_FILE).unlink()
    with pytest.raises(UsageError, match="is damaged or was written by another version"):
        Sweep.join(tmp_path, prune_after=2)


def test_a_trial_belongs_to_one_process_until_it_lets_it_go(tmp_path):
    first, second = open_sweep(tmp_path), open_sweep(tmp_path)
    with first.claim(2) as one:
        with second.claim(2) as two:
            assert [one.number, two.number] == [0, 1]
            with open_sweep(tmp_path).claim(2) as nothing:
                assert nothing is None
            second.complete(two.number, 0.5)
        with second.claim(2) as nothing:
            assert nothing is None
    with second.claim(2, lambda: False) as again:
        assert (again.number, again.params) == (one.number, one.params)
        second.fail(again.number, "why")
    with second.claim(None, lambda: False) as nothing:
        assert nothing is None
    assert [trial.state for trial in first.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert first.trials[0].user_attrs["reason"] == "why"


def _die_in_a_trial(folder):
    with open_sweep(folder).claim(None):
        os._exit(9)


@pytest.mark.slow
def test_the_trial_of_a_dead_process_is_taken_up(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_die_in_a_trial, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    sweep = open_sweep(tmp_path)
    assert [trial.state for trial in sweep.trials] == [TrialState.RUNNING]
    assert run_trial(sweep, 0.5) == 0
    assert run_trial(sweep, 0.5) == 1


@pytest.mark.parametrize("torn", [b'{"op_code":4,"work', b"\x00" * 9, b"{"])
def test_a_line_that_was_cut_short_spoils_no_other(tmp_path, torn):
    living = open_sweep(tmp_path)
    run_trial(living, 0.25)
    journal = tmp_path / JOURNAL_FILE
    before = journal.read_bytes()
    journal.write_bytes(before + torn)
    assert run_trial(living, 0.75) == 1
    journal.write_bytes(journal.read_bytes() + torn)
    assert run_trial(open_sweep(tmp_path), 0.5) == 2
    assert [trial.value for trial in open_sweep(tmp_path).trials] == [0.25, 0.75, 0.5]
    assert journal.read_bytes().startswith(before)
    assert torn not in journal.read_bytes().replace(before, b"").splitlines()


def test_a_trial_below_the_median_of_the_complete_ones_should_prune(tmp_path):
    sweep = open_sweep(tmp_path)
    run_trial(sweep, 0.5, 0.6)
    with sweep.claim(None) as trial:
        sweep.report(trial.number, 1, 0.1)
        sweep.report(trial.number, 2, 0.3)
        assert not sweep.should_prune(trial.number)  # one complete trial is too few
        sweep.complete(trial.number, 0.3)
    with sweep.claim(None) as trial:
        sweep.report(trial.number, 1, 0.3)
        assert not sweep.should_prune(trial.number)
        sweep.report(trial.number, 2, 0.2)
        assert sweep.should_prune(trial.number)
        assert not open_sweep(tmp_path, prune_after=0).should_prune(trial.number)
        sweep.prune(trial.number)
    assert (sweep.trials[2].state, sweep.trials[2].value) == (TrialState.PRUNED, 0.2)


def test_the_best_is_the_first_of_equals_and_never_a_pruned_one(tmp_path):
    sweep = open_sweep(tmp_path)
    assert sweep.best is None
    for accuracy in (0.25, 0.5, 0.5):
        run_trial(sweep, accuracy)
    with sweep.claim(None) as trial:
        sweep.report(trial.number, 1, 0.9)
        sweep.prune(trial.number)
    assert sweep.best.number == 1


def test_importance_is_told_from_enough_trials_that_differ(tmp_path):
    sweep, equal = open_sweep(tmp_path / "sweep"), open_sweep(tmp_path / "equal")
    for number in range(WEIGHED_TRIALS):
        assert sweep.measure_importance() == {}
        run_trial(sweep, number / 10)
        run_trial(equal, 0.5)
    assert equal.measure_importance() == {}
    assert set(sweep.measure_importance()) == set(SPACE)
    assert sum(sweep.measure_importance().values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"space": {"batch_size": (32, 64)}}, "has other space"),
        ({"images": "b" * 64}, "has other images"),
        ({"seed": SEED + 1}, "has other settings"),
        ({"epochs": 7, "space": {"batch_size": (32, 64)}}, "has other settings and space"),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused(tmp_path, changed, reason):
    open_sweep(tmp_path)
    with pytest.raises(UsageError, match=reason) as refusal:
        open_sweep(tmp_path, **changed)
    assert "give --name for a new sweep" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_damaged_record_is_refused(tmp_path):
    open_sweep(tmp_path)
    (tmp_path / SWEEP_FILE).write_text("{}")
    with pytest.raises(UsageError, match="is damaged or was written by another version"):
        open_sweep(tmp_path)


def test_choices_of_every_type_come_back_as_they_are(tmp_path):
    space = {"engine.pictures": ("auto", "streamed"), "pretrained_weights": (None, "torchvision"), "epochs": (1, 2)}
    sweep = open_sweep(tmp_path, space=space)
    for _ in range(8):
        run_trial(sweep, 0.5)
    for name, choices in space.items():
        assert {trial.params[name] for trial in open_sweep(tmp_path, space=space).trials} == set(choices)


def _hold_the_journal(folder: Path) -> None:
    lock = MendingLock(folder / JOURNAL_FILE)
    lock.acquire()
    os._exit(9)


@pytest.mark.slow
def test_a_process_that_dies_while_it_writes_holds_up_nobody(tmp_path):
    sweep = open_sweep(tmp_path)
    process = multiprocessing.get_context("spawn").Process(target=_hold_the_journal, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    start_s = time.monotonic()
    run_trial(sweep, 0.5)
    assert time.monotonic() - start_s < 10


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"no JSON\n", b'{"op_code": 4}\n'])
def test_a_damaged_journal_is_named(tmp_path, damage):
    open_sweep(tmp_path)
    (tmp_path / JOURNAL_FILE).write_bytes(damage)
    with pytest.raises(UsageError, match=r"journal\.log is damaged"):
        open_sweep(tmp_path)


def test_a_full_disk_is_one_line_and_loses_no_trial(small_disk):
    sweep = open_sweep(small_disk / "sweep")
    run_trial(sweep, 0.5)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(count_free_bytes(small_disk)))
    with sweep.claim(None) as trial, pytest.raises(DiskFullError, match=r"is full: writing journal\.log needs"):
        report_without_end(sweep, trial.number)
    filler.unlink()
    again = open_sweep(small_disk / "sweep")
    assert again.best.value == 0.5
    assert run_trial(again, 0.7) == 1
    assert again.best.value == 0.7
