"""`--format` and `--quiet` of the commands that work: results on standard output, what is told meanwhile elsewhere."""

import csv
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from flows.jobs import JOBS
from flows.jobs.recipes import ListRecipes
from flows.printing import datasets
from flows.printing.narration import narrating
from flows.printing.records import describe_outcomes, describe_release, describe_result
from flows.printing.summaries import Choice, Outcome, ReleaseSummary
from model_code.recipes.catalog import build_config
from model_code.training.run_folder import RunResult
from serving.bundle.manifest import Manifest
from serving.bundle.store import read_bundle
from serving.listing import print_listing
from tests.unit.release.conftest import make_verdict
from tests.unit.serving.tiny_bundle import make_two_variants

ROOT = Path(__file__).parents[3]
WORKING = ("data add", "train", "train-all", "release", "report")
RESULT = RunResult(
    run_id="a" * 32,
    kind="supervised",
    recipe="resnet18_cifar10_exp",
    profile="smoke",
    dataset="shapes",
    metrics={"validation/best_accuracy": 0.5, "test/accuracy": 0.25},
    epochs=2,
    best_epoch=1,
    best_weights="best-1.safetensors",
    weights_sha256="b" * 64,
    seconds=1.5,
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    return read_bundle(make_two_variants(tmp_path_factory.mktemp("bundles")))


def tell():
    print("a line")
    print("a warning", file=sys.stderr)
    with tqdm(total=1, desc="a bar") as bar:
        bar.update()


def test_a_table_is_told_as_it_always_was(capsys):
    with narrating("table"):
        tell()
    told = capsys.readouterr()
    assert told.out == "a line\n"
    assert "a bar" in told.err


@pytest.mark.parametrize("form", ["json", "csv"])
def test_records_are_alone_on_standard_output(capsys, form):
    with narrating(form):
        tell()
    print("{}")
    told = capsys.readouterr()
    assert told.out == "{}\n"
    assert told.err.startswith("a line\na warning\n")


@pytest.mark.parametrize("form", ["table", "json"])
def test_quiet_leaves_results_and_errors(capsys, form):
    def fail():
        with narrating(form, is_quiet=True):
            tell()
            raise ValueError("an error")

    with pytest.raises(ValueError, match="an error"):
        fail()
    with narrating(form, is_quiet=True):
        handler = logging.StreamHandler()
    handler.emit(logging.makeLogRecord({"msg": "later"}))
    print("a result")
    assert capsys.readouterr() == ("a result\n", "")


@pytest.mark.parametrize("command", WORKING)
def test_every_command_that_works_has_both_options(command):
    [kind] = [one for one in JOBS if one.command == command]
    assert kind.model_fields["form"].default == "table"
    assert kind.model_fields["is_quiet"].default is False


def test_a_recipe_is_a_record(capsys):
    ListRecipes.make(name="resnet18_cifar10_exp", form="json").run()
    record = json.loads(capsys.readouterr().out)
    assert (record["recipe"], record["dataset"], record["settings"]["batch_size"]) == (
        "resnet18_cifar10_exp",
        "cifar10",
        build_config("resnet18_cifar10_exp").batch_size,
    )
    ListRecipes.make(name="resnet18_cifar10_exp", form="csv").run()
    [row] = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert json.loads(row["settings"]) == record["settings"]
    ListRecipes.make(name="resnet18_cifar10_exp").run()
    shown, evidence = capsys.readouterr().out, record["evidence"].split()
    assert shown.split()[1 : 1 + len(evidence)] == evidence
    paragraphs = shown.partition("\n  dataset=")[0].splitlines()
    assert [line.partition(":")[0] for line in paragraphs if ":" in line] == [
        *("Command", "Published", "Ours", "Departures of every recipe here"),
    ]


def test_a_run_is_a_record_with_its_figures(capsys):
    print_listing((), [describe_result(RESULT, 7)], "json")
    record = json.loads(capsys.readouterr().out)
    assert record["test/accuracy"] == 0.25
    assert (record["run_id"], record["seed"], record["seconds"]) == ("a" * 32, 7, 1.5)
    assert "best_weights" not in record, "a name within the home"


def test_runs_and_releases_are_told_apart_and_failures_say_why(manifest, capsys):
    verdict = make_verdict()
    released = ReleaseSummary(
        mode="enabled",
        profile="smoke",
        manifest=manifest,
        champion_before=None,
        version="1",
        verdict=verdict,
        is_champion=True,
    )
    outcomes = [
        Outcome(recipe="one", seed=0, result=RESULT, was_cached=True),
        Outcome(recipe="two", seed=1, error="no room"),
        Outcome(recipe="three", seed=2, error="no images", is_skipped=True),
    ]
    choices = [
        Choice(name="shapes", run=RESULT, validation_accuracy=0.5, seeds=1, released=released),
        Choice(name="food", run=RESULT, validation_accuracy=0.5, seeds=1, error="cannot be exported"),
    ]
    records = describe_outcomes(outcomes, choices)
    print_listing((), records, "json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["record"] for line in lines] == ["run"] * 3 + ["release"] * 2
    assert [line["state"] for line in lines[:3]] == ["kept", "failed", "skipped"]
    assert [line["error"] for line in lines] == [None, "no room", "no images", None, "cannot be exported"]
    assert lines[3]["challenger_accuracy"] == verdict.challenger_accuracy
    print_listing((), records, "csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["test/accuracy"] for row in rows[:2]] == ["0.25", ""]
    assert rows[3]["is_champion"] == "true"


def test_a_release_is_a_record_of_what_was_decided(manifest, capsys):
    verdict = make_verdict()
    dry = ReleaseSummary(mode="dry_run", profile="full", manifest=manifest, champion_before="3", verdict=verdict)
    print_listing((), [describe_release(dry)], "json")
    record = json.loads(capsys.readouterr().out)
    assert record["decision"].endswith("it would not be promoted: version 3 stays champion")
    assert (record["version"], record["champion_before"], record["is_champion"]) == (None, "3", False)
    assert (record["verdict"], record["precisions"]) == (verdict.summary, ["fp32", "int8"])
    assert (record["metric"], record["challenger_macro_f1"]) == ("accuracy", verdict.challenger_macro_f1)


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--format", "json"], ["--format", "json", "--quiet"], ["--quiet"]], ids=" ".join)
def test_adding_images_prints_its_result_alone(tmp_path, options):
    command = [
        sys.executable,
        "-c",
        "from flows.cli import main; main()",
        "data",
        "add",
        "shapes",
        "--image-size",
        "16",
    ]
    environment = os.environ | {"DARKROOM_HOME": str(tmp_path)}
    done = subprocess.run([*command, *options], env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stderr == "") == ("--quiet" in options), done.stderr
    if "json" in options:
        record = json.loads(done.stdout)
        assert (record["dataset"], record["image_size"], record["is_reused"]) == ("shapes", 16, False)
        assert record["counts"]["test"] == 1000
    else:
        assert done.stdout.startswith("shapes packed: ")
        assert "next:" not in done.stdout


@pytest.mark.parametrize(
    ("dataset", "image_size", "recipe"),
    [
        ("food10", 72, "fastnet_food10"),
        ("cifar10", 32, "fastnet_cifar10"),
        ("pets", 32, "fastnet_cifar10"),
        ("pets", 224, "resnet18_food11"),
    ],
)
def test_the_recipe_to_begin_with(dataset, image_size, recipe):
    assert datasets._choose_recipe(dataset, image_size).recipe == recipe
