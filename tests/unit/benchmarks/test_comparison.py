import sys

import pytest
import torch
from rich.console import Console

from benchmarks import contenders
from benchmarks.comparison import OURS, Comparison, alternate, build_table


@pytest.fixture(autouse=True)
def restore_algorithms():
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


def measure_in_turn(unit="images/s", ours=(10.0, 30.0, 20.0), theirs=(4.0, 5.0, 6.0), **options):
    calls = []
    values = {OURS: iter(ours), "theirs": iter(theirs)}

    def passes(name):
        def measure():
            calls.append(name)
            return next(values[name])

        return measure

    comparison = Comparison(unit, {name: passes(name) for name in values}, **options)
    return alternate("a task", comparison, len(ours)), calls


def draw(record):
    console = Console(width=120)
    with console.capture() as captured:
        console.print(build_table(record))
    return captured.get()


def test_contenders_take_turns_and_every_pass_counts():
    record, calls = measure_in_turn()
    assert calls == [OURS, "theirs"] * 3
    ours, theirs = record["figures"]
    assert ours == {"what": OURS, "n": 3, "median": 20, "min": 10, "max": 30, "values": [10, 30, 20]}
    assert (theirs["n"], theirs["median"], theirs["min"], theirs["max"]) == (3, 5, 4, 6)


@pytest.mark.parametrize(("unit", "expected"), [("images/s", 4.0), ("s", 0.25)])
def test_few_seconds_are_fast_and_many_images_a_second_too(unit, expected):
    record, _ = measure_in_turn(unit)
    assert record["figures"][1]["ours_times_as_fast"] == expected
    assert f"{expected:.2f} times as fast" in draw(record)


def test_shares_are_of_the_largest_whole():
    found = {"step": lambda: 20.0, "product": lambda: 25.0, "convolution": lambda: 40.0}
    record = alternate("arithmetic", Comparison("GFLOP/s", found, wholes=("product", "convolution")), 1)
    assert [figure.get("percent_of_whole") for figure in record["figures"]] == [50.0, 62.5, None]
    table = draw(record)
    assert "of convolution" in table
    assert "62.5 %" in table


def test_notes_stand_beside_their_contender():
    record, _ = measure_in_turn(notes={"theirs": "on one core"})
    assert "theirs (on one core)" in draw(record)


def test_a_missing_library_is_a_note(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    comparison = Comparison("images/s", {OURS: lambda: 1.0})
    comparison.add_optional("kornia", contenders.kornia_crop)
    record = alternate("a task", comparison, 1)
    assert [figure["what"] for figure in record["figures"]] == [OURS]
    assert "kornia.augmentation" in record["notes"]["kornia"]
    assert "kornia (not measured: " in draw(record)


def test_deterministic_algorithms_of_one_contender_do_not_slow_the_next():
    seen = []

    def ours():
        torch.use_deterministic_algorithms(True)
        return 1.0

    def theirs():
        seen.append(torch.are_deterministic_algorithms_enabled())
        return 1.0

    record = alternate("a task", Comparison("s", {OURS: ours, "theirs": theirs}), 2)
    assert seen == [False, False]
    assert record["peak_memory_bytes"] > 2**20
