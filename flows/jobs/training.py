"""One training."""

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from flows.jobs.job import (
    INTERRUPTED,
    OFFLINE,
    QUIET,
    AnyDatasetName,
    Job,
    RecipeName,
    argument,
    option,
)
from flows.printing.narration import narrating
from model_code.errors import UsageError
from model_code.settings import load_settings, read_rank
from model_code.training.exchange import fetch_images, fetch_run
from serving.listing import FORM, Form

if TYPE_CHECKING:
    from collections.abc import Callable

    from flows.experiments.inputs import RunInputs
    from model_code.data.cache import CacheManifest
    from model_code.training.run_folder import AnyConfig, RunResult

Profile = Literal["full", "smoke"]
DATASET = (
    "Packed data set, see `darkroom data list`; the recipe's own if not given. Mean, standard deviation and sizes "
    "follow the images unless --set sets them."
)
PROFILE = "full: the documented budget; smoke: minutes on two CPU cores, compared with nothing."


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

        changes = change_dataset(self.own_config, self.dataset, self.changes)
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
        from flows.experiments.pretrained import fetch_start

        fetch_start(self.config)
        return open_inputs(self.config, is_offline=self.offline)

    def check(self) -> None:
        own_dataset = self.own_config.dataset  # refuses an unknown recipe or setting before a framework is loaded
        dataset = own_dataset if self.dataset is None else self.dataset
        _check_dataset(self.dataset, self.changes)
        fetch_images(dataset)
        if read_rank()[0] > 0:
            return
        from model_code.data.cache import read_manifest
        from model_code.training.run_folder import open_run_folder, resolve_run_id

        settings = load_settings()
        manifest = read_manifest(dataset, settings.cache_dir)
        # For other images a full run's batch may become smaller.
        if dataset == own_dataset and "train" in manifest.splits:
            _check_batch(self.own_config, manifest.splits["train"].count)
        _check_validation(self.own_config, manifest)
        if self.resume is not None:
            fetch_run(self.recipe, self.resume)
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
            result = load_trainer(self.offline)(self.inputs, resume)
        from flows.printing.runs import print_result

        print_result(result, self.form, seed=self.config.seed, is_offline=self.offline, is_quiet=self.is_quiet)


def change_dataset(config: "AnyConfig", dataset: str | None, changes: dict[str, Any]) -> dict[str, Any]:
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


def _check_validation(config: "AnyConfig", manifest: "CacheManifest") -> None:
    """Refuse training images of which none could be held out, before any framework is imported."""
    from model_code.data.splits import count_validation
    from model_code.training.epoch_config import EpochConfig

    if isinstance(config, EpochConfig) and "train" in manifest.splits and "validation" not in manifest.splits:
        count = manifest.base.train_count if manifest.base else manifest.splits["train"].count
        count_validation(min(count, config.limit_train or count), config.validation_fraction)


def load_trainer(is_offline: bool) -> "Callable[..., RunResult]":
    """Return what trains and records a run; the module without MLflow and Prefect if it is offline."""
    if is_offline:
        from flows.experiments.training import train_offline

        return train_offline
    from flows.operations.training import train_task

    return train_task
