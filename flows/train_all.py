"""Run every recipe, one after another; one that fails does not stop the others."""

from collections.abc import Sequence

from prefect import flow

from flows.experiments.training import find_kept, train_task
from flows.printing.summaries import Outcome
from flows.printing.tables import print_result
from model_code.data.cache import is_added
from model_code.errors import DarkroomError, DownloadError
from model_code.settings import load_settings
from model_code.training.run_folder import AnyConfig


@flow(name="train-all")
def train_all_flow(configs: Sequence[AnyConfig]) -> list[Outcome]:
    """Return one outcome for each config, in order.

    A recipe whose config and data were trained before is not trained again: its kept result is returned. One whose
    data set was never added, or whose pretrained weights cannot be downloaded, is skipped.
    """
    outcomes = []
    for number, config in enumerate(configs, start=1):
        print(f"[{number}/{len(configs)}] {config.recipe}", flush=True)
        outcomes.append(_train_one(config))
    return outcomes


def _train_one(config: AnyConfig) -> Outcome:
    try:
        kept = find_kept(config)
    except DarkroomError as error:
        return _fail(config, error)
    if kept is not None:
        print(f"{config.recipe}  kept from run {kept.run_id}: same settings, pictures and code", flush=True)
        return Outcome(recipe=config.recipe, seed=config.seed, result=kept, was_cached=True)
    result = train_task(config, return_state=True).result(raise_on_failure=False)
    if isinstance(result, BaseException):
        return _fail(config, result)
    print_result(result)
    return Outcome(recipe=config.recipe, seed=config.seed, result=result)


def _fail(config: AnyConfig, error: BaseException) -> Outcome:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not isinstance(error, DarkroomError):
        reason = f"{type(error).__name__}: {reason}"
    is_skipped = isinstance(error, DownloadError) or not is_added(config.dataset, load_settings().cache_dir)
    print(f"{config.recipe}  {'skipped' if is_skipped else 'failed'}: {reason}", flush=True)
    return Outcome(recipe=config.recipe, seed=config.seed, error=reason, is_skipped=is_skipped)
