"""Which runs a command or a deployment asks for: names and `key=value` settings -> configs."""

from collections.abc import Sequence

from model_code.errors import UsageError
from model_code.recipes.catalog import build_config, has_setting, match_recipes
from model_code.training.run_config import parse_assignment
from model_code.training.run_folder import AnyConfig


def plan_run(
    recipe: str,
    profile: str = "full",
    seed: int | None = None,
    epochs: int | None = None,
    limit_train: int | None = None,
    assignments: Sequence[str] = (),
) -> AnyConfig:
    """Return the config of one run; what is None or not named stays as the recipe has it.

    Args:
        recipe: Name in the catalog.
        profile: `full` or `smoke`.
        seed: Of the run.
        epochs: To train.
        limit_train: Training pictures, before the validation split.
        assignments: `key=value`, as `--set` takes them.

    Raises:
        UsageError: A recipe, setting or value that does not exist.
    """
    options = {"seed": seed, "epochs": epochs, "limit_train": limit_train}
    changes = dict(map(parse_assignment, assignments))
    return build_config(recipe, profile, changes | {key: value for key, value in options.items() if value is not None})


def plan_all(
    profile: str = "full", pattern: str = "*", seeds: Sequence[int] = (), assignments: Sequence[str] = ()
) -> list[AnyConfig]:
    """Return the configs of every recipe whose name matches.

    Args:
        profile: `full` or `smoke`.
        pattern: Shell pattern of recipe names.
        seeds: Of each recipe; without any, three where a claim rests on a difference and one else, in smoke runs one.
        assignments: `key=value`; each reaches the recipes that have the setting.

    Raises:
        UsageError: Nothing matches, or no recipe has a setting.
    """
    entries = match_recipes(pattern)
    keys = {assignment: parse_assignment(assignment)[0] for assignment in assignments}
    for assignment, key in keys.items():
        if not any(has_setting(entry.name, key) for entry in entries):
            raise UsageError(f"--set {assignment}: none of these recipes has a setting {key!r}")
    return [
        plan_run(
            entry.name, profile, seed, assignments=[one for one in assignments if has_setting(entry.name, keys[one])]
        )
        for entry in entries
        for seed in seeds
        or ((None,) if "seed" in keys.values() else entry.seeds if profile == "full" else entry.seeds[:1])
    ]
