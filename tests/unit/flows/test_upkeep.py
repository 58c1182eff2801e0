import pytest

from flows.operations.upkeep import find_problems
from model_code.data.add import add_dataset
from model_code.settings import Settings
from model_code.training.run_folder import RunRecord, RunResult, create_run_folder
from tests.unit.serving.tiny_bundle import release
from tests.unit.training.small_runs import make_config

INTERRUPTED, FINISHED = "1" * 32, "2" * 32


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.operations.upkeep.ENOUGH_DISK_BYTES", 0)
    return Settings(home=tmp_path, tracking_uri="sqlite://", has_mlflow_server=False)


def make_run(settings, run_id, **changes):
    record = RunRecord(
        run_id=run_id, data_checksum="c" * 64, config=make_config(network="resnet18_torchvision", **changes)
    )
    return create_run_folder(settings.checkpoints_dir, record)


def finish(folder):
    folder.complete(
        RunResult(
            run_id=folder.record.run_id,
            kind="supervised",
            recipe="tiny_pets_test",
            profile="smoke",
            dataset=folder.record.config.dataset,
            metrics={},
            seconds=1,
        )
    )


def test_images_that_an_interrupted_run_needs_are_missed(settings):
    make_run(settings, INTERRUPTED)
    finish(make_run(settings, FINISHED, dataset="pets"))
    (problem,) = find_problems(settings)
    assert problem == (
        f"data set shapes is not in {settings.cache_dir}, but interrupted run {INTERRUPTED} came from it; "
        "add it with `darkroom data add shapes`"
    )
    add_dataset("shapes", cache_dir=settings.cache_dir, data_dir=settings.data_dir, progress=False)
    assert find_problems(settings) == []


def test_images_that_a_released_model_came_from_are_missed(settings):
    release(settings.bundles_dir, manifest={"dataset": "pets"})
    (problem,) = find_problems(settings)
    assert "data set pets is not in" in problem
    assert "released model" in problem
