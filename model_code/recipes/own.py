"""Recipes of one's own: TOML files in DARKROOM_HOME/recipes that change settings of another recipe.

from = "fastnet_cifar10"
title = "Flowers at 64 pixels"

[settings]
dataset = "flowers"
epochs = 20
views.hue = 0.2                # a setting inside another
pretrained_weights = "none"    # TOML has no null
"""

import json
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_code.disk import write_atomically
from model_code.errors import UsageError
from model_code.hints import explain_rule
from model_code.training.run_config import FIXED_SETTINGS, RunConfig, Seed
from model_code.training.run_folder import is_run_id

SUFFIX = ".toml"
_NAME_PATTERN = r"[a-z0-9][a-z0-9_-]{0,63}"
# A word of the command line.
_TAKEN_NAMES = {"new"}


class RecipeFile(BaseModel):
    """Content of a recipe's file.

    Attributes:
        base: Recipe whose settings it changes, in the file called `from`.
        title: Description, one line.
        seeds: Seeds that `train-all` runs in full.
        settings: Settings that differ from those of `base`.
        smoke: Settings of the smoke run that differ from those of its kind.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str = Field(alias="from")
    title: str = ""
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    settings: Mapping[str, Any] = {}
    smoke: Mapping[str, Any] = {}


def find_recipe_files(folder: Path) -> list[Path]:
    """Return the files of all recipes in a folder, sorted by name."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def read_recipe_file(file: Path, text: str | None = None) -> RecipeFile:
    """Return what a recipe's file says, or a text in its place; its settings are not checked yet.

    Raises:
        UsageError: It is no TOML, its name is no recipe's, or a key is unknown, missing or of another type.
    """
    check_recipe_name(file.stem)
    try:
        given = file.read_text(encoding="utf-8") if text is None else text
        found = RecipeFile.model_validate(tomllib.loads(given))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        allowed = ", ".join(field.alias or name for name, field in RecipeFile.model_fields.items())
        hint = f"; allowed are {allowed}" if first["type"] in ("extra_forbidden", "missing") else ""
        raise UsageError(f"{file}: {key}: {explain_rule(first)}{hint}") from error
    return found.model_copy(update={"settings": _flatten(found.settings), "smoke": _flatten(found.smoke)})


def check_recipe_name(name: str) -> None:
    """Refuse names that cannot be a file and a word of the command line.

    Raises:
        UsageError: The name is not allowed.
    """
    if not is_recipe_name(name):
        raise UsageError(
            f"{name!r} cannot be a recipe's name; use up to 64 of a-z, 0-9, _ and -, beginning with a letter or digit, "
            f"but not {', '.join(_TAKEN_NAMES)} and nothing that could be a run id"
        )


def is_recipe_name(name: str) -> bool:
    """Return whether a name can be a file and a word of the command line, and is no run id."""
    return re.fullmatch(_NAME_PATTERN, name) is not None and name not in _TAKEN_NAMES and not is_run_id(name)


def write_recipe_file(file: Path, base: str, title: str, config: RunConfig, changed: Collection[str]) -> None:
    """Write a recipe: the changed settings, and all others as comments.

    Args:
        file: Its file, which must not be there.
        base: Recipe whose settings it changes.
        title: Description, one line.
        config: All settings.
        changed: Names of those that are written; the others follow `base`.

    Raises:
        UsageError: The file is there.
    """
    check_new_file(file.stem, file.parent)
    lines = {key: f"{key} = {_format(value)}" for key, value in config.flatten().items() if key not in FIXED_SETTINGS}
    written = [line for key, line in lines.items() if key in changed]
    commented = [f"# {line}" for key, line in lines.items() if key not in changed]
    head = [
        f"# `darkroom recipes {file.stem}` shows all settings.",
        f"from = {_format(base)}",
        f"title = {_format(title)}",
    ]
    body = ["", "[settings]", *written, "", f"# Settings of {base}:", *commented, ""]
    write_atomically(file, "\n".join([*head, *body]).encode())


def check_new_file(name: str, recipes_dir: Path) -> None:
    """Refuse a name that cannot be a recipe's, or whose file is there.

    Raises:
        UsageError: The name is not allowed, or the file is there.
    """
    check_recipe_name(name)
    if (file := recipes_dir / f"{name}{SUFFIX}").exists():
        raise UsageError(f"{file} is there already; choose another name, edit the file or remove it")


def name_function(name: str, title: str, build: Callable[[], Any]) -> Callable[[], Any]:
    """Return a recipe's function under its name, with its evidence as docstring."""

    def function() -> Any:  # noqa: ANN401 - a config of any kind
        return build()

    function.__name__ = name
    function.__doc__ = f"{title}\n\nPublished: no figure, a recipe of one's own."
    return function


def _format(value: object) -> str:
    """Return a setting's value in TOML, which takes JSON but for null."""
    return json.dumps("none" if value is None else value, ensure_ascii=False)


def _flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        inner = {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
        flat |= {name: None if one == "none" else one for name, one in inner.items()}
    return flat
