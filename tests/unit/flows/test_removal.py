"""Removal of versions, runs and data sets, and the refusals that protect what others need."""

import errno
import json
import sqlite3
from contextlib import closing, contextmanager
from types import SimpleNamespace

import pytest

from flows.jobs.data import RemoveData
from flows.jobs.releases import Challenge, History, ListModels, Retire, RollBack
from flows.jobs.runs import Prune, RemoveRuns
from flows.operations import release, removal
from flows.printing import inventory
from flows.printing.inventory import print_runs
from model_code.data.add import add_dataset
from model_code.data.cache import list_datasets
from model_code.errors import BusyError, DataError, DivergedError, ReleaseError, TrainingError, UsageError
from model_code.recipes.catalog import build_config
from model_code.release.registered import read_registered
from model_code.training.run_folder import (
    JOURNAL_FILE,
    RunRecord,
    RunResult,
    create_run_folder,
    list_finished,
    resolve_run_id,
)
from tests.unit.tracking.small_store import make_settings, open_small_store
from tests.unit.training.small_runs import make_config, tiny_network_entered


@pytest.fixture
def settings(tmp_path):
    with tiny_network_entered():
        yield make_settings(tmp_path)


def enter_run(settings, digit, accuracy=None, pretrained=None, checksum="c" * 64, profile=None, **config):
    """Make the folder of a run whose id is made of one digit; without accuracy it is interrupted."""
    record = RunRecord(
        run_id=digit * 32, data_checksum=checksum, config=make_config(**config), pretrained_sha256=pretrained
    )
    folder = create_run_folder(settings.checkpoints_dir, record)
    (folder.path / "last.safetensors").write_bytes(b"12345")
    copies = settings.artifacts_dir / record.run_id / "artifacts" / "checkpoints"
    copies.mkdir(parents=True)
    (copies / "best.safetensors").write_bytes(b"123")
    (copies.parent / "config.json").write_text("{}")
    if accuracy is not None:
        folder.complete(
            RunResult(
                run_id=record.run_id,
                kind="supervised",
                recipe=record.config.recipe,
                profile=profile or record.config.profile,
                dataset=record.config.dataset,
                metrics={"validation/best_accuracy": accuracy},
                best_weights="last.safetensors",
                weights_sha256=digit * 64,
                seconds=1,
            )
        )
    return folder


def test_pruning_keeps_the_best_and_what_is_needed(settings, monkeypatch, capsys):
    runs = [enter_run(settings, digit, accuracy) for digit, accuracy in zip("1234", (0.5, 0.9, 0.6, 0.7), strict=True)]
    enter_run(settings, "5", pretrained="3" * 64)
    other = enter_run(settings, "6", 0.1, dataset="others")
    version = removal.RegisteredVersion("shapes", "1", "2026-01-01", "1" * 32, {}, ("champion",))
    monkeypatch.setattr(removal, "list_registered", lambda *_: (version,))
    [prunable] = removal.find_prunable(settings, 1)
    assert (prunable.run.path.name, prunable.size_bytes, len(prunable.files)) == ("4" * 32, 8, 2)
    assert [one.run.path.name for one in removal.find_prunable(settings, 2)] == []
    removal.prune(prunable)
    assert not any(file.exists() for file in prunable.files)
    assert prunable.run.result.metrics == {"validation/best_accuracy": 0.7}
    assert (settings.artifacts_dir / ("4" * 32) / "artifacts" / "config.json").exists()
    for kept in (*runs[:3], other):
        assert (kept.path / "last.safetensors").exists()
    assert removal.find_prunable(settings, 1) == []


def test_pruning_compares_runs_of_one_revision_and_budget_and_leaves_offline_ones(settings):
    for digit, accuracy in zip("123", (0.99, 0.98, 0.97), strict=True):
        enter_run(settings, digit, accuracy)
    enter_run(settings, "4", 0.1, checksum="d" * 64)
    enter_run(settings, "5", 0.1, profile="custom")
    (enter_run(settings, "6", 0.1).path / JOURNAL_FILE).touch()
    assert sorted(one.run.path.name[0] for one in removal.find_prunable(settings, 1)) == ["2", "3"]


def test_a_run_that_is_released_now_is_neither_removed_nor_pruned(settings, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(settings.home))
    enter_run(settings, "3", 0.9)
    other = enter_run(settings, "4", 0.5)

    @contextmanager
    def removing_meanwhile(*_):
        with pytest.raises(BusyError, match="is used by another command"):
            list(removal.remove_runs(settings, ["44444444"]))
        assert removal.find_prunable(settings, 1) == []
        with other.lock(is_shared=True):  # a second release of it
            raise KeyboardInterrupt
        yield

    monkeypatch.setattr(
        release, "choose_task", lambda *_: SimpleNamespace(kind="supervised", run_id=other.record.run_id)
    )
    monkeypatch.setattr(release, "_making_scratch", removing_meanwhile)
    with pytest.raises(KeyboardInterrupt):
        release.release(other.record.run_id, "shapes")
    assert [one.run.path for one in removal.find_prunable(settings, 1)] == [other.path]


@pytest.mark.parametrize("given", ["./{}", "{}/", "../checkpoints/{}", "/{}"])
def test_a_run_is_named_by_its_id_not_by_a_path(settings, given):
    folder = enter_run(settings, "3", 0.5)
    text = given.format(folder.path.relative_to("/") if given == "/{}" else folder.path.name)
    with pytest.raises(TrainingError, match="no run"):
        list(removal.remove_runs(settings, [text]))
    assert folder.path.exists()


def test_an_offline_run_is_removed_without_mlflow(settings):
    folder = enter_run(settings, "3", 0.5)
    (folder.path / JOURNAL_FILE).touch()
    list(removal.remove_runs(settings, ["33333333"]))
    assert not folder.path.exists()
    assert not (settings.home / "mlflow.db").exists()


def test_a_removal_that_was_killed_is_completed_by_the_next(settings, monkeypatch):
    """Of what was removed no command sees a part; what is left of it goes with the next removal, or with prune."""
    monkeypatch.setenv("DARKROOM_HOME", str(settings.home))
    add_dataset("shapes", cache_dir=settings.cache_dir, data_dir=settings.data_dir, image_size=16, progress=False)
    for digit in "345":
        (enter_run(settings, digit, 0.5).path / JOURNAL_FILE).touch()

    def die(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(removal.shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            removal.remove_dataset(settings, "shapes")
        with pytest.raises(KeyboardInterrupt):
            list(removal.remove_runs(settings, ["33333333"]))
        assert (settings.checkpoints_dir / ("3" * 32) / "run.json").exists(), "its artifacts go first"
        with pytest.raises(KeyboardInterrupt):
            removal._remove(settings.checkpoints_dir / ("4" * 32))
    assert list_datasets(settings.cache_dir) == []
    assert sorted(one.path.name[0] for one in list_finished(settings.checkpoints_dir)) == ["3", "5"]
    left = [*settings.home.rglob(f"{removal.REMOVED_PREFIX}*")]
    assert len(left) == 3
    list(removal.remove_runs(settings, ["55555555"]))
    assert [one.exists() for one in left] == [one.is_relative_to(settings.cache_dir) for one in left]
    Prune(dry_run=True).run()
    assert [*settings.home.rglob(f"{removal.REMOVED_PREFIX}*")] != []
    Prune().run()
    assert [*settings.home.rglob(f"{removal.REMOVED_PREFIX}*")] == []


@pytest.mark.parametrize("text", ["best", "best:", "best:0", "best:-1", "last:3", ""])
def test_what_to_keep_is_checked(text):
    with pytest.raises(UsageError, match="give best:N"):
        removal.parse_kept(text)


def test_runs_are_listed_with_what_needs_them(settings, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    enter_run(settings, "3", 0.75)
    (enter_run(settings, "5", pretrained="3" * 64).path / JOURNAL_FILE).touch()
    print_runs(settings, "table")
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    by_run = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}
    assert (by_run["33333333"]["state"], by_run["33333333"]["validation"]) == ("done", "0.7500")
    assert by_run["33333333"]["needed by"] == "interrupted run 55555555"
    assert (by_run["55555555"]["state"], by_run["55555555"]["needed by"]) == ("interrupted", "")
    assert [by_run[digit * 8]["recorded"] for digit in "35"] == ["", "offline"]


def test_a_custom_run_is_listed_with_what_differs():
    assert inventory._describe_changes(build_config("fastnet_cifar10", changes={"epochs": 3, "seed": 1})) == "epochs=3"
    assert inventory._describe_changes(build_config("fastnet_cifar10")) == ""
    gone = build_config("fastnet_cifar10", changes={"epochs": 3}).model_copy(update={"recipe": "gone"})
    assert inventory._describe_changes(gone) == ""


def test_a_run_whose_weights_were_pruned_is_listed_without_them(settings, capsys):
    for digit, accuracy in (("3", 0.7), ("4", 0.8)):
        enter_run(settings, digit, accuracy)
    [prunable] = removal.find_prunable(settings, 1)
    removal.prune(prunable)
    print_runs(settings, "json")
    states = {run["run_id"][0]: run["state"] for run in map(json.loads, capsys.readouterr().out.splitlines())}
    assert states == {"3": "no weights", "4": "done"}


def test_runs_whose_record_is_damaged_are_named_and_can_be_removed(settings, capsys, monkeypatch):
    enter_run(settings, "3", 0.75)
    damaged = [enter_run(settings, digit, 0.5) for digit in "45"]
    for folder in damaged:
        (folder.path / "run.json").write_text("{")
    print_runs(settings, "json")
    printed = capsys.readouterr()
    assert [json.loads(line)["run_id"][0] for line in printed.out.splitlines()] == ["3"]
    remedy = f"darkroom runs remove {'4' * 32}"
    assert printed.err == (
        f"darkroom: 2 runs left out, the first {'4' * 32}: run.json is damaged or was written by another version; "
        f"remove with: {remedy}\n"
    )
    monkeypatch.setenv("DARKROOM_HOME", str(settings.home))
    with open_small_store(settings.home):
        job = RemoveRuns.make(run_ids=(remedy.rsplit(maxsplit=1)[-1],))
        job.check()
        job.run()
    assert [folder.path.exists() for folder in damaged] == [False, True]
    capsys.readouterr()
    print_runs(settings, "table")
    assert capsys.readouterr().err.startswith(f"darkroom: 1 run left out, the first {'5' * 32}: ")


def test_short_ids_mean_the_one_run_that_begins_with_them(settings):
    enter_run(settings, "3", 0.5)
    assert resolve_run_id(settings.checkpoints_dir, "33333333") == "3" * 32
    assert resolve_run_id(settings.checkpoints_dir, "44444444") == "44444444"
    for last in "12":
        (settings.checkpoints_dir / ("a" * 31 + last)).mkdir()
        (settings.checkpoints_dir / ("a" * 31 + last) / "run.json").touch()
    with pytest.raises(UsageError, match=r"'aaaaaaaa' matches 2 runs: .*; give more digits"):
        resolve_run_id(settings.checkpoints_dir, "aaaaaaaa")


def test_a_run_is_removed_with_its_files_unless_a_version_needs_it(settings, monkeypatch):
    with open_small_store(settings.home) as (_, client):
        run_id = client.create_run(client.get_experiment_by_name("darkroom").experiment_id).info.run_id
        folder = create_run_folder(
            settings.checkpoints_dir, RunRecord(run_id=run_id, data_checksum="c", config=make_config())
        )
        version = removal.RegisteredVersion("shapes", "1", "2026-01-01", run_id, {}, ())
        with monkeypatch.context() as patch:
            patch.setattr(removal, "list_registered", lambda *_: (version,))
            with pytest.raises(ReleaseError, match="is needed by version 1 of shapes"):
                list(removal.remove_runs(settings, [run_id[:8]]))
            with pytest.raises(ReleaseError, match="is needed by version 1 of shapes"):
                list(removal.remove_runs(settings, [run_id[:8]], is_dry_run=True))
        assert list(removal.remove_runs(settings, [run_id[:8]], is_dry_run=True)) == [
            (run_id, removal.measure(folder.path))
        ]
        assert client.get_run(run_id).info.lifecycle_stage == "active"
        assert folder.path.exists()
        [(removed, size_bytes)] = removal.remove_runs(settings, [run_id[:8]])
        assert (removed, size_bytes > 0, folder.path.exists()) == (run_id, True, False)
        assert client.get_run(run_id).info.lifecycle_stage == "deleted"


@pytest.mark.parametrize("digits", ["35", "53", "553"])
@pytest.mark.parametrize("is_dry_run", [True, False])
def test_what_only_runs_need_that_are_removed_too_is_removed(settings, digits, is_dry_run):
    start, resumed = enter_run(settings, "3", 0.75), enter_run(settings, "5", pretrained="3" * 64)
    for folder in (start, resumed):
        (folder.path / JOURNAL_FILE).touch()
    with pytest.raises(ReleaseError, match="is needed by interrupted run 55555555"):
        list(removal.remove_runs(settings, ["33333333"], is_dry_run=is_dry_run))
    found = list(removal.remove_runs(settings, [digit * 8 for digit in digits], is_dry_run=is_dry_run))
    assert sorted(run_id for run_id, _ in found) == ["3" * 32, "5" * 32]
    assert [folder.path.exists() for folder in (start, resumed)] == [is_dry_run, is_dry_run]


def test_none_of_several_runs_is_removed_if_one_has_to_stay(settings):
    free, start = enter_run(settings, "4", 0.5), enter_run(settings, "3", 0.75)
    enter_run(settings, "5", pretrained="3" * 64)
    with pytest.raises(ReleaseError, match="is needed by"):
        list(removal.remove_runs(settings, ["44444444", "33333333"]))
    assert free.path.exists()
    assert start.path.exists()


def test_versions_are_read_as_mlflow_lists_them(settings):
    with open_small_store(settings.home) as (_, client):
        assert read_registered(settings) == ()
        run_id = client.create_run("0").info.run_id
        for name in ("food", "shapes"):
            client.create_registered_model(name)
            for number in "12":
                client.create_model_version(name, "nowhere", run_id=run_id, tags={"recipe": f"r{number}"})
        client.set_registered_model_alias("food", "champion", "2")
        client.delete_model_version("shapes", "1")
        from model_code.release.versions import list_all_versions

        registered = read_registered(settings)
        assert registered == list_all_versions(client)
        assert [(one.name, one.version, one.aliases) for one in registered] == [
            ("food", "1", ()),
            ("food", "2", ("champion",)),
            ("shapes", "2", ()),
        ]
        assert read_registered(settings, "shapes") == registered[2:]
    with closing(sqlite3.connect(settings.home / "mlflow.db")) as database, database:
        database.execute("ALTER TABLE model_versions RENAME COLUMN run_id TO other")
    assert read_registered(settings) is None, "MLflow's client has to read it"


@pytest.mark.parametrize(
    ("tags", "accuracy"),
    [
        ({"accuracy": "0.75"}, 0.75),
        ({"verdict.json": '{"challenger_accuracy": 0.5}'}, 0.5),
        ({"verdict.json": "damaged"}, None),
        ({}, None),
    ],
)
def test_the_accuracy_of_a_version_is_shown_also_of_an_older_home(settings, monkeypatch, capsys, tags, accuracy):
    version = removal.RegisteredVersion("shapes", "1", "2026-01-01", "1" * 32, tags, ("champion",))
    monkeypatch.setattr(inventory, "list_registered", lambda *_: (version,))
    inventory.print_versions(settings, None, "json")
    assert json.loads(capsys.readouterr().out)["accuracy"] == accuracy


def test_versions_of_a_name_that_never_had_a_champion_are_listed(settings, monkeypatch, capsys):
    monkeypatch.setenv("DARKROOM_HOME", str(settings.home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with open_small_store(settings.home) as (_, client):
        client.create_registered_model("pets")
        client.create_model_version("pets", "nowhere", run_id=client.create_run("0").info.run_id)
    listed = ListModels.make(name="pets", form="json")
    listed.check()
    listed.run()
    assert json.loads(capsys.readouterr().out)["version"] == "1"
    for never_champion in (RollBack.make(name="pets").run, History.make(name="pets").run):
        with pytest.raises(ReleaseError, match=r"^pets has no champion yet; release a run: .* --as pets$"):
            never_champion()
    with pytest.raises(ReleaseError, match=r"^nothing is registered as cats; release a run: .* --as cats$"):
        ListModels.make(name="cats").check()
    for near in (
        ListModels.make(name="pet"),
        Retire.make(name="pet", version="1"),
        RollBack.make(name="pet"),
        Challenge.make(name="pet", version="1"),
    ):
        with pytest.raises(ReleaseError, match=r"^nothing is registered as pet; did you mean pets\?$"):
            near.check()


def test_versions_with_an_alias_are_listed_first(settings, monkeypatch, capsys):
    aliases = {"1": (), "2": ("champion",), "3": ("challenger",), "4": ()}
    versions = tuple(
        removal.RegisteredVersion("shapes", number, "2026-01-01", number * 32, {}, names)
        for number, names in aliases.items()
    )
    monkeypatch.setattr(inventory, "list_registered", lambda *_: versions)
    inventory.print_versions(settings, None, "json")
    assert [json.loads(line)["version"] for line in capsys.readouterr().out.splitlines()] == ["3", "2", "4", "1"]


def test_an_alias_of_a_persons_own_is_removed_in_mlflow(settings, monkeypatch):
    with open_small_store(settings.home) as (_, client):
        client.create_registered_model("pets")
        client.create_model_version("pets", "nowhere", run_id=client.create_run("0").info.run_id)
        for alias, way in (("challenger", "darkroom challenge pets --none"), ("live", "remove the alias in MLflow")):
            client.set_registered_model_alias("pets", alias, "1")
            with pytest.raises(ReleaseError, match=f"end that first: {way}$"):
                removal.retire(settings, "pets", "1")
            monkeypatch.setenv("DARKROOM_HOME", str(settings.home))
            with pytest.raises(ReleaseError, match=f"end that first: {way}$"):
                Retire.make(name="pets", version="1").check()


def test_a_folder_whose_lock_cannot_be_looked_at_counts_as_free(settings, monkeypatch):
    folder = enter_run(settings, "7")
    with folder.lock():
        assert removal.is_in_use(folder)

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("model_code.disk.os.open", refuse)
    assert not removal.is_in_use(folder)


def test_a_version_is_retired_unless_it_serves_or_is_gone_back_to(settings):
    with open_small_store(settings.home) as (_, client):
        client.create_registered_model("shapes")
        run_id = client.create_run("0").info.run_id
        for number in "12":
            client.create_model_version("shapes", "nowhere", run_id=run_id, tags={"bundle": f"folder-{number}"})
            folder = settings.bundles_dir / "shapes" / f"folder-{number}"
            folder.mkdir(parents=True)
            (folder / "model.onnx").write_bytes(b"12")
        client.set_registered_model_alias("shapes", "champion", "2")
        with pytest.raises(ReleaseError, match="version 2 of shapes is champion; release another"):
            removal.retire(settings, "shapes", "2")
        with pytest.raises(ReleaseError, match="has no version 3; registered: 1, 2"):
            removal.retire(settings, "shapes", "3")
        assert removal.retire(settings, "shapes", "1") == 2
        assert [one.version for one in read_registered(settings, "shapes")] == ["2"]
        assert [one.name for one in (settings.bundles_dir / "shapes").iterdir()] == ["folder-2"]


@pytest.mark.parametrize("state", ["interrupted", "diverged"])
def test_a_data_set_that_an_incomplete_run_needs_stays(settings, state):
    add_dataset("shapes", cache_dir=settings.cache_dir, data_dir=settings.data_dir, image_size=16, progress=False)
    folder = enter_run(settings, "7", dataset="shapes")
    if state == "diverged":
        with pytest.raises(DivergedError), folder.noting_divergence():
            raise DivergedError("the loss is nan")
    with pytest.raises(DataError, match=rf"needed by {state} run 77777777; --force removes"):
        removal.remove_dataset(settings, "shapes")
    assert removal.remove_dataset(settings, "shapes", is_forced=True).size_bytes > 0
    assert not (settings.cache_dir / "shapes").exists()
    with pytest.raises(DataError, match="is not in"):
        removal.remove_dataset(settings, "shapes")


def test_what_an_interrupted_packing_left_is_removed_by_its_name(settings):
    (settings.cache_dir / "pets" / "scratch-0").mkdir(parents=True)
    assert removal.remove_dataset(settings, "pets").size_bytes == 0
    assert not (settings.cache_dir / "pets").exists()


def test_a_data_set_with_revisions_of_runs_and_versions_stays(settings, monkeypatch, capsys):
    monkeypatch.setenv("DARKROOM_HOME", str(settings.home))
    folders = {"cache_dir": settings.cache_dir, "data_dir": settings.data_dir, "progress": False}
    first = add_dataset("shapes", **folders, image_size=16).dataset.checksum
    second = add_dataset("shapes", **folders, image_size=24).dataset.checksum
    enter_run(settings, "1", 0.5, dataset="shapes", checksum="f" * 64)
    plan = removal.plan_dataset_removal(settings, "shapes")
    assert (set(plan.revisions), plan.users) == ({first[:12], second[:12]}, ())
    enter_run(settings, "2", 0.5, dataset="shapes", checksum=first)
    version = removal.RegisteredVersion("toys", "4", "2026-01-01", "2" * 32, {}, ("champion",))
    monkeypatch.setattr(removal, "list_registered", lambda *_: (version,))
    expected = rf"history of 2 revisions .* is needed by version 4 of toys \(revision {first[:12]}\), run 22222222 "
    with pytest.raises(DataError, match=expected):
        removal.remove_dataset(settings, "shapes")
    RemoveData(name="shapes", is_dry=True).run()
    printed = capsys.readouterr().out
    assert f"needed by version 4 of toys (revision {first[:12]})" in printed
    assert (settings.cache_dir / "shapes" / "manifest.json").exists()
    RemoveData(name="shapes", is_forced=True).run()
    assert "history of 2 revisions" in capsys.readouterr().out
    assert not (settings.cache_dir / "shapes").exists()
