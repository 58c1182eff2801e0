"""Sweeps: trainings of one recipe with settings that Optuna proposes."""

import json
import shlex
from collections.abc import Mapping
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.jobs.job import QUIET, AnyDatasetName, Job, RecipeName, argument, option
from flows.jobs.runners import ADDRESS, RUNNER, RunnerName, check_runner, open_runner
from flows.jobs.training import DATASET, PROFILE, Profile, Train
from flows.printing.narration import narrating
from model_code.errors import TrainingError, UsageError
from model_code.settings import load_settings
from serving.listing import FORM, Form

if TYPE_CHECKING:
    from model_code.sweeps.space import Space
    from model_code.training.run_folder import AnyConfig

_NOT_SWEPT = {"profile", "seed", "device"}
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"


class RunSweep(Job):
    """Search settings of a recipe: each trial is one training, the best validation accuracy wins.

    A repeated command resumes the same sweep, also beside another process that works on it: what was trained is
    kept, a trial whose process was killed is resumed.
    """

    command = "sweep"
    loads = ("PyTorch", "MLflow")
    is_resumable = True

    recipe: RecipeName = argument("RECIPE", "See `darkroom recipes`.")
    space_file: Path = option(
        ..., "TOML file of the settings to search and their ranges or choices.", name="--space", metavar="FILE"
    )
    trials: int | None = option(None, "Trials of the whole sweep; this, --hours or both are needed.", ge=1)
    hours: float | None = option(None, "Time after which this command begins no further trial.", gt=0)
    prune_after: int = option(
        5,
        "Complete trials from which on one whose validation accuracy is below their median is ended early; 0 ends "
        "none.",
        ge=0,
    )
    name: str | None = option(None, "Name of the sweep; the recipe's if not given.", pattern=NAME_PATTERN)
    dataset: AnyDatasetName = option(None, DATASET, name="--data", metavar="NAME")
    profile: Profile = option("full", PROFILE)
    seed: int | None = option(None, "Seed of what is tried and of every training; the recipe's own if not given.", ge=0)
    epochs: int | None = option(None, "Epochs of a trial; the recipe's own if not given.", ge=1)
    limit_train: int | None = option(None, "Use so many training images, before the validation split.", ge=1)
    settings: tuple[str, ...] = option((), "Setting of every trial; repeatable.", name="--set", metavar="KEY=VALUE")
    at_once: int | None = option(
        None,
        "Trials that are trained side by side; without it one, with --runner ray one for each GPU, or for each node if "
        "there is none.",
        metavar="N",
        ge=1,
    )
    runner: RunnerName = option("local", RUNNER)
    address: str | None = option(None, ADDRESS, metavar="HOST:PORT")
    form: Form = option("table", FORM, name="--format")
    is_quiet: bool = option(False, QUIET, name="--quiet")

    @property
    def loading(self) -> tuple[str, ...]:
        return (*self.loads, "Ray") if self.runner == "ray" else self.loads

    @cached_property
    def training(self) -> Train:
        """The training that every trial is, but for the settings that are searched."""
        return self._make_training({})

    @cached_property
    def space(self) -> "Space":
        """Settings to search; no framework is needed to check them."""
        from model_code.sweeps.space import read_space

        return read_space(self.space_file, self.training.own_config)

    def make_config(self, values: Mapping[str, Any]) -> "AnyConfig":
        """Return the settings of a trial."""
        return self._make_training(values).config

    def check(self) -> None:
        if find_spec("optuna") is None:
            raise UsageError('sweep needs Optuna, which is not installed: pip install "darkroom[sweep]"')
        check_runner(self.runner, self.address)
        if self.address is not None and load_settings().storage is not None:
            raise UsageError(
                "the trials of a sweep share its folder, so that all nodes need one DARKROOM_HOME; unset "
                "DARKROOM_STORAGE"
            )
        if self.trials is None and self.hours is None:
            raise UsageError("a sweep ends after --trials N, --hours H or whichever comes first; give one of them")
        from model_code.recipes.catalog import get_recipe
        from model_code.training.epoch_config import EpochConfig

        if not isinstance(get_recipe(self.recipe).build(), EpochConfig):
            raise UsageError(
                f"{self.recipe} trains no network and has no validation split, whose accuracy a sweep compares; "
                "choose a recipe of kind supervised or simsiam"
            )
        self.training.check()
        if twice := sorted(set(self.space) & set(self.training.changes)):
            raise UsageError(f"{', '.join(twice)}: given, and searched by {self.space_file}; leave one of them out")

    def run(self) -> None:
        from flows.operations.sweep import run_sweep
        from flows.printing.sweeps import print_sweep
        from model_code.data.cache import read_manifest
        from model_code.sweeps.trials import Sweep

        settings, config = load_settings(), self.training.config
        images = read_manifest(config.dataset, settings.cache_dir).checksum
        folder = settings.sweeps_dir / (self.name or self.recipe)
        sweep = Sweep(folder, config, images, self.space, self.prune_after)
        with narrating(self.form, is_quiet=self.is_quiet):
            at_once = min(self.at_once, self.trials or self.at_once) if self.at_once else None
            runner = open_runner(self.runner, at_once, self.address)
            run_sweep(sweep, self.make_config, self.trials, self.hours, runner)
        best = sweep.best
        print_sweep(sweep, self.form, "" if best is None or self.is_quiet else self._name_recipe(best.params))
        if best is None and not sweep.has_unfinished:
            raise TrainingError("no trial is complete; the lines above say why")

    def _name_recipe(self, values: Mapping[str, Any]) -> str:
        """Return the command that makes a recipe of a trial, with exactly its settings."""
        from model_code.recipes.catalog import get_recipe

        before = get_recipe(self.recipe).build().flatten()
        after = self.make_config(values).flatten()
        changes = {name: value for name, value in after.items() if value != before[name] and name not in _NOT_SWEPT}
        words = ["darkroom", "recipes", "new", f"{(self.name or self.recipe)[:58]}_swept", "--from", self.recipe]
        for assignment in _assign(changes):
            words += ["--set", assignment]
        return shlex.join(words)

    def _make_training(self, values: Mapping[str, Any]) -> Train:
        given = self.model_dump(include={"recipe", "dataset", "profile", "seed", "epochs", "limit_train"})
        return Train.make(**given, settings=(*self.settings, *_assign(values)))


def _assign(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={json.dumps(value)}" for name, value in values.items()]
