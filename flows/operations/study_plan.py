"""Plan of train-all: what would become of each run, and in about what time, without changing anything."""

from collections.abc import Iterator, Sequence

from flows.experiments.inputs import find_kept, open_inputs
from flows.printing.summaries import Plan
from model_code.data.cache import is_added
from model_code.data.sources.detect import get_known
from model_code.errors import DarkroomError
from model_code.settings import load_settings
from model_code.training.estimate import estimate_seconds
from model_code.training.run_folder import AnyConfig, find_interrupted


def plan_study(configs: Sequence[AnyConfig]) -> Iterator[Plan]:
    """Yield one plan for each config, in order, as soon as it is known."""
    settings = load_settings()
    for config in configs:
        is_missing = not is_added(config.dataset, settings.cache_dir)
        known = get_known(config.dataset)
        if is_missing and (known.fetch or known.draw):
            yield Plan(recipe=config.recipe, seed=config.seed, dataset=config.dataset, state="fetch, then train")
            continue
        try:
            inputs = open_inputs(config)
        except DarkroomError as error:
            state = f"skip: {error}" if is_missing else f"fail: {error}"
            yield Plan(recipe=config.recipe, seed=config.seed, dataset=config.dataset, state=state)
            continue
        state, seconds = "keep", 0.0
        if find_kept(inputs) is None:
            seconds = estimate_seconds(config, inputs.dataset)
            is_begun = find_interrupted(settings.checkpoints_dir, inputs.record) is not None
            state = "go on" if is_begun else "train"
        yield Plan(recipe=config.recipe, seed=config.seed, dataset=config.dataset, state=state, seconds=seconds)
