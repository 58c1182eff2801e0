"""Recipes by name. A recipe is a function without arguments that returns a full TrainingConfig."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from model_code.errors import UsageError
from model_code.training.config import TrainingConfig, override

SMOKE_EPOCHS = 2
SMOKE_PICTURES = 1000


@dataclass(frozen=True)
class Recipe:
    """One documented run.

    Attributes:
        name: `<architecture>_<data set>_<variant>`.
        build: Returns the full config.
        published_accuracy: Validation accuracy that the article reports, in [0, 1]; None if it is not in the article.
    """

    name: str
    build: Callable[[], TrainingConfig]
    published_accuracy: float | None

    @property
    def title(self) -> str:
        """First line of the recipe's docstring."""
        return (inspect.getdoc(self.build) or self.name).splitlines()[0]

    @property
    def evidence(self) -> str:
        """The recipe's whole docstring."""
        return inspect.getdoc(self.build) or ""


RECIPES: dict[str, Recipe] = {}


def recipe(
    published_accuracy: float | None,
) -> Callable[[Callable[[], TrainingConfig]], Callable[[], TrainingConfig]]:
    """Enter a recipe function into the catalog under its own name."""

    def enter(build: Callable[[], TrainingConfig]) -> Callable[[], TrainingConfig]:
        RECIPES[build.__name__] = Recipe(build.__name__, build, published_accuracy)
        return build

    return enter


def get_recipe(name: str) -> Recipe:
    """Return the recipe called `name`.

    Raises:
        UsageError: There is none; the message names near ones.
    """
    from difflib import get_close_matches

    if name not in RECIPES:
        near = get_close_matches(name, RECIPES, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise UsageError(f"no recipe {name!r}; {hint}`darkroom recipes` lists them all")
    return RECIPES[name]


def match_recipes(pattern: str) -> list[Recipe]:
    """Return the recipes whose name matches a shell pattern, in catalog order.

    Raises:
        UsageError: None matches.
    """
    found = [entry for name, entry in RECIPES.items() if fnmatchcase(name, pattern)]
    if not found:
        raise UsageError(f"no recipe matches {pattern!r}; `darkroom recipes` lists them all")
    return found


def build_config(name: str, profile: str = "full", changes: Mapping[str, Any] | None = None) -> TrainingConfig:
    """Return the config of one run of a recipe.

    Args:
        name: Recipe name.
        profile: `full`, or `smoke`: few pictures, few epochs, everything else the same.
        changes: Settings that replace the recipe's. The run is then `custom`, unless only the seed, the device or the
            place of the pretrained weights change (or, in a smoke run, the data set).

    Raises:
        UsageError: No such recipe or setting, or a value outside its range.
    """
    documented = get_recipe(name).build()
    if profile == "smoke":
        documented = documented.model_copy(
            update={"profile": "smoke", "epochs": SMOKE_EPOCHS, "limit_train": SMOKE_PICTURES}
        )
    config = override(documented, changes or {})
    neutral = {"seed", "device"} | (
        {"pretrained_weights"} if documented.pretrained_weights and config.pretrained_weights else set()
    )
    if profile == "smoke":
        neutral.add("dataset")
    if config.model_dump(exclude=neutral) == documented.model_dump(exclude=neutral):
        return config
    return config.model_copy(update={"profile": "custom"})
