import pytest

from model_code.errors import ReleaseError, TrackingError
from model_code.tracking.finished_runs import FinishedRun, find_finished_runs, get_finished_run, has_run
from model_code.tracking.store import EXPERIMENT


@pytest.fixture(scope="module")
def add_run(store):
    """Enter a run with these tags and metrics; its id comes back."""
    _, client = store
    experiment = client.get_experiment_by_name(EXPERIMENT)

    def add(recipe, accuracy, dataset="cifar10", status="FINISHED", test_accuracy=None, profile="full"):
        run_id = client.create_run(experiment.experiment_id).info.run_id
        for key, value in {"recipe": recipe, "kind": "supervised", "dataset": dataset, "profile": profile}.items():
            client.set_tag(run_id, key, value)
        if accuracy is not None:
            client.log_metric(run_id, "validation/best_accuracy", accuracy)
        if test_accuracy is not None:
            client.log_metric(run_id, "test/accuracy", test_accuracy)
        if status != "RUNNING":
            client.set_terminated(run_id, status)
        return run_id

    return add


@pytest.fixture
def client(store):
    return store[1]


def test_the_best_finished_run_of_the_recipe_is_found(client, add_run):
    add_run("exp", 0.80)
    best = add_run("exp", 0.90, test_accuracy=0.89)
    add_run("exp", 0.101)
    add_run("exp_other", 0.99)
    for status in ("FAILED", "KILLED", "RUNNING"):
        add_run("exp", 0.95, status=status)
    add_run("exp", 0.96, dataset="food11")
    add_run("exp", 0.97, dataset="my-cifar10")
    add_run("exp", 0.70, dataset="cifar10-with-feedback")
    client.delete_run(add_run("exp", 0.98))
    assert find_finished_runs(client, "exp", "cifar10")[0] == FinishedRun(
        run_id=best,
        recipe="exp",
        kind="supervised",
        profile="full",
        dataset="cifar10",
        validation_accuracy=0.90,
        test_accuracy=0.89,
    )
    assert [run.validation_accuracy for run in find_finished_runs(client, "exp", "cifar10")] == [
        *(0.90, 0.80, 0.70, 0.101)
    ]
    assert [run.dataset for run in find_finished_runs(client, "exp", "food*")] == ["food11"]


def test_a_full_run_comes_before_better_ones_with_other_budgets(client, add_run):
    add_run("budgets", 0.9, profile="smoke")
    full = add_run("budgets", 0.5)
    found = find_finished_runs(client, "budgets", "cifar10")
    assert (found[0].run_id, found[1].profile, found[1].test_accuracy) == (full, "smoke", None)


def test_the_data_set_is_matched_whole(client, add_run):
    add_run("whole", 0.5, dataset="cifar10-small")
    assert find_finished_runs(client, "whole", "cifar10") == []


def test_a_run_without_its_figure_does_not_count(client, add_run):
    best = add_run("figure", 0.3)
    add_run("figure", None)
    assert [run.run_id for run in find_finished_runs(client, "figure", "cifar10")] == [best]


def test_nothing_to_release(client, add_run):
    add_run("unlucky", 0.9, status="FAILED")
    for recipe, pattern in [("unlucky", "cifar10"), ("never_trained", "cifar10"), ("exp", "shapes")]:
        assert find_finished_runs(client, recipe, pattern) == []


def test_one_finished_run(client, add_run):
    run_id = add_run("one", 0.7, dataset="shapes", test_accuracy=0.6)
    assert get_finished_run(client, run_id) == FinishedRun(run_id, "one", "supervised", "full", "shapes", 0.7, 0.6)


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED"])
def test_a_run_that_is_not_finished(client, add_run, status):
    run_id = add_run("one", 0.7, status=status)
    with pytest.raises(ReleaseError, match=rf"^run {run_id} is {status}, not a finished training"):
        get_finished_run(client, run_id)


def test_a_finished_run_that_is_no_training(client, add_run):
    run_id = client.create_run(client.get_experiment_by_name(EXPERIMENT).experiment_id).info.run_id
    client.set_terminated(run_id)
    with pytest.raises(ReleaseError, match="not a finished training"):
        get_finished_run(client, run_id)


def test_a_run_that_trains_nothing_has_no_validation_accuracy(client, add_run):
    assert get_finished_run(client, add_run("one", None)).validation_accuracy is None
    assert find_finished_runs(client, "nothing trained", "cifar10") == []


@pytest.mark.parametrize("run_id", ["f" * 32, "nonsense", "../../etc"])
def test_an_unknown_run(client, run_id):
    with pytest.raises(TrackingError, match=rf"^MLflow holds no run '{run_id}'; `make ui` shows"):
        get_finished_run(client, run_id)


def test_a_deleted_run_is_not_there_to_go_on(client, add_run):
    run_id = add_run("gone", None, status="FAILED")
    assert has_run(client, run_id)
    client.delete_run(run_id)
    assert not has_run(client, run_id)
    assert not has_run(client, "f" * 32)
