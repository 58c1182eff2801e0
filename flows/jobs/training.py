"""Training: the recipes that there are, one of them, every one."""

import re
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Literal

from flows.jobs.job import (
    INTERRUPTED,
    OFFLINE,
    QUIET,
    RECIPE_PATTERNS,
    RECIPES,
    AnyDatasetName,
    Job,
    RecipeName,
    argument,
    option,
)
from flows.printing.narration import narrating
from model_code.errors import DownloadError, NothingDoneError, ReleaseError, SizeError, TrainingError, UsageError
from model_code.settings import load_settings, read_rank
from serving.listing import FORM, Form

if TYPE_CHECKING:
    from collections.abc import Callable

    from flows.experiments.inputs import RunInputs
    from flows.operations.runner import Runner
    from flows.printing.summaries import Choice, Outcome
    from model_code.training.run_folder import AnyConfig, RunResult

Profile = Literal["full", "smoke"]
RunnerName = Literal["local", "ray"]
DATASET = (
    "Packed data set, see `darkroom data list`; the recipe's own if not given. Mean, standard deviation and sizes "
    "follow the images unless --set sets them."
)
_ADDRESS_PATTERN = re.compile(r"[^\s/:]+:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}")
RUNNER = "local: processes of this machine; ray: nodes of a Ray cluster, or a Ray of this machine."
ADDRESS = "Ray cluster that this machine is a node of."
PROFILE = "full: the documented budget; smoke: minutes on two CPU cores, compared with nothing."


def _change_dataset(config: "AnyConfig", dataset: str | None, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the changes of a config's settings with those that other images need."""
    if dataset is None:
        return changes
    _check_dataset(dataset, changes)
    from model_code.data.cache import open_dataset
    from model_code.training.adaptation import adapt

    return adapt(config, open_dataset(dataset, load_settings().cache_dir), changes) | changes


def _check_dataset(dataset: str | None, changes: dict[str, Any]) -> None:
    if dataset is not None and changes.get("dataset", dataset) != dataset:
        raise UsageError(f"--data {dataset} and --set dataset={changes['dataset']} contradict; give one of them")


def _check_batch(config: "AnyConfig", count: int) -> None:
    """Refuse training images that fill no batch, whichever are held out, before any framework is imported."""
    from model_code.training.config import TrainingConfig
    from model_code.training.epoch_config import check_batch

    if isinstance(config, TrainingConfig) and config.pseudo_label_confidence is None:
        check_batch(min(count, config.limit_train or count), config.batch_size)


def check_runner(runner: RunnerName, address: str | None, *, is_used: bool = True) -> None:
    """Refuse an address that Ray would not take, and Ray where it is used and not installed."""
    if runner != "ray":
        if address is not None:
            raise UsageError(f"--address {address} needs --runner ray")
        return
    if address is not None and not _ADDRESS_PATTERN.fullmatch(address):
        raise UsageError(f"--address {address}: give HOST:PORT, as `ray start --head` prints it")
    if is_used and find_spec("ray") is None:
        raise UsageError('--runner ray needs Ray, which is not installed: pip install "darkroom[ray]"')


def open_runner(runner: RunnerName, at_once: int | None, address: str | None) -> "Runner | None":
    """Return what trains runs side by side; None for one after another in this process.

    Args:
        runner: Kind of it.
        at_once: Most runs at the same time; None for what Ray has room for, else one.
        address: Ray cluster; None for this machine.
    """
    if runner == "ray":
        from flows.operations.ray_runs import RayRuns

        return RayRuns(at_once, address)
    if at_once is None or at_once == 1:
        return None
    from flows.operations.run_processes import RunProcesses

    return RunProcesses(at_once)


class ListRecipes(Job):
    """List every recipe with its published figure, or show one recipe's evidence."""

    command = "recipes"

    name: Annotated[str | None, RECIPES] = argument("NAME", default=None)
    form: Form = option("table", FORM, name="--format")

    def run(self) -> None:
        from flows.printing.tables import print_recipe, print_recipes
        from model_code.recipes.catalog import get_recipe, list_recipes

        if self.name is None:
            print_recipes(list_recipes(), self.form)
        else:
            print_recipe(get_recipe(self.name), self.form)


class NewRecipe(Job):
    """Write a recipe of one's own: a file that changes settings of another recipe.

    It is listed, trained, tracked, released and reported like those of the package, and can be edited.
    """

    command, loads = "recipes new", ("PyTorch",)

    name: str = argument("NAME")
    base: RecipeName = option(..., "Recipe whose settings it changes.", name="--from", metavar="RECIPE")
    dataset: AnyDatasetName = option(
        None, "Packed data set; mean, standard deviation and sizes follow the images.", name="--data", metavar="NAME"
    )
    title: str = option("", "What it is, one line.", metavar="TEXT")
    settings: tuple[str, ...] = option((), "Setting that differs; repeatable.", name="--set", metavar="KEY=VALUE")

    @property
    def loading(self) -> tuple[str, ...]:
        return () if self.dataset is None else self.loads

    def check(self) -> None:
        from model_code.data.cache import read_manifest
        from model_code.recipes.catalog import get_recipe

        get_recipe(self.base)
        if self.dataset is not None:
            read_manifest(self.dataset, load_settings().cache_dir)

    def run(self) -> None:
        from model_code.recipes.catalog import add_recipe, get_recipe
        from model_code.training.run_config import parse_assignment

        changes = _change_dataset(
            get_recipe(self.base).build(), self.dataset, dict(map(parse_assignment, self.settings))
        )
        print(f"{self.name}: {add_recipe(self.name, self.base, self.title, changes)}")


class Train(Job):
    """Train one recipe. A repeated command continues a run that was interrupted.

    On N GPUs: torchrun --nproc-per-node N --no-python darkroom train RECIPE
    """

    command, flow, run_name, is_retried = "train", "train-recipe", "train-{recipe}", True
    loads = ("PyTorch", "MLflow", "Prefect")
    is_resumable = True

    recipe: RecipeName = argument("RECIPE", "See `darkroom recipes`.")
    dataset: AnyDatasetName = option(None, DATASET, name="--data", metavar="NAME")
    profile: Profile = option("full", PROFILE)
    seed: int | None = option(None, "Seed of the run; the recipe's own if not given.", ge=0)
    epochs: int | None = option(None, "Epochs; the recipe's own if not given.", ge=1)
    limit_train: int | None = option(None, "Use so many training images, before the validation split.", ge=1)
    resume: Annotated[str | None, INTERRUPTED] = option(None, "Continue this interrupted run.", metavar="RUN_ID")
    settings: tuple[str, ...] = option((), "Any setting of the recipe; repeatable.", name="--set", metavar="KEY=VALUE")
    offline: bool = option(False, OFFLINE)
    form: Form = option("table", FORM, name="--format")
    is_quiet: bool = option(False, QUIET, name="--quiet")

    @property
    def loading(self) -> tuple[str, ...]:
        return ("PyTorch",) if self.offline else self.loads

    @property
    def has_flow(self) -> bool:
        return not self.offline

    @cached_property
    def changes(self) -> dict[str, Any]:
        """Settings that are given."""
        from model_code.training.run_config import parse_assignment

        given = self.model_dump(include={"seed", "epochs", "limit_train"}, exclude_none=True)
        return dict(map(parse_assignment, self.settings)) | given

    @cached_property
    def config(self) -> "AnyConfig":
        """Settings of the run; what is not given stays as the recipe has it, or follows the images of --data."""
        from model_code.recipes.catalog import build_config

        changes = _change_dataset(self.own_config, self.dataset, self.changes)
        return self.own_config if self.dataset is None else build_config(self.recipe, self.profile, changes)

    @cached_property
    def own_config(self) -> "AnyConfig":
        """Settings of the run with the recipe's own images, for which no framework is needed."""
        from model_code.recipes.catalog import build_config

        return build_config(self.recipe, self.profile, self.changes)

    @cached_property
    def inputs(self) -> "RunInputs":
        """What the run is made from, opened once."""
        from flows.experiments.inputs import open_inputs

        return open_inputs(self.config, is_offline=self.offline)

    def check(self) -> None:
        own_dataset = self.own_config.dataset  # refuses an unknown recipe or setting before a framework is loaded
        dataset = own_dataset if self.dataset is None else self.dataset
        _check_dataset(self.dataset, self.changes)
        if read_rank()[0] > 0:
            return
        from model_code.data.cache import read_manifest
        from model_code.training.run_folder import open_run_folder, resolve_run_id

        settings = load_settings()
        manifest = read_manifest(dataset, settings.cache_dir)
        # For other images a full run's batch may become smaller.
        if dataset == own_dataset and "train" in manifest.splits:
            _check_batch(self.own_config, manifest.splits["train"].count)
        if self.resume is not None:
            run_id = resolve_run_id(settings.checkpoints_dir, self.resume)
            if open_run_folder(settings.checkpoints_dir, run_id).result is not None:
                raise UsageError(f"run {run_id} is complete; there is nothing to resume")

    def prepare(self) -> None:
        assert self.inputs if read_rank()[0] == 0 else self.config

    def run(self) -> None:
        if read_rank()[0] > 0:
            from flows.experiments.followers import follow_training

            follow_training(self.config)
            return
        from model_code.training.run_folder import resolve_run_id

        resume = self.resume and resolve_run_id(load_settings().checkpoints_dir, self.resume)
        with narrating(self.form, is_quiet=self.is_quiet):
            result = _load_trainer(self.offline)(self.inputs, resume)
        from flows.printing.tables import print_result

        print_result(result, self.form, seed=self.config.seed, is_offline=self.offline)


class TrainAll(Job):
    """Train every recipe, one after another or several at once; what was trained before with the same settings is kept.

    Recipes whose images are not here, or whose pretrained weights cannot be downloaded, are skipped.

    With --release it is the whole study: images that are missing are fetched where they can be; after the trainings the
    best run of each data set, by validation, is released under cifar10, food, shapes or the data set's own name, and
    the report is written.
    """

    command, flow, run_name, is_retried = "train-all", "train-every-recipe", "train-every-recipe-{profile}", True
    loads = ("PyTorch", "MLflow", "Prefect")
    is_resumable = True

    profile: Profile = option("full", PROFILE)
    only: Annotated[tuple[str, ...], RECIPE_PATTERNS] = option(
        (), "Recipes whose name matches, such as 'resnet18_*'; repeatable.", metavar="GLOB"
    )
    dataset: AnyDatasetName = option(None, DATASET, name="--data", metavar="NAME")
    seeds: tuple[int, ...] = option(
        (),
        "Repeatable. Without it: three where a claim rests on a difference, else one; in smoke runs one.",
        name="--seed",
    )
    settings: tuple[str, ...] = option(
        (), "Setting of every recipe that has it; repeatable.", name="--set", metavar="KEY=VALUE"
    )

    at_once: int = option(1, "Runs that are trained side by side, each in a process of its own.", metavar="N", ge=1)
    runner: RunnerName = option("local", RUNNER)
    address: str | None = option(None, ADDRESS, metavar="HOST:PORT")
    release: bool = option(False, "Fetch what is missing; then release the best run of each data set and report.")
    offline: bool = option(False, OFFLINE)
    dry_run: bool = option(False, "Say what would be done, and in about what time on this machine; change nothing.")
    form: Form = option("table", FORM, name="--format")
    is_quiet: bool = option(False, QUIET, name="--quiet")

    @property
    def configs(self) -> "list[AnyConfig]":
        """Settings of every run; each setting reaches the recipes that have it."""
        return self._runs[0]

    @cached_property
    def _runs(self) -> "tuple[list[AnyConfig], dict[tuple[str, int], str]]":
        """Settings of every run, and why those of a recipe and a seed do not fit the images of --data."""
        from model_code.recipes.catalog import has_setting, match_recipes
        from model_code.training.run_config import parse_assignment

        entries = match_recipes(*self.only)
        keys = {setting: parse_assignment(setting)[0] for setting in self.settings}
        for setting, key in keys.items():
            if not any(has_setting(entry.name, key) for entry in entries):
                raise UsageError(f"--set {setting}: none of these recipes has a setting {key!r}")
        configs, unfit = [], {}
        for entry in entries:
            own = tuple(setting for setting, key in keys.items() if has_setting(entry.name, key))
            documented = entry.seeds if self.profile == "full" else entry.seeds[:1]
            for seed in self.seeds or ((None,) if "seed" in keys.values() else documented):
                one = Train(recipe=entry.name, profile=self.profile, dataset=self.dataset, seed=seed, settings=own)
                try:
                    configs.append(one.config)
                except SizeError as error:
                    unfit[entry.name, one.own_config.seed] = str(error)
        if not configs:
            raise UsageError("; ".join(dict.fromkeys(unfit.values())))
        return configs, unfit

    @property
    def _processes(self) -> int:
        """Most runs at the same time: more than there are would leave processors idle."""
        return min(self.at_once, len(self.configs))

    @property
    def loading(self) -> tuple[str, ...]:
        libraries = ("PyTorch",) if self.offline else self.loads
        return (*libraries, "Ray") if self.runner == "ray" and not self.dry_run else libraries

    @property
    def has_flow(self) -> bool:
        return not (self.dry_run or self.offline)

    @property
    def writes_home(self) -> bool:
        return not self.dry_run

    def check(self) -> None:
        check_runner(self.runner, self.address, is_used=not self.dry_run)
        if self.offline and self.release:
            raise UsageError("--offline and --release exclude each other: sync the runs, and release where MLflow is")
        from model_code.data.cache import format_remedy, is_added, read_manifest
        from model_code.data.sources.detect import is_known

        if self.dataset is not None:
            read_manifest(self.dataset, load_settings().cache_dir)
            return
        names = dict.fromkeys(config.dataset for config in self.configs)
        if any(is_added(name, load_settings().cache_dir) for name in names):
            return
        remedy = format_remedy(next(iter(names)))
        if not any(map(is_known, names)):
            raise UsageError(f"no data set is called {', '.join(names)}; add it first: {remedy}")
        if not (self.release or self.dry_run):
            raise NothingDoneError(
                f"every recipe would be skipped: the images of {', '.join(names)} are not here; add them: {remedy}"
            )

    def run(self) -> None:
        with narrating(self.form, is_quiet=self.is_quiet):
            for name, reason in {recipe: reason for (recipe, _), reason in self._runs[1].items()}.items():
                print(f"{name}  left out: {reason}", flush=True)
        if self.dry_run:
            self._print_plan()
            return
        unfetched: list[str] = []
        released: list[Choice] = []
        with narrating(self.form, is_quiet=self.is_quiet):
            if self.release:
                from flows.operations.study import fetch_missing

                unfetched = fetch_missing(self.configs)
            outcomes = self._train()
            if self.release:
                from flows.operations.study import release_best

                released = release_best(outcomes)
        from flows.printing.summaries import Outcome
        from flows.printing.tables import print_outcomes

        outcomes += [
            Outcome(recipe=recipe, seed=seed, is_skipped=True, error=reason)
            for (recipe, seed), reason in self._runs[1].items()
        ]
        print_outcomes(outcomes, released, self.form, next_step=self._next_step)
        if self.release:
            from flows.jobs.report import Report

            with narrating(self.form, is_quiet=self.is_quiet):
                Report().run()
        failed = [outcome.recipe for outcome in outcomes if outcome.result is None and not outcome.is_skipped]
        if failed:
            raise TrainingError(
                f"{len(failed)} of {len(outcomes)} runs failed: {', '.join(failed)}; their lines say why"
            )
        if refused := [choice.name for choice in released if choice.error]:
            raise ReleaseError(f"nothing was released as {', '.join(refused)}; the lines above say why")
        if unfetched:
            raise DownloadError("; ".join(unfetched))
        if all(outcome.is_skipped for outcome in outcomes):
            raise NothingDoneError("every recipe was skipped; the lines above say why")

    @property
    def _next_step(self) -> str:
        if self.release:
            return ""
        return "darkroom runs pack RUN... --out DIR" if self.offline else "darkroom report, darkroom ui"

    def _train(self) -> "list[Outcome]":
        runner = open_runner(self.runner, self._processes, self.address)
        if not self.offline:
            from flows.operations.training import train_study

            return train_study(self.configs, runner)
        if runner is None:
            from flows.experiments.training import train_all, train_offline

            return train_all(self.configs, train_offline, is_offline=True)
        from flows.experiments.device_lock import lock_device
        from flows.operations.side_by_side import train_side_by_side

        return train_side_by_side(self.configs, runner, lock_device)

    def _print_plan(self) -> None:
        from flows.operations.study_plan import find_busy_device, plan_study
        from flows.printing.tables import print_plans
        from model_code.data.progress import show_progress

        plans = []
        with narrating(self.form, is_quiet=self.is_quiet):
            if device := find_busy_device():
                print(f"another training uses {device}: beside it the times below are longer than alone", flush=True)
            if self._processes > 1:
                print(
                    f"the times below are of one run after another: {self._processes} at once share the device",
                    flush=True,
                )
            with show_progress("estimating", len(self.configs), "runs") as advance:
                for plan in plan_study(self.configs, is_fetched=self.release, is_offline=self.offline):
                    plans.append(plan)
                    advance(1)
        print_plans(plans, self.form, is_released=self.release)


def _load_trainer(is_offline: bool) -> "Callable[..., RunResult]":
    """Return what trains and records a run; the module without MLflow and Prefect if it is offline."""
    if is_offline:
        from flows.experiments.training import train_offline

        return train_offline
    from flows.operations.training import train_task

    return train_task
