"""Tables of recipes, and all that is known of one."""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.printing.lines import format_accuracy, print_line
from serving.listing import Column, Form, print_listing

if TYPE_CHECKING:
    from model_code.recipes.catalog import Recipe


def print_recipes(recipes: "Sequence[Recipe]", form: Form = "table") -> None:
    """Print name, published accuracy and first docstring line of each recipe."""
    columns = (
        Column("recipe", "recipe"),
        Column("published", "published_accuracy", lambda accuracy: format_accuracy(accuracy) or "-"),
        Column("images", "dataset"),
        Column("what it is", "title", is_prose=True),
    )
    print_listing(columns, [_describe_recipe(recipe) for recipe in recipes], form)


def print_recipe(recipe: "Recipe", form: Form = "table") -> None:
    """Print one recipe's evidence and every setting, as `--set` takes them."""
    from model_code.training.run_config import FIXED_SETTINGS

    settings = {key: value for key, value in recipe.build().flatten().items() if key not in FIXED_SETTINGS}
    if form != "table":
        print_listing((), [{**_describe_recipe(recipe), "evidence": recipe.evidence, "settings": settings}], form)
        return
    print(f"{recipe.name}\n")
    for paragraph in _join_lines(recipe.evidence):
        print_line(paragraph)
    print()
    for key, value in settings.items():
        print_line(f"  {key}={json.dumps(value)}")
    if "network" in settings:
        from model_code.models.networks import NETWORKS

        print()
        print_line(f"Networks: {', '.join(sorted(NETWORKS))}")


def _join_lines(text: str) -> list[str]:
    """Return the paragraphs of a docstring, a line each; one begins after an empty line, or with its `Heading: `."""
    paragraphs = [""]
    for line in map(str.strip, text.splitlines()):
        if line and paragraphs[-1] and not re.match(r"[A-Z][\w ]*: ", line):
            paragraphs[-1] += f" {line}"
        else:
            paragraphs.append(line)
    return paragraphs[1:]


def _describe_recipe(recipe: "Recipe") -> dict[str, object]:
    return {
        "recipe": recipe.name,
        "published_accuracy": recipe.published_accuracy,
        "dataset": recipe.build().dataset,
        "title": recipe.title,
    }
