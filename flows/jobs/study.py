"""A study: every recipe trained, and with --release everything before and after it."""

from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from flows.jobs.job import OFFLINE, QUIET, RECIPE_PATTERNS, AnyDatasetName, Job, option
from flows.jobs.runners import ADDRESS, RUNNER, RunnerName, check_reachable, check_runner, open_runner
from flows.jobs.training import DATASET, PROFILE, Profile, Train
from flows.printing.narration import narrating
from model_code.errors import DownloadError, NothingDoneError, ReleaseError, SizeError, TrainingError, UsageError
from model_code.settings import load_settings
from model_code.training.exchange import fetch_images
from serving.listing import FORM, Form

if TYPE_CHECKING:
    from flows.printing.summaries import Choice, Outcome
    from model_code.training.run_folder import AnyConfig


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
        if self.runner == "ray" and not self.offline:
            check_reachable(self.address)
        if self.offline and self.release:
            raise UsageError("--offline and --release exclude each other: sync the runs, and release where MLflow is")
        from model_code.data.cache import format_remedy, is_added, read_manifest
        from model_code.data.sources.detect import is_known

        if self.dataset is not None:
            if not self.dry_run:
                fetch_images(self.dataset)
            read_manifest(self.dataset, load_settings().cache_dir)
            return
        names = dict.fromkeys(config.dataset for config in self.configs)
        for name in () if self.dry_run else names:
            fetch_images(name)
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
            from flows.operations.study_plan import find_blocked
            from flows.printing.plans import print_blocked

            print_blocked(find_blocked(self.configs, is_offline=self.offline))
            outcomes = self._train()
            if self.release:
                from flows.operations.study import release_best

                released = release_best(outcomes)
        from flows.printing.runs import print_outcomes
        from flows.printing.summaries import Outcome

        outcomes += [
            Outcome(recipe=recipe, seed=seed, is_skipped=True, error=reason)
            for (recipe, seed), reason in self._runs[1].items()
        ]
        print_outcomes(outcomes, released, self.form, next_step="" if self.is_quiet else self._next_step)
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
        from flows.printing.plans import print_plans
        from model_code.data.progress import show_progress

        plans = []
        with narrating(self.form, is_quiet=self.is_quiet):
            if device := find_busy_device():
                print(f"another training uses {device}: runs beside it take longer, perhaps many times", flush=True)
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
