"""The study: which runs compete, what is released, what a plan says."""

import json
from types import SimpleNamespace

import pytest
import torch

from flows.experiments.inputs import open_inputs
from flows.jobs.study import TrainAll
from flows.operations import study, study_plan
from flows.operations.study import fetch_missing, rank_recipes, release_best
from flows.operations.study_plan import find_blocked, plan_study
from flows.printing.plans import print_blocked, print_plans
from flows.printing.runs import print_outcomes
from flows.printing.summaries import Outcome, Plan
from model_code.data.add import add_dataset
from model_code.data.cache import is_added
from model_code.data.sources.detect import DATASETS, get_known
from model_code.disk import take_lock
from model_code.errors import (
    BusyError,
    DataError,
    DiskFullError,
    DownloadError,
    ExportError,
    ReleaseError,
    TrackingError,
    TrainingError,
    UsageError,
)
from model_code.recipes.catalog import build_config
from model_code.settings import load_settings
from model_code.tracking.mlflow_log import MlflowTracking
from model_code.training.checkpoints import TrainingState, save_state
from model_code.training.run_folder import RunResult, create_run_folder
from serving.errors import BundleError

PLAIN, OTHER = "resnet18_cifar10_exp", "resnet18_cifar10_exp2"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def make_outcome(recipe, accuracy, *, seed=0, dataset="cifar10", profile="full", kind="supervised"):
    result = RunResult(
        run_id=f"{recipe}-{seed}-{profile}",
        kind=kind,
        recipe=recipe,
        profile=profile,
        dataset=dataset,
        metrics={"validation/best_accuracy": accuracy},
        seconds=1.0,
    )
    return Outcome(recipe=recipe, seed=seed, result=result)


class Releases(list):
    """What was released: (run id, name); a run in `refused` raises its error instead."""

    def __init__(self):
        super().__init__()
        self.refused = {}

    def release(self, run_id, name, **_):
        if run_id in self.refused:
            raise self.refused[run_id]
        self.append((run_id, name))


@pytest.fixture
def releases(monkeypatch):
    done = Releases()
    monkeypatch.setattr(study, "release", done.release)
    monkeypatch.setattr(study, "print_release", lambda summary: None)
    return done


def test_recipes_compete_by_the_mean_of_their_seeds(releases):
    # The best single run is not of the best recipe.
    outcomes = [make_outcome(PLAIN, accuracy, seed=seed) for seed, accuracy in enumerate((0.95, 0.70, 0.72))]
    outcomes += [make_outcome(OTHER, accuracy, seed=seed) for seed, accuracy in enumerate((0.85, 0.88, 0.86))]
    [choice] = release_best(outcomes)
    assert releases == [(f"{OTHER}-1-full", "cifar10")]
    assert choice.validation_accuracy == pytest.approx(0.8633, abs=1e-4)
    assert choice.seeds == 3


def test_each_data_set_has_a_best_run(releases):
    release_best(
        [
            make_outcome(PLAIN, 0.5, dataset="food10"),
            make_outcome(OTHER, 0.9, dataset="cifar10"),
            make_outcome(OTHER, 0.6, dataset="food10"),
            make_outcome(PLAIN, 0.8, dataset="flowers"),  # no other name takes it
        ]
    )
    assert releases == [(f"{OTHER}-0-full", "food"), (f"{OTHER}-0-full", "cifar10"), (f"{PLAIN}-0-full", "flowers")]


@pytest.mark.parametrize("champion", [None, "food10", "food10-with-feedback"])
def test_of_two_data_sets_with_one_name_the_champions_is_released(releases, monkeypatch, capsys, champion):
    def read(bundles_dir, name):
        if champion is None:
            raise BundleError("nothing is released")
        return None, None, SimpleNamespace(dataset=champion)

    monkeypatch.setattr(study, "read_champion", read)
    released = release_best([make_outcome(PLAIN, 0.5, dataset="food11"), make_outcome(OTHER, 0.9, dataset="food10")])
    assert releases == [(f"{PLAIN if champion is None else OTHER}-0-full", "food")]
    assert not released[0].error
    kept, other = ("food11", "food10") if champion is None else ("food10", "food11")
    assert f"no run on {other} is released: the models of food are those of {kept}" in capsys.readouterr().out


@pytest.mark.parametrize("champion", ["cifar10", "cifar10-with-feedback"])
def test_runs_on_images_with_feedback_compete_with_those_without(releases, monkeypatch, champion):
    monkeypatch.setattr(study, "read_champion", lambda *_: (None, None, SimpleNamespace(dataset=champion)))
    runs = [make_outcome(PLAIN, 0.5), make_outcome(OTHER, 0.9, dataset="cifar10-with-feedback")]
    [choice] = release_best(runs)
    assert (choice.run.recipe, choice.error) == (OTHER, "")
    assert releases == [(f"{OTHER}-0-full", "cifar10")]


def test_where_no_run_is_on_the_images_of_the_champion_the_table_says_so(releases, monkeypatch, capsys):
    monkeypatch.setattr(study, "read_champion", lambda *_: (None, None, SimpleNamespace(dataset="food10")))
    outcomes = [make_outcome("simsiam_food11", 0.5, dataset="food11", kind="simsiam")]
    released = release_best(outcomes)
    assert releases == []
    print_outcomes(outcomes, released)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("the models of food are those of food10") == 2, "the line and the table"
    assert "0.5000 by kNN" in printed


@pytest.mark.parametrize(("profiles", "best"), [(("full", "custom", "smoke"), "full"), (("smoke", "custom"), "custom")])
def test_runs_of_a_smaller_budget_never_stand_beside_full_ones(profiles, best):
    outcomes = [make_outcome(PLAIN, 0.9 - 0.2 * (profile == best), profile=profile) for profile in profiles]
    [choice] = rank_recipes(outcomes)["cifar10"]["cifar10"]
    assert choice.run.profile == best


def test_simsiam_competes_and_what_leaves_no_network_does_not():
    outcomes = [
        make_outcome("resnet18_cifar10_random", 0.99, kind="random_features"),
        make_outcome("simsiam_cifar10", 0.9, kind="simsiam"),
        make_outcome(PLAIN, 0.8),
        Outcome(recipe=OTHER, seed=0, error="failed"),
    ]
    ranked = rank_recipes(outcomes)["cifar10"]["cifar10"]
    assert [choice.run.recipe for choice in ranked] == ["simsiam_cifar10", PLAIN]
    assert rank_recipes(outcomes[:1]) == {}


def test_of_a_run_that_cannot_be_exported_the_next_recipe_is_released(releases, capsys):
    releases.refused = {f"{OTHER}-0-full": ExportError("it does not scale")}
    [choice] = release_best([make_outcome(PLAIN, 0.5), make_outcome(OTHER, 0.9)])
    assert releases == [(f"{PLAIN}-0-full", "cifar10")]
    assert not choice.error
    assert f"{OTHER} is not released: it does not scale" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error",
    [DiskFullError("the disk is full"), BusyError("busy"), TrackingError("no server"), ReleaseError("champion moved")],
)
def test_a_passing_failure_takes_no_lesser_recipe_and_does_not_stop_other_data_sets(releases, error):
    releases.refused = {f"{OTHER}-0-full": error}
    first, second = release_best(
        [make_outcome(PLAIN, 0.5), make_outcome(OTHER, 0.9), make_outcome(PLAIN, 0.4, dataset="food11")]
    )
    assert releases == [(f"{PLAIN}-0-full", "food")]
    assert (first.run.recipe, first.error, first.released) == (OTHER, str(error), None)
    assert not second.error


def test_a_name_without_a_release_does_not_stop_the_next(releases, capsys):
    releases.refused = {f"{PLAIN}-0-full": BundleError("it is damaged\nmore about it")}
    outcomes = [make_outcome(PLAIN, 0.5), make_outcome(OTHER, 0.5, dataset="food11")]
    released = release_best(outcomes)
    assert [choice.error for choice in released] == ["it is damaged", ""]
    assert releases == [(f"{OTHER}-0-full", "food")]
    print_outcomes(outcomes, released[:1])
    printed = capsys.readouterr().out
    assert "it is damaged" in printed
    assert "more about it" not in printed.split("best run by validation")[1]


def test_what_is_missing_is_fetched_where_it_can_be(monkeypatch, capsys):
    def fail(*_, **__):
        raise DownloadError("no network")

    configs = [build_config(name, changes={"dataset": "shapes"}) for name in (PLAIN, OTHER)]
    configs += [build_config("resnet18_food11"), build_config(PLAIN)]
    monkeypatch.setattr("model_code.data.sources.cifar_archive.download_file", fail)
    assert fetch_missing(configs) == ["cifar10 was not added: no network"]
    assert is_added("shapes", load_settings().cache_dir)
    printed = capsys.readouterr().out
    assert "cifar10 was not added: no network" in printed
    [line] = [line for line in printed.splitlines() if line.startswith("food11")]
    assert "https://" in line
    assert "darkroom data add food11 --from PATH" in line
    fetch_missing(configs[:1])
    assert capsys.readouterr().out == ""


def test_a_plan_tells_what_is_kept_trained_fetched_and_skipped(monkeypatch, capsys):
    fetch_missing([build_config(PLAIN, changes={"dataset": "shapes"})])
    configs = [build_config(PLAIN, changes={"dataset": "shapes", "seed": seed}) for seed in (0, 1)]
    configs += [build_config(PLAIN), build_config("resnet18_food11")]
    kept = make_outcome(PLAIN, 0.5).result
    monkeypatch.setattr(study_plan, "find_kept", lambda inputs, **_: kept if inputs.config.seed == 1 else None)
    plans = list(plan_study(configs, is_fetched=True))
    assert [plan.state.split(":")[0] for plan in plans] == ["train", "keep", "fetch, then train", "skip"]
    assert plans[0].seconds > 1, "100 epochs of 2,400 images"
    assert plans[1].seconds == 0
    assert plans[2].seconds > plans[0].seconds, "the same recipe on 50,000 images instead of 3,000"
    assert not is_added("cifar10", load_settings().cache_dir)
    capsys.readouterr()
    print_plans(plans, is_released=True)
    *lines, total, last = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:3] for line in lines if not line.startswith(" ")] == [
        ["shapes", "train", "1 run"],
        ["shapes", "keep", "1 run"],
        ["cifar10", "fetch, then train", "1 run"],
        ["food11", "skip", "1 run"],
    ]
    assert "together about" in total
    assert "released" in last


def test_a_plan_knows_what_will_have_been_trained_by_then():
    fetch_missing([build_config(PLAIN, changes={"dataset": "shapes"})])
    changes = {"dataset": "shapes", "network": "resnet18"}
    source, tuned = (build_config(f"simsiam_cifar10{end}", changes=changes) for end in ("", "_finetuned"))
    [alone] = plan_study([tuned], is_fetched=True)
    assert alone.state.startswith("fail: simsiam_cifar10_finetuned starts from simsiam_cifar10, which has no finished")
    before, after = plan_study([source, tuned], is_fetched=True)
    assert (before.state, after.state) == ("train", "train")
    assert min(before.seconds, after.seconds) > 1
    [blocked] = find_blocked([tuned, source])
    assert (blocked.recipe, blocked.state) == (tuned.recipe, alone.state)
    assert find_blocked([source, tuned]) == []


def test_what_a_study_lacks_is_said_before_it_begins(capsys):
    print_blocked(find_blocked([build_config("resnet18_food11", changes={"seed": seed}) for seed in (0, 1)]))
    first, second, *remedy = capsys.readouterr().out.splitlines()
    assert first == "without images or weights to start from; unless these are here at their turn, left out:"
    assert second == "food11  skip  2 runs"
    assert "darkroom data add food11" in " ".join(line.strip() for line in remedy)
    print_blocked([])
    assert capsys.readouterr().out == ""


def test_a_plan_of_fine_tuned_recipes_leaves_no_database(home):
    fetch_missing([build_config(PLAIN, changes={"dataset": "shapes"})])
    before = {path for path in home.rglob("*") if path.is_file()}
    [plan] = plan_study([build_config("simsiam_cifar10_finetuned", changes={"dataset": "shapes"})], is_fetched=True)
    assert "has no finished" in plan.state
    assert {path for path in home.rglob("*") if path.is_file()} == before


def test_a_dry_run_leaves_an_empty_home_empty(home, capsys):
    TrainAll(dry_run=True, only=("simsiam_*",), release=True).run()
    assert "nothing" not in capsys.readouterr().out
    TrainAll(dry_run=True, only=("simsiam_*",)).run()
    assert capsys.readouterr().out.endswith("\nnothing can be trained before what is missing is here\n")
    assert not home.exists()


def test_a_plan_says_when_its_times_are_measured_beside_a_training(monkeypatch, capsys):
    monkeypatch.setattr("flows.operations.study_plan.choose_device", lambda _: torch.device("cpu"))
    with take_lock(load_settings().locks_dir / "device-cpu.lock", "busy"):
        TrainAll(dry_run=True, only=(PLAIN,)).run()
        assert capsys.readouterr().out.startswith("another training uses cpu: runs beside it take longer")
    TrainAll(dry_run=True, only=(PLAIN,)).run()
    assert "another training" not in capsys.readouterr().out


def test_images_that_nobody_knows_are_refused_before_any_work(capsys):
    job = TrainAll.make(only=("resnet18_cifar10_exp*",), settings=("dataset=nosuch",), release=True)
    with pytest.raises(
        UsageError, match=r"^no data set is called nosuch; add it first: .darkroom data add nosuch --from"
    ):
        job.check()
    TrainAll.make(only=("resnet18_cifar10_exp*",), settings=("dataset=shapes",), release=True).check()
    assert capsys.readouterr().out == ""


def test_recipes_train_on_images_of_ones_own_but_those_whose_network_cannot_read_them(capsys, monkeypatch):
    settings = load_settings()
    with pytest.raises(DataError, match=r"^data set 'shapes' is not in"):
        TrainAll.make(dataset="shapes").check()
    folders = {"cache_dir": settings.cache_dir, "data_dir": settings.data_dir}
    add_dataset("shapes", **folders, image_size=16, progress=False)
    job = TrainAll.make(dataset="shapes", only=("fastnet_*",), profile="smoke", dry_run=True)
    job.check()
    assert [(config.recipe, config.dataset) for config in job.configs] == [
        ("fastnet_cifar10", "shapes"),
        ("fastnet_cifar10_long", "shapes"),
    ]
    assert job.configs[0].mean == job.configs[1].mean != build_config("fastnet_cifar10").mean
    job.run()
    left_out, *_ = capsys.readouterr().out.splitlines()
    assert left_out.startswith("fastnet_food10  left out: ")
    monkeypatch.setattr(TrainAll, "_train", lambda _: [Outcome(recipe="fastnet_cifar10", seed=0, error="no memory")])
    with pytest.raises(TrainingError, match=r"^1 of 2 runs failed: fastnet_cifar10;"):
        TrainAll.make(dataset="shapes", only=("fastnet_*",), profile="smoke", form="json").run()
    failed, skipped = map(json.loads, capsys.readouterr().out.splitlines())
    assert (failed["recipe"], failed["state"]) == ("fastnet_cifar10", "failed")
    assert (skipped["recipe"], skipped["seed"], skipped["state"]) == ("fastnet_food10", 0, "skipped")
    assert "pack shapes anew with --image-size" in skipped["error"]
    with pytest.raises(UsageError, match="pack shapes anew with --image-size"):
        TrainAll.make(dataset="shapes", only=("fastnet_food10",)).run()


def test_without_release_nothing_is_fetched():
    [plan] = plan_study([build_config(PLAIN)], is_fetched=False)
    assert plan.state.startswith("skip: data set 'cifar10' is not in")
    assert plan.seconds is None


@pytest.mark.parametrize("name", [name for name, known in DATASETS.items() if known.is_fetchable])
def test_of_every_data_set_that_can_be_fetched_a_plan_knows_the_images(name):
    known = get_known(name)
    assert known.counts
    if known.draw is not None:
        splits = known.draw(known.image_size).splits
        assert known.counts == {split: len(drawn.labels_N) for split, drawn in splits.items()}


def test_a_plan_of_many_runs_is_short(capsys):
    plans = [
        Plan(recipe=f"resnet18_cifar10_exp{number}", seed=seed, dataset="cifar10", state="train", seconds=7e3)
        for number in range(20)
        for seed in range(3)
    ]
    plans += [
        Plan(recipe=f"untrained_{number}", seed=0, dataset="imagenet-val", state="skip: not here; get it")
        for number in range(60)
    ]
    plans.append(Plan(recipe="tuned", seed=0, dataset="cifar10", state="fail: tuned starts from nothing"))
    print_plans(plans, is_released=False)
    printed = capsys.readouterr().out
    assert printed.count("not here; get it") == 1
    assert "imagenet-val  skip  60 runs\n" in printed
    assert "cifar10  fail  1 run\n    tuned: tuned starts from nothing\n" in printed
    assert printed.count(" x3 5 h 50 min") == 20, "the three seeds of a recipe together, on one line"
    assert len(printed.splitlines()) < 20
    assert max(map(len, printed.splitlines())) <= 80


def interrupt(config, epoch, run_id):
    """Leave the folder of a run that was interrupted after an epoch."""
    record = open_inputs(config).record.model_copy(update={"run_id": run_id})
    folder = create_run_folder(load_settings().checkpoints_dir, record)
    empty = torch.empty(0)
    save_state(folder.path, TrainingState(config.sha256(), epoch, epoch, {}, None, {}, {}, empty, empty, []))


def test_a_run_that_is_resumed_takes_the_epochs_that_are_left():
    config = build_config(PLAIN, changes={"dataset": "shapes", "epochs": 100})
    fetch_missing([config])
    [whole] = plan_study([config], is_fetched=True)
    interrupt(config, 90, "f" * 32)
    [unknown] = plan_study([config], is_fetched=True)
    assert (unknown.state, unknown.seconds) == ("train", whole.seconds), "MLflow does not hold it: it begins anew"
    interrupt(config, 90, MlflowTracking(load_settings()).create_run(config, "a" * 32))
    [plan] = plan_study([config], is_fetched=True)
    assert plan.state == "resume"
    assert plan.seconds < 0.2 * whole.seconds
