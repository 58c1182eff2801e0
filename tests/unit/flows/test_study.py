"""The study: which runs compete, what is released, what a plan says."""

import pytest

from flows.operations import study, study_plan
from flows.operations.study import choose_best, fetch_missing, release_best
from flows.operations.study_plan import plan_study
from flows.printing.summaries import Outcome
from flows.printing.tables import print_outcomes, print_plans
from model_code.data.cache import is_added
from model_code.errors import DownloadError, ReleaseError
from model_code.recipes.catalog import build_config
from model_code.settings import load_settings
from model_code.training.run_folder import RunResult
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


def test_recipes_compete_by_the_mean_of_their_seeds():
    # The best single run is not of the best recipe.
    outcomes = [make_outcome(PLAIN, accuracy, seed=seed) for seed, accuracy in enumerate((0.95, 0.70, 0.72))]
    outcomes += [make_outcome(OTHER, accuracy, seed=seed) for seed, accuracy in enumerate((0.85, 0.88, 0.86))]
    [choice] = choose_best(outcomes)
    assert (choice.name, choice.run.run_id) == ("cifar10", f"{OTHER}-1-full")
    assert choice.validation_accuracy == pytest.approx(0.8633, abs=1e-4)
    assert (choice.seeds, choice.recipes) == (3, 2)


def test_each_data_set_has_a_best_run_and_the_food_sets_one_name():
    outcomes = [
        make_outcome(PLAIN, 0.5, dataset="food10"),
        make_outcome(OTHER, 0.9, dataset="cifar10"),
        make_outcome(OTHER, 0.6, dataset="food10"),
        make_outcome(PLAIN, 0.8, dataset="flowers"),  # no registered name takes it
    ]
    chosen = [(choice.name, choice.run.dataset, choice.run.recipe) for choice in choose_best(outcomes)]
    assert chosen == [("cifar10", "cifar10", OTHER), ("food", "food10", OTHER)]


@pytest.mark.parametrize(("profiles", "best"), [(("full", "custom", "smoke"), "full"), (("smoke", "custom"), "custom")])
def test_runs_of_a_smaller_budget_never_stand_beside_full_ones(profiles, best):
    outcomes = [make_outcome(PLAIN, 0.9 - 0.2 * (profile == best), profile=profile) for profile in profiles]
    [choice] = choose_best(outcomes)
    assert choice.run.profile == best


def test_simsiam_competes_and_what_leaves_no_network_does_not():
    outcomes = [
        make_outcome("resnet18_cifar10_random", 0.99, kind="random_features"),
        make_outcome("simsiam_cifar10", 0.9, kind="simsiam"),
        make_outcome(PLAIN, 0.8),
        Outcome(recipe=OTHER, seed=0, error="failed"),
    ]
    [choice] = choose_best(outcomes)
    assert (choice.run.recipe, choice.recipes) == ("simsiam_cifar10", 2)
    assert choose_best(outcomes[:1]) == []


def test_a_release_that_fails_does_not_stop_the_next(monkeypatch, capsys):
    def refuse(run_id, name, **_):
        kind = ReleaseError if name == "cifar10" else BundleError
        raise kind(f"{name} cannot be exported\nmore about it")

    monkeypatch.setattr(study, "release", refuse)
    outcomes = [make_outcome(PLAIN, 0.5, dataset=dataset) for dataset in ("cifar10", "food11")]
    released = release_best(outcomes)
    assert [choice.error for choice in released] == ["cifar10 cannot be exported", "food cannot be exported"]
    print_outcomes(outcomes, released)
    printed = capsys.readouterr().out
    assert "food cannot be exported" in printed
    assert "more about it" not in printed.split("validation")[-1]


def test_what_is_missing_is_fetched_where_it_can_be(monkeypatch, capsys):
    def fail(*_, **__):
        raise DownloadError("no network")

    configs = [build_config(name, changes={"dataset": "shapes"}) for name in (PLAIN, OTHER)]
    configs += [build_config("resnet18_food11"), build_config(PLAIN)]
    monkeypatch.setattr("model_code.data.sources.cifar_archive.download_file", fail)
    fetch_missing(configs)
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
    monkeypatch.setattr(study_plan, "find_kept", lambda inputs: kept if inputs.config.seed == 1 else None)
    plans = list(plan_study(configs, is_fetched=True))
    assert [plan.state.split(":")[0] for plan in plans] == ["train", "keep", "fetch, then train", "skip"]
    assert plans[0].seconds > 1, "100 epochs of 2,400 images"
    assert plans[1].seconds == 0
    assert not is_added("cifar10", load_settings().cache_dir)
    capsys.readouterr()
    print_plans(plans, is_released=True)
    *lines, total, last = capsys.readouterr().out.splitlines()
    assert len(lines) == len(plans)
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


def test_without_release_nothing_is_fetched():
    [plan] = plan_study([build_config(PLAIN)], is_fetched=False)
    assert plan.state.startswith("skip: data set 'cifar10' is not in")
    assert plan.seconds is None
