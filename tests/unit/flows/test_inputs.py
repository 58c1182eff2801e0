"""Finished runs that count as kept."""

import uuid

import pytest

from flows.experiments.device_lock import lock_device
from flows.experiments.inputs import find_kept, open_inputs
from flows.experiments.training import train, train_all
from flows.jobs.recipes import NewRecipe
from flows.jobs.releases import Release
from flows.jobs.training import Train
from model_code.data.add import add_dataset
from model_code.errors import DataError, ReleaseError, UsageError
from model_code.recipes.catalog import build_config
from model_code.settings import load_settings
from model_code.tracking.journal import JournalTracking
from model_code.tracking.mlflow_log import MlflowTracking
from model_code.tracking.provenance import hash_code
from model_code.tracking.store import open_store
from model_code.training.run_folder import RunResult, create_run_folder

RECIPE = "resnet18_cifar10_exp"


@pytest.fixture
def make_inputs(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "home"))
    settings = load_settings()
    add_dataset("shapes", cache_dir=settings.cache_dir, data_dir=settings.data_dir, progress=False)
    config = build_config(RECIPE, changes={"dataset": "shapes"})
    return lambda is_offline=False: open_inputs(config, is_offline=is_offline)


def finish(inputs, run_id):
    """Make the folder of a finished run."""
    folder = create_run_folder(load_settings().checkpoints_dir, inputs.record.model_copy(update={"run_id": run_id}))
    config = inputs.config
    folder.complete(
        RunResult(
            run_id=run_id,
            kind=config.kind,
            recipe=config.recipe,
            profile=config.profile,
            dataset=config.dataset,
            metrics={"validation/best_accuracy": 0.5},
            seconds=1.0,
            code_sha256=hash_code(),
        )
    )


def test_a_run_that_mlflow_does_not_hold_any_more_is_not_kept(make_inputs, capsys):
    inputs, settings = make_inputs(), load_settings()
    tracking = MlflowTracking(settings)
    older, newer = (tracking.create_run(inputs.config, uuid.uuid4().hex) for _ in range(2))
    finish(inputs, older)
    finish(inputs, newer)
    assert find_kept(inputs).run_id == newer
    open_store(settings).delete_run(newer)
    capsys.readouterr()
    assert find_kept(inputs).run_id == older
    assert capsys.readouterr().out == f"{RECIPE}  run {newer} is not in MLflow any more and is not kept\n"
    open_store(settings).delete_run(older)
    assert find_kept(inputs, is_silent=True) is None
    assert capsys.readouterr().out == ""


def test_a_complete_run_is_neither_resumed_nor_released_without_its_weights(make_inputs):
    inputs, run_id = make_inputs(), "ab" * 16
    finish(inputs, run_id)
    with pytest.raises(UsageError, match=f"^run {run_id} is complete; there is nothing to resume$"):
        Train.make(recipe=RECIPE, dataset="shapes", resume=run_id[:8]).check()
    with pytest.raises(ReleaseError, match=f"^run {run_id} has no weights here "):
        Release.make(source=run_id[:8], name="shapes").check()


def test_a_recipe_of_ones_own_is_for_images_that_are_there(make_inputs):
    NewRecipe.make(name="mine", base=RECIPE, dataset="shapes").check()
    with pytest.raises(DataError, match="did you mean shapes"):
        NewRecipe.make(name="mine", base=RECIPE, dataset="shape").check()
    with pytest.raises(UsageError, match="no recipe 'nosuch'"):
        NewRecipe.make(name="mine", base="nosuch").check()


def test_weights_that_cannot_be_downloaded_leave_no_run_behind(make_inputs, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    make_inputs()
    monkeypatch.setattr("torchvision.models.ResNet18_Weights.get_state_dict", refuse)
    config = build_config("resnet18_cifar10_exp9", "smoke", {"dataset": "shapes"})
    [outcome] = train_all(
        [config], lambda inputs: train(inputs, JournalTracking(load_settings().checkpoints_dir), lock_device)
    )
    assert outcome.is_skipped
    assert "could not be downloaded (no network)" in outcome.error
    assert not list(load_settings().checkpoints_dir.glob("*"))


def test_without_mlflows_database_nothing_is_kept_but_offline(make_inputs):
    finish(make_inputs(), uuid.uuid4().hex)
    assert find_kept(make_inputs()) is None
    assert find_kept(make_inputs(is_offline=True)) is not None
    assert not (load_settings().home / "mlflow.db").exists()
