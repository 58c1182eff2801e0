import shlex
import shutil
import sqlite3
from contextlib import ExitStack, closing
from importlib.metadata import PackageNotFoundError, version

import pytest

from flows.cli import darkroom
from flows.experiments.inputs import open_inputs
from flows.experiments.training import train_offline
from flows.jobs.training import Train
from flows.operations import doctor
from flows.printing.inventory import print_runs
from model_code.data.add import add_dataset
from model_code.errors import DivergedError
from model_code.recipes.catalog import build_config
from model_code.training.run_folder import (
    DIVERGED_FILE,
    JOURNAL_FILE,
    RESULT_FILE,
    RunRecord,
    create_run_folder,
    list_interrupted,
)
from serving.bundle.store import POINTER_FILE
from tests.unit.tracking.small_store import make_settings
from tests.unit.training.small_runs import make_config


@pytest.mark.parametrize(
    ("lacking", "image", "level"),
    [("bentoml", "1a2b", "note"), ("bentoml", None, "missing"), ("torch", "1a2b", "missing")],
)
def test_what_an_image_is_made_without_is_not_missing(monkeypatch, lacking, image, level):
    def lack(name):
        if name == lacking:
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", lack)
    monkeypatch.setenv("DARKROOM_GIT_SHA", image or "")
    levels = {finding.what: finding.level for finding in doctor.examine_machine()}
    assert levels[lacking] == level
    assert ("training device" in levels) == (level != "missing")


@pytest.mark.parametrize(("free_mb", "level"), [(10, "missing"), (1000, "note"), (9000, "ok")])
def test_a_disk_without_room_is_missing_and_nothing_is_proposed_for_it(tmp_path, monkeypatch, free_mb, level):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage._replace(free=free_mb * 1_000_000))
    levels = {finding.what: finding.level for finding in doctor.examine_machine()}
    assert levels["state"] == level
    assert ("next" in levels) == (level != "missing")


def test_a_database_of_a_newer_mlflow_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('fedcba987654')")
    [found] = [finding for finding in doctor.examine_machine() if finding.what == "runs"]
    assert (found.level, "was written by a newer MLflow than" in found.found) == ("missing", True)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("no data", "darkroom data add shapes"),
        ("interrupted", "darkroom train fastnet_cifar10 --seed 0 --resume 33333333"),
        ("offline", "darkroom train fastnet_cifar10 --seed 0 --offline --resume 33333333"),
        ("diverged", "darkroom train RECIPE --profile smoke"),
        ("trained now", "darkroom train RECIPE --profile smoke"),
        ("finished", "darkroom runs list, then darkroom release RUN_ID --as NAME"),
        ("released", "darkroom serve, then darkroom predict IMAGE"),
    ],
)
def test_the_next_command_goes_on_with_what_is_there(tmp_path, monkeypatch, state, expected):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    settings = make_settings(tmp_path)
    if state != "no data":
        add_dataset("shapes", cache_dir=settings.cache_dir, data_dir=settings.data_dir, image_size=16, progress=False)
    with ExitStack() as held:
        if state != "no data":
            config = build_config("fastnet_cifar10")
            record = RunRecord(run_id="3" * 32, data_checksum="c" * 64, config=config)
            folder = create_run_folder(settings.checkpoints_dir, record)
        if state in ("finished", "released"):
            (folder.path / RESULT_FILE).touch()
        if state == "offline":
            (folder.path / JOURNAL_FILE).touch()
        if state == "diverged":
            (folder.path / DIVERGED_FILE).touch()
        if state == "trained now":
            held.enter_context(folder.lock())
        if state == "released":
            (settings.bundles_dir / "shapes").mkdir(parents=True)
            (settings.bundles_dir / "shapes" / POINTER_FILE).touch()
        assert doctor._suggest_next().found.startswith(expected)


def test_the_next_command_says_that_more_runs_are_interrupted(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    settings = make_settings(tmp_path)
    add_dataset("shapes", cache_dir=settings.cache_dir, data_dir=settings.data_dir, image_size=16, progress=False)
    for digit in "345":
        record = RunRecord(run_id=digit * 32, data_checksum="c" * 64, config=build_config("fastnet_cifar10"))
        create_run_folder(settings.checkpoints_dir, record)
    assert doctor._suggest_next().found.endswith("; 2 more: darkroom runs list")


@pytest.mark.parametrize(
    ("profile", "changes"),
    [
        ("full", {"dataset": "shapes", "epochs": 3, "limit_train": 64, "mean": [0.5, 0.25, 0.5], "engine.parts": 2}),
        ("full", {"learning_rate": 0.1, "pretrained_weights": "a file's.pth", "warmup_epochs": 1, "seed": 4}),
        ("smoke", {"dataset": "shapes", "device": "cpu"}),
        ("smoke", {"epochs": 1}),
    ],
)
def test_the_command_that_resumes_has_every_setting(profile, changes, tmp_path):
    config = build_config("resnet18_cifar10_exp", profile, changes)
    folder = create_run_folder(tmp_path, RunRecord(run_id="3" * 32, data_checksum="c" * 64, config=config))
    words = shlex.split(doctor._format_resume(folder))
    assert words[:2] == ["darkroom", "train"]
    options = darkroom.commands["train"].make_context("train", words[2:], resilient_parsing=True).params
    assert Train.make(**options).config == config


def test_a_run_that_diverged_is_not_gone_on_with(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    settings = make_settings(tmp_path)
    add_dataset("shapes", cache_dir=settings.cache_dir, data_dir=settings.data_dir, image_size=16, progress=False)
    small = {"dataset": "shapes", "limit_train": 80, "batch_size": 40, "epochs": 1}
    inputs = open_inputs(
        build_config("resnet18_cifar10_exp2", changes=small | {"learning_rate": 1e30}), is_offline=True
    )
    for _ in range(2):  # the same command tries again
        with pytest.raises(DivergedError, match="lower the learning rate"):
            train_offline(inputs)
    [folder] = list_interrupted(settings.checkpoints_dir)
    assert folder.has_diverged
    capsys.readouterr()
    print_runs(settings, "csv")
    assert ',"diverged",' in capsys.readouterr().out
    assert "--resume" not in doctor._suggest_next().found


def test_an_interrupted_run_of_a_recipe_that_is_gone_can_be_removed(tmp_path):
    record = RunRecord(run_id="3" * 32, data_checksum="c" * 64, config=make_config(network="resnet18"))
    told = doctor._format_resume(create_run_folder(tmp_path, record))
    assert told.startswith("run 33333333 is interrupted, and its recipe: ")
    assert told.endswith("; or remove it: darkroom runs remove 33333333")
