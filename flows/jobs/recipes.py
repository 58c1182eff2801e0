"""Recipes: listing them, writing one of one's own."""

from typing import Annotated

from flows.jobs.job import RECIPES, AnyDatasetName, Job, RecipeName, argument, option
from flows.jobs.training import change_dataset
from model_code.settings import load_settings
from serving.listing import FORM, Form


class ListRecipes(Job):
    """List every recipe with its published figure, those that match a pattern, or show one recipe's evidence."""

    command = "recipes"

    name: Annotated[str | None, RECIPES] = argument("NAME", "Name, or a pattern such as 'fastnet*'.", default=None)
    form: Form = option("table", FORM, name="--format")

    def run(self) -> None:
        from flows.printing.recipes import print_recipe, print_recipes
        from model_code.recipes.catalog import get_recipe, list_recipes, match_recipes

        if self.name is None:
            print_recipes(list_recipes(), self.form)
        elif set(self.name) & set("*?["):
            print_recipes(match_recipes(self.name), self.form)
        else:
            print_recipe(get_recipe(self.name), self.form)


class NewRecipe(Job):
    """Write a recipe of one's own: a file that changes settings of another recipe.

    It is listed, trained, tracked, released and reported like those of the package, and can be edited.
    """

    command, loads = "recipes new", ("PyTorch",)

    name: str = argument("NAME")
    base: RecipeName = option(..., "Recipe whose settings it changes.", name="--from", metavar="RECIPE")
    dataset: AnyDatasetName = option(
        None, "Packed data set; mean, standard deviation and sizes follow the images.", name="--data", metavar="NAME"
    )
    title: str = option("", "What it is, one line.", metavar="TEXT")
    settings: tuple[str, ...] = option((), "Setting that differs; repeatable.", name="--set", metavar="KEY=VALUE")

    @property
    def loading(self) -> tuple[str, ...]:
        return () if self.dataset is None else self.loads

    def check(self) -> None:
        from model_code.data.cache import read_manifest
        from model_code.recipes.catalog import get_recipe
        from model_code.recipes.own import check_new_file

        check_new_file(self.name, load_settings().recipes_dir)
        get_recipe(self.base)
        if self.dataset is not None:
            read_manifest(self.dataset, load_settings().cache_dir)

    def run(self) -> None:
        from model_code.recipes.catalog import add_recipe, get_recipe
        from model_code.training.run_config import parse_assignment

        changes = change_dataset(
            get_recipe(self.base).build(), self.dataset, dict(map(parse_assignment, self.settings))
        )
        print(f"{self.name}: {add_recipe(self.name, self.base, self.title, changes)}")
