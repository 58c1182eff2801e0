"""int8 beside fp32, of the champions of a home."""

import json
import sys

import pytest

from benchmarks import variants
from tests.unit.serving.tiny_bundle import make_two_variants, point_at, release


def run(monkeypatch, *options):
    monkeypatch.setattr(variants, "SECONDS", 0.01)
    monkeypatch.setattr(sys, "argv", ["variants", *map(str, options)])
    variants.main()


def test_the_files_of_a_champion_are_measured(tmp_path, monkeypatch):
    bundles_dir = tmp_path / "bundles"
    point_at(bundles_dir, "cifar10", "1", make_two_variants(bundles_dir, repeats=2000))  # int8 is slow
    run(monkeypatch, "--home", tmp_path, "--repeats", 3, "--json", tmp_path / "report.json")
    one, many = json.loads((tmp_path / "report.json").read_text())["comparisons"]
    assert one["title"].startswith("cifar10, ")
    assert (one["title"].rsplit(" ", 1)[1], many["title"].rsplit(" ", 1)[1]) == ("1", "64")
    fp32, int8 = one["figures"]
    assert (fp32["what"], fp32["n"], int8["n"]) == ("fp32", 3, 3)
    assert fp32["ours_times_as_fast"] < 0.5


def test_a_champion_of_one_precision_has_nothing_to_be_compared_with(tmp_path, monkeypatch):
    release(tmp_path / "bundles", "cifar10", "1")
    with pytest.raises(SystemExit, match=r"cifar10 has fp32; fp32 and int8 are compared"):
        run(monkeypatch, "--home", tmp_path)


def test_a_home_without_a_release_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--home", tmp_path)
    assert f"nothing is released in {tmp_path}" in capsys.readouterr().err
