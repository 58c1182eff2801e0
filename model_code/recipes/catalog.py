"""Recipes by name. A recipe is a function without arguments that returns a full config of any kind.

Recipes of one's own are files under DARKROOM_HOME (`own.py`).
"""

import inspect
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from model_code.errors import UsageError
from model_code.hints import suggest
from model_code.recipes.own import (
    SUFFIX,
    check_recipe_name,
    find_recipe_files,
    is_recipe_name,
    name_function,
    read_recipe_file,
    write_recipe_file,
)
from model_code.settings import load_settings
from model_code.training.config import RECIPE_PREFIX, TORCHVISION
from model_code.training.run_config import FIXED_SETTINGS, RunConfig, override
from model_code.training.run_folder import AnyConfig

# What a smoke run of each kind changes; a recipe may change more.
SMOKE = {
    "supervised": {"epochs": 2, "limit_train": 640, "limit_test": 200},
    "simsiam": {
        "epochs": 2,
        "limit_train": 640,
        "limit_test": 200,
        "batch_size": 64,
        "monitor_every_epochs": 1,
        "warmup_epochs": 0,
        "embedding_width": 256,
        "bottleneck_width": 64,
        "linear.epochs": 20,
        "linear.warmup_epochs": 2,
    },
    "untrained": {"limit_test": 100, "batch_size": 50, "image_size": 32},
    "random_features": {
        "limit_train": 500,
        "limit_test": 200,
        "image_size": 32,
        "knn_neighbours": 50,
        "linear.epochs": 20,
        "linear.warmup_epochs": 2,
        "mlp.epochs": 20,
        "mlp.warmup_epochs": 2,
    },
}
DEFAULT_SEEDS = (0,)
# Where and how fast the same figures are computed. In several parts of a batch BatchNorm sees others.
NEUTRAL_ENGINE = {"precision", "memory_format", "compile", "kernels", "pictures", "readers"}


@dataclass(frozen=True)
class Recipe:
    """One documented run.

    Attributes:
        function: Returns the full config, without the recipe's name.
        published_accuracy: Accuracy that the article reports, in [0, 1]; None if it is not in the article.
        seeds: Those that `train-all` runs in full; several where a claim rests on a difference.
        smoke: Settings of its smoke run that differ from those of its kind.
    """

    function: Callable[[], AnyConfig]
    published_accuracy: float | None
    seeds: tuple[int, ...] = DEFAULT_SEEDS
    smoke: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """That of the function: `<architecture>_<data set>_<variant>`."""
        return self.function.__name__

    def build(self) -> AnyConfig:
        """Return the full config."""
        return self.function().model_copy(update={"recipe": self.name})

    @property
    def title(self) -> str:
        """First line of the recipe's docstring."""
        return (inspect.getdoc(self.function) or self.name).splitlines()[0]

    @property
    def evidence(self) -> str:
        """The recipe's docstring, with its command, the published accuracy and what its file says of departures."""
        published = "" if self.published_accuracy is None else f"{self.published_accuracy:g} "
        filled = f"Command: darkroom train {self.name}\nPublished: {published}"
        own = (inspect.getdoc(self.function) or "").replace("Published: ", filled, 1)
        _, title, of_file = (inspect.getdoc(inspect.getmodule(self.function)) or "").partition(
            "Departures of every recipe"
        )
        return f"{own}\n\n{title}{of_file}" if of_file else own


RECIPES: dict[str, Recipe] = {}
_given: dict[str, str] = {}  # texts of recipes of one's own
Function = TypeVar("Function", bound=Callable[[], AnyConfig])


def recipe(
    published_accuracy: float | None = None,
    *,
    seeds: tuple[int, ...] = DEFAULT_SEEDS,
    smoke: Mapping[str, Any] | None = None,
) -> Callable[[Function], Function]:
    """Enter a recipe function into the catalog under its own name; the arguments are those of `Recipe`."""

    def enter(function: Function) -> Function:
        RECIPES[function.__name__] = Recipe(function, published_accuracy, seeds, smoke or {})
        return function

    return enter


def get_recipe(name: str) -> Recipe:
    """Return the recipe called `name`.

    Raises:
        UsageError: There is none, the message names near ones; or its file is wrong.
    """
    return _get_recipe(name, ())


def list_recipes() -> list[Recipe]:
    """Return all recipes, those of the package first.

    Raises:
        UsageError: A file of a recipe is wrong.
    """
    return [*RECIPES.values(), *map(_read_own, find_recipe_files(load_settings().recipes_dir))]


def add_recipe(name: str, base: str, title: str, changes: Mapping[str, Any]) -> Path:
    """Write a recipe of one's own and return its file.

    Args:
        name: Its name.
        base: Recipe whose settings it changes.
        title: Description, one line; empty for one made of `base`.
        changes: Settings that differ.

    Raises:
        UsageError: The name is taken or not allowed, or a setting is unknown or outside its range.
    """
    check_recipe_name(name)
    if name in RECIPES:
        raise UsageError(f"{name} is a recipe of the package; choose another name")
    config = override(get_recipe(base).build(), changes)
    file = load_settings().recipes_dir / f"{name}{SUFFIX}"
    write_recipe_file(file, base, title or f"{base} with settings of one's own", config, changes.keys())
    try:
        get_recipe(name)
    except UsageError:
        file.unlink()
        raise
    return file


def read_own_files(*names: str) -> dict[str, str]:
    """Return the texts of the files of recipes of one's own, and of those that they are made from, by recipe."""
    texts: dict[str, str] = {}
    waiting = [name for name in names if name not in RECIPES]
    while waiting:
        name = waiting.pop()
        file = load_settings().recipes_dir / f"{name}{SUFFIX}"
        base = read_recipe_file(file).base
        texts[name] = file.read_text(encoding="utf-8")
        if base not in RECIPES and base not in texts:
            waiting.append(base)
    return texts


def take_own_files(texts: Mapping[str, str]) -> None:
    """Let this process take these texts of recipes for their files, which its home may lack."""
    _given.update(texts)


def _read_own(file: Path) -> Recipe:
    if file.stem in RECIPES or not is_recipe_name(file.stem):
        why = "is a recipe of the package" if file.stem in RECIPES else "is no name of a-z, 0-9, _ and -"
        raise UsageError(f"{file}: {file.stem} {why}; rename the file")
    return get_recipe(file.stem)


def _get_recipe(name: str, above: tuple[str, ...]) -> Recipe:
    """Return a recipe that the recipes `above` are made from."""
    if name in RECIPES:
        return RECIPES[name]
    file = load_settings().recipes_dir / f"{name}{SUFFIX}"
    if not (is_recipe_name(name) and (name in _given or file.is_file())):
        _refuse(name)
    if name in above:
        raise UsageError(f"{file}: from: {' -> '.join([*above, name])} is a circle")
    content = read_recipe_file(file, _given.get(name))
    try:
        base = _get_recipe(content.base, (*above, name))
        smoke = {**base.smoke, **content.smoke}
        build = partial(override, base.build(), content.settings)
        entry = Recipe(name_function(name, content.title or name, build), None, content.seeds, smoke)
        _build_documented(entry, "smoke")
    except UsageError as error:
        raise error if str(error).startswith(str(file.parent)) else UsageError(f"{file}: {error}") from error
    return entry


def _refuse(name: str) -> NoReturn:
    names = [*RECIPES, *(file.stem for file in find_recipe_files(load_settings().recipes_dir))]
    hint = suggest(name, known=names, count=3, least_ratio=0.5)
    raise UsageError(f"no recipe {name!r}; {hint}`darkroom recipes` lists them all")


def match_recipes(*patterns: str) -> list[Recipe]:
    """Return the recipes whose name matches a shell pattern, in catalog order; all without a pattern.

    Raises:
        UsageError: None matches one of the patterns.
    """
    files = {file.stem: file for file in find_recipe_files(load_settings().recipes_dir)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in (*RECIPES, *files)):
            raise UsageError(f"no recipe matches {pattern!r}; `darkroom recipes` lists them all")

    def is_wanted(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns or ("*",))

    own = [_read_own(file) for name, file in files.items() if is_wanted(name)]
    return [*(entry for name, entry in RECIPES.items() if is_wanted(name)), *own]


def build_config(name: str, profile: str = "full", changes: Mapping[str, Any] | None = None) -> AnyConfig:
    """Return the config of one run of a recipe.

    Args:
        name: Recipe name.
        profile: `full`, or `smoke`: few images, few epochs, a smaller network where the recipe's is large.
        changes: Settings that replace the recipe's. The run is then `custom`, unless only the seed, the device, the
            engine (but for its parts) or the place of torchvision's weights change (or, in a smoke run, the data set).

    Raises:
        UsageError: No such recipe or setting, or a value outside its range.
    """
    config = override(_build_documented(get_recipe(name), profile), changes or {})
    return config.model_copy(update={"profile": _find_profile(config, profile)})


def _find_profile(config: AnyConfig, profile: str) -> str:
    """Return `profile` where a config is what its recipe documents under it, else `custom`."""
    documented = _build_documented(get_recipe(config.recipe), profile)
    neutral: dict[str, Any] = dict.fromkeys(("profile", "seed", "device", "precision"), True)
    neutral["engine"] = _list_neutral_engine(config)
    before, after = (getattr(one, "pretrained_weights", None) for one in (documented, config))
    if before == TORCHVISION and after is not None and not after.startswith(RECIPE_PREFIX):
        neutral["pretrained_weights"] = True
    if profile == "smoke":
        neutral |= dict.fromkeys(
            ("dataset",) if config.dataset == documented.dataset else ("dataset", "mean", "std"), True
        )
    return profile if config.model_dump(exclude=neutral) == documented.model_dump(exclude=neutral) else "custom"


def _list_neutral_engine(config: RunConfig) -> set[str]:
    """Return the settings of the engine that leave a run what its recipe documents: from disk the order is another."""
    engine = getattr(config, "engine", None)
    return NEUTRAL_ENGINE - {"pictures"} if engine is not None and engine.pictures == "disk" else NEUTRAL_ENGINE


def change_dataset(config: AnyConfig, dataset: str) -> AnyConfig:
    """Return the config of the same run on other images, where a documented run is a custom one."""
    changed = config.model_copy(update={"dataset": dataset})
    profile = _find_profile(changed, "smoke" if config.profile == "smoke" else "full")
    return changed.model_copy(update={"profile": profile})


def describe_budget(config: RunConfig) -> str:
    """Return what a run's figures may be compared with.

    `full`; `smoke`, or `smoke on NAME` with images other than the recipe's; or `custom: ` and the settings that
    differ from the full run's, without the mean and deviation of other images.
    """
    documented = get_recipe(config.recipe).build()
    if config.profile == "smoke" and config.dataset != documented.dataset:
        return f"smoke on {config.dataset}"
    if config.profile != "custom":
        return config.profile
    left_out = _NO_BUDGET | {f"engine.{name}" for name in _list_neutral_engine(config)}
    if config.dataset != documented.dataset:
        left_out |= {"mean", "std"}
    changed = [f"{key}={value}" for key, value in list_changes(config).items() if key not in left_out]
    return f"custom: {', '.join(changed)}"


def list_changes(config: RunConfig) -> dict[str, Any]:
    """Return the settings that differ from what the recipe documents, by their names for `--set`."""
    documented = _build_documented(get_recipe(config.recipe), "smoke" if config.profile == "smoke" else "full")
    before, fixed = documented.flatten(), FIXED_SETTINGS | {"seed"}
    return {key: value for key, value in config.flatten().items() if key not in fixed and value != before.get(key, ...)}


def format_command(config: RunConfig) -> str:
    """Return the command that repeats a run."""
    words = ["darkroom", "train", config.recipe]
    if config.profile == "smoke":
        words += ["--profile", "smoke"]
    if config.seed != get_recipe(config.recipe).build().seed:
        words += ["--seed", str(config.seed)]
    for key, value in list_changes(config).items():
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"]
    return shlex.join(words)


def has_setting(name: str, setting: str) -> bool:
    """Whether a recipe has a setting."""
    return setting in get_recipe(name).build().flatten()


_NO_BUDGET = {"profile", "seed", "device", "precision"}


def _build_documented(entry: Recipe, profile: str) -> AnyConfig:
    documented = entry.build()
    if profile != "smoke":
        return documented
    smaller = override(documented, {**SMOKE[documented.kind], **entry.smoke})
    return smaller.model_copy(update={"profile": "smoke"})
