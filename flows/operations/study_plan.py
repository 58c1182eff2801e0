"""Plan of train-all: what would become of each run, and in about what time, without changing anything."""

from collections.abc import Collection, Iterator, Sequence

from flows.experiments.inputs import RunInputs, find_kept, is_held, open_inputs
from flows.experiments.pretrained import name_start
from flows.printing.summaries import Plan
from model_code.data.cache import is_added, open_dataset
from model_code.data.sources.detect import get_known
from model_code.disk import is_locked
from model_code.errors import DarkroomError
from model_code.settings import load_settings
from model_code.training.checkpoints import is_of_another_version, load_state
from model_code.training.device import choose_device, name_lock
from model_code.training.estimate import estimate_seconds
from model_code.training.run_folder import AnyConfig, find_interrupted

TRAINED = ("train", "resume", "fetch, then train")


def plan_study(configs: Sequence[AnyConfig], *, is_fetched: bool, is_offline: bool = False) -> Iterator[Plan]:
    """Yield one plan for each config, in order, as soon as it is known.

    Args:
        configs: Settings of every run.
        is_fetched: True if images that are missing are fetched where they can be.
        is_offline: True if the runs would be offline.
    """
    trained: set[str] = set()
    for config in configs:
        state, seconds = _plan(config, trained, is_fetched, is_offline)
        if state in TRAINED:
            trained.add(config.recipe)
        yield Plan(recipe=config.recipe, seed=config.seed, dataset=config.dataset, state=state, seconds=seconds)


def find_blocked(configs: Sequence[AnyConfig], *, is_offline: bool = False) -> list[Plan]:
    """Return the runs that lack their images, or weights to start from that no run before them will have made.

    Args:
        configs: Settings of every run.
        is_offline: True if the runs are offline.
    """
    trained: set[str] = set()
    blocked = []
    for config in configs:
        try:
            if name_start(config) in trained:
                open_dataset(config.dataset, load_settings().cache_dir)
            else:
                open_inputs(config, is_offline=is_offline)
        except DarkroomError as error:
            state = _describe_obstacle(config, error)
            blocked.append(Plan(recipe=config.recipe, seed=config.seed, dataset=config.dataset, state=state))
        else:
            trained.add(config.recipe)
    return blocked


def find_busy_device() -> str | None:
    """Return the device that estimates are measured on, `cpu` or `cuda`, if a training of this home uses it now."""
    device = choose_device("auto").type
    return device if is_locked(load_settings().locks_dir / name_lock(device)) else None


def _plan(config: AnyConfig, trained: Collection[str], is_fetched: bool, is_offline: bool) -> tuple[str, float | None]:
    """Return a run's fate and about how many seconds it takes, if that can be told."""
    settings = load_settings()
    is_missing, known = not is_added(config.dataset, settings.cache_dir), get_known(config.dataset)
    if is_missing and is_fetched and known.is_fetchable:
        return "fetch, then train", estimate_seconds(config, known.counts, known.image_size)
    try:
        dataset = open_dataset(config.dataset, settings.cache_dir)
        counts = {name: len(split.labels_N) for name, split in dataset.splits.items()}
        if name_start(config) in trained:
            return "train", estimate_seconds(config, counts, dataset.image_size)
        inputs = open_inputs(config, is_offline=is_offline)
        if find_kept(inputs, is_silent=True) is not None:
            return "keep", 0.0
        finished = _count_finished_epochs(inputs)
        state = "train" if finished is None else "resume"
        return state, estimate_seconds(config, counts, dataset.image_size, finished or 0)
    except DarkroomError as error:
        return _describe_obstacle(config, error), None


def _describe_obstacle(config: AnyConfig, error: DarkroomError) -> str:
    is_missing = not is_added(config.dataset, load_settings().cache_dir)
    return f"{'skip' if is_missing else 'fail'}: {error}"


def _count_finished_epochs(inputs: RunInputs) -> int | None:
    """Return the epochs that an interrupted run of these inputs has behind it; None if none would be resumed."""
    folder = find_interrupted(load_settings().checkpoints_dir, inputs.record, is_offline=inputs.is_offline)
    sha256 = inputs.config.sha256()
    if folder is None or not is_held(inputs, folder.record.run_id) or is_of_another_version(folder.path, sha256):
        return None
    state = load_state(folder.path, sha256)
    return state.epoch if state else 0
