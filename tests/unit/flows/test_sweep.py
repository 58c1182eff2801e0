"""The sweep command: what it refuses, what ends a trial early."""

import shlex
from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from flows.jobs import sweeps
from flows.jobs.sweeps import RunSweep
from flows.jobs.training import NewRecipe
from flows.operations import sweep as operation
from flows.operations.sweep import Curve, run_sweep
from model_code.data.add import add_dataset
from model_code.errors import DarkroomError, PrunedError, TrainingError
from model_code.recipes.catalog import build_config, get_recipe
from model_code.settings import load_settings
from model_code.sweeps.trials import Sweep, get_accuracy
from model_code.training.results import EpochMetrics


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARKROOM_HOME", str(folder))
        settings = load_settings()
        add_dataset("shapes", cache_dir=settings.cache_dir, data_dir=settings.data_dir, progress=False)
        yield folder


def make_sweep(folder, *, space="weight_decay = {low = 0.001, high = 0.01}", recipe="fastnet_cifar10", **given):
    file = folder / "space.toml"
    file.write_text(space, encoding="utf-8")
    return RunSweep.make(**{"recipe": recipe, "space_file": file, "dataset": "shapes", "trials": 2, **given})


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"trials": None}, "--trials N, --hours H"),
        ({"trials": 0}, "--trials=0"),
        ({"hours": -1.0}, "--hours=-1.0"),
        ({"name": "../up"}, "--name=../up"),
        ({"space": "weight_decay = 1"}, "weight_decay: 1 is one value"),
        ({"space": "weigth_decay = [1, 2]"}, "did you mean weight_decay"),
        ({"settings": ("weight_decay=0.1",)}, "weight_decay: given, and searched by"),
        ({"epochs": 2, "space": "epochs = [1, 2]"}, "epochs: given, and searched by"),
        ({"recipe": "resnet50_imagenet_untrained", "space": "batch_size = [10, 20]"}, "has no validation split"),
        ({"dataset": "flowers"}, "flowers"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(home, tmp_path, given, reason):
    with pytest.raises(DarkroomError) as refusal:
        make_sweep(tmp_path, **given).check()
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_without_optuna_a_line_says_what_installs_it(home, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "find_spec", lambda name: None if name == "optuna" else find_spec(name))
    with pytest.raises(DarkroomError, match=r"pip install 'optuna>=5'$"):
        make_sweep(tmp_path).check()


def make_epoch(epoch, score):
    return EpochMetrics(epoch, 0.1, 1.0, 10.0, 2.0, 0.1, 2.0, score, score)


@pytest.fixture
def sweep(home, tmp_path):
    job = make_sweep(tmp_path, profile="smoke")
    return Sweep(tmp_path / "sweep", job.training.config, "a" * 64, job.space, prune_after=1)


def test_a_curve_ends_its_trial_where_it_is_behind_but_not_after_the_last_epoch(sweep):
    with sweep.claim(None) as trial:
        whole = Curve(sweep, trial.number, epochs=2)
        whole.on_epoch_end(make_epoch(1, 0.5))
        whole.on_epoch_end(make_epoch(2, 0.6))
        sweep.complete(trial.number, 0.6)
    with sweep.claim(None) as trial:
        Curve(sweep, trial.number, epochs=1).on_epoch_end(make_epoch(1, 0.1))
        with pytest.raises(PrunedError, match="after epoch 1 of 2"):
            Curve(sweep, trial.number, epochs=2).on_epoch_end(make_epoch(1, 0.1))


def test_a_resumed_trial_is_judged_by_the_epochs_before_it_was_killed(sweep):
    with sweep.claim(None) as trial:
        Curve(sweep, trial.number, epochs=3).on_resume((make_epoch(1, 0.5), make_epoch(2, 0.6)))
        assert sweep.trials[0].intermediate_values == {1: 0.5, 2: 0.6}
        sweep.complete(trial.number, 0.6)
    with sweep.claim(None) as trial, pytest.raises(PrunedError):
        Curve(sweep, trial.number, epochs=3).on_resume((make_epoch(1, 0.4), make_epoch(2, 0.1)))


def test_the_best_trial_becomes_a_recipe_by_a_command(home, tmp_path):
    job = make_sweep(tmp_path, seed=3, epochs=2, settings=("label_smoothing=0.1",))
    words = shlex.split(job._name_recipe({"weight_decay": 0.002}))
    assert words[:6] == ["darkroom", "recipes", "new", "fastnet_cifar10_swept", "--from", "fastnet_cifar10"]
    assert {'dataset="shapes"', "label_smoothing=0.1", "epochs=2", "weight_decay=0.002"} <= set(words)


@pytest.mark.parametrize("given", [{}, {"profile": "smoke"}, {"limit_train": 300}, {"settings": ("learning_rate=1",)}])
def test_that_recipe_has_exactly_the_settings_of_the_trial(home, tmp_path, given):
    job = make_sweep(tmp_path, name="small", space="batch_size = [64, 128]", **given)
    values = {"batch_size": 128}
    words = shlex.split(job._name_recipe(values))
    name = f"swept_{'_'.join(given)}"
    NewRecipe.make(name=name, base=words[5], settings=tuple(words[7::2])).run()
    kept, trained = get_recipe(name).build(), job.make_config(values)
    neutral = {"recipe", "profile", "seed"}
    assert kept.model_dump(exclude=neutral) == trained.model_dump(exclude=neutral)
    own = build_config("fastnet_cifar10", given.get("profile", "full"))
    assert trained.learning_rate == (1 if "settings" in given else own.learning_rate), "not scaled with the batch"


def test_a_sweep_whose_first_trials_all_fail_ends(home, tmp_path, monkeypatch):
    job = make_sweep(tmp_path, profile="smoke", trials=10)
    sweep = Sweep(tmp_path / "sweep", job.training.config, "a" * 64, job.space, prune_after=1)
    monkeypatch.setattr(
        operation, "open_study", lambda *_: nullcontext(SimpleNamespace(open=lambda *_, **__: "parent"))
    )
    with pytest.raises(TrainingError, match=r"^3 trials failed one after the other"):
        run_sweep(sweep, lambda _: job.training.config.model_copy(update={"device": "cuda"}), 10, None)
    assert len(sweep.trials) == 3


def test_a_pruned_trial_is_shown_with_its_best_epoch(sweep):
    with sweep.claim(None) as trial:
        sweep.report(trial.number, 1, 0.5)
        sweep.report(trial.number, 2, 0.25)
        sweep.prune(trial.number)
    assert get_accuracy(sweep.trials[0]) == 0.5
