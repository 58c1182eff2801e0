"""Recipes of one's own: files that are listed, checked and trained like those of the package."""

import pytest

from flows.jobs.recipes import ListRecipes, NewRecipe
from flows.jobs.study import TrainAll
from flows.jobs.training import Train
from model_code.data.add import add_dataset
from model_code.errors import UsageError
from model_code.recipes import catalog
from model_code.recipes.catalog import (
    RECIPES,
    describe_budget,
    get_recipe,
    list_recipes,
    match_recipes,
    read_own_files,
    take_own_files,
)
from model_code.settings import load_settings


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    return tmp_path


def write(home, name, text):
    file = home / "recipes" / f"{name}.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def test_a_new_recipe_stands_beside_those_of_the_package(home, capsys):
    settings = ("epochs=7", "views.hue=0.2", "limit_train=null")
    NewRecipe(name="mine", base="simsiam_cifar10", title="Ours", settings=settings).run()
    assert str(home / "recipes" / "mine.toml") in capsys.readouterr().out
    config = get_recipe("mine").build()
    assert (config.recipe, config.epochs, config.views.hue, config.limit_train) == ("mine", 7, 0.2, None)
    base = RECIPES["simsiam_cifar10"].build()
    assert config.model_copy(update={"recipe": base.recipe, "epochs": base.epochs, "views": base.views}) == base
    assert [entry.name for entry in list_recipes()] == [*RECIPES, "mine"]
    assert [entry.name for entry in match_recipes("mi*")] == ["mine"]
    assert describe_budget(Train(recipe="mine").config) == "full"
    assert describe_budget(Train(recipe="mine", profile="smoke").config) == "smoke"
    assert describe_budget(Train(recipe="mine", epochs=3).config) == "custom: epochs=3"
    assert [one.recipe for one in TrainAll(only=("mine",)).configs] == ["mine"]
    ListRecipes(name="mine").run()
    assert "darkroom train mine" in capsys.readouterr().out


def test_every_setting_that_is_not_changed_is_a_comment_that_can_be_used(home):
    NewRecipe(name="mine", base="resnet18_cifar10_exp9", settings=("pretrained_weights=null",)).run()
    file = home / "recipes" / "mine.toml"
    assert get_recipe("mine").build().pretrained_weights is None
    before = get_recipe("mine").build()
    file.write_text(file.read_text().replace("\n# ", "\n").replace("Settings of resnet18_cifar10_exp9:", ""))
    assert get_recipe("mine").build() == before


def test_a_recipe_follows_the_images_that_it_is_made_for(home):
    add_dataset("shapes", cache_dir=load_settings().cache_dir, data_dir=home, image_size=40, progress=False)
    NewRecipe(name="mine", base="fastnet_cifar10", dataset="shapes").run()
    config = get_recipe("mine").build()
    assert config.dataset == "shapes"
    assert config.mean != RECIPES["fastnet_cifar10"].build().mean
    assert Train(recipe="mine", dataset="shapes").config == config


def test_a_recipe_can_be_made_from_one_of_ones_own(home):
    write(home, "first", 'from = "fastnet_cifar10"\n[settings]\nepochs = 3\nlearning_rate = 0.5\n')
    write(home, "second", 'from = "first"\nseeds = [1, 2]\n[settings]\nepochs = 4\nengine.parts = 2\n')
    config = get_recipe("second").build()
    assert (config.epochs, config.learning_rate, config.engine.parts) == (4, 0.5, 2)
    assert [one.seed for one in TrainAll(only=("second",)).configs] == [1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from = ", r"mine\.toml: Invalid value"),
        ('from = "fastnet_cifar1"', r"mine\.toml: no recipe 'fastnet_cifar1'; did you mean fastnet_cifar10"),
        ('title = "x"', r"mine\.toml: from: Field required; allowed are from, title, seeds, settings, smoke$"),
        ('from = "fastnet_cifar10"\nepochs = 3', r"mine\.toml: epochs: Extra inputs.*; allowed are from, title"),
        ('from = "fastnet_cifar10"\nseeds = []', r"mine\.toml: seeds: .*at least 1"),
        ('from = "fastnet_cifar10"\n[settings]\nepoch = 3', r"mine\.toml: .*no setting 'epoch'; did you mean epochs"),
        ('from = "fastnet_cifar10"\n[settings]\noptimizer = "lion"', r"mine\.toml: optimizer='lion': .*'sgd', 'adam'"),
        ('from = "fastnet_cifar10"\n[smoke]\nepochs = 0', r"mine\.toml: epochs=0: .*must be at least 1"),
        ('from = "mine"', r"mine\.toml: from: mine -> mine is a circle"),
    ],
)
def test_a_wrong_file_is_one_line_with_file_and_key(home, text, message):
    file = write(home, "mine", text)
    with pytest.raises(UsageError, match=message) as caught:
        get_recipe("mine")
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "fastnet_cifar10"}, "is a recipe of the package"),
        ({"name": "new"}, "cannot be a recipe's name"),
        ({"name": "../x"}, "cannot be a recipe's name"),
        ({"name": "mine", "settings": ("epochs=0",)}, r"^epochs=0: "),
        ({"name": "mine", "settings": ("recipe=x",)}, "no setting 'recipe'"),
    ],
)
def test_a_wrong_recipe_is_not_written(home, given, message):
    with pytest.raises(UsageError, match=message):
        NewRecipe(base="fastnet_cifar10", **given).run()
    assert not list(home.glob("recipes/*"))


def test_a_recipe_is_not_overwritten(home):
    NewRecipe(name="mine", base="fastnet_cifar10").run()
    with pytest.raises(UsageError, match="is there already"):
        NewRecipe(name="mine", base="simsiam_cifar10").run()
    assert get_recipe("mine").build().kind == "supervised"


def test_a_recipe_whose_smoke_run_is_refused_is_not_written(home, monkeypatch):
    def refuse(entry, profile):
        raise UsageError("epochs=2 are too few")

    monkeypatch.setattr(catalog, "_build_documented", refuse)
    with pytest.raises(UsageError, match="epochs=2 are too few"):
        NewRecipe(name="mine", base="simsiam_cifar10").run()
    assert not list(home.glob("recipes/*"))


def test_a_longer_warm_up_has_a_smoke_run(home):
    NewRecipe(name="mine", base="simsiam_cifar10", settings=("epochs=50", "warmup_epochs=10")).run()
    assert Train(recipe="mine").config.warmup_epochs == 10
    assert Train(recipe="mine", profile="smoke").config.warmup_epochs == 0


@pytest.mark.parametrize("name", ["../outside", "recipes/../../outside", "deadbeef", "0" * 32, "Mine"])
def test_names_that_are_paths_or_run_ids_are_no_recipes(home, name):
    text = 'from = "fastnet_cifar10"'
    (home.parent / "outside.toml").write_text(text)
    (home / "outside.toml").write_text(text)
    write(home, "mine", text)
    with pytest.raises(UsageError, match="no recipe"):
        get_recipe(name)
    with pytest.raises(UsageError, match="cannot be a recipe's name"):
        NewRecipe(name=name, base="fastnet_cifar10").run()


@pytest.mark.parametrize(
    ("name", "message"),
    [("fastnet_cifar10", "is a recipe of the package"), ("Flowers", "is no name of a-z, 0-9, _ and -")],
)
def test_a_file_whose_name_cannot_be_a_recipe_is_named_and_stops_no_other_recipe(home, name, message):
    file = home / "recipes" / f"{name}.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('from = "fastnet_cifar10"\n')
    with pytest.raises(UsageError, match=rf"{name}\.toml: {name} {message}; rename the file"):
        list_recipes()
    assert [one.name for one in match_recipes("swin_cifar10_*")] == ["swin_cifar10_published", "swin_cifar10_modern"]


def test_recipes_of_another_home_are_known_to_a_process_and_change_no_file(home, tmp_path, monkeypatch):
    write(home, "first", 'from = "fastnet_cifar10"\n[settings]\nepochs = 3\n')
    write(home, "second", 'from = "first"\n[settings]\nlearning_rate = 0.5\n')
    texts = read_own_files("second", "fastnet_cifar10")
    node = tmp_path / "node"
    node.mkdir()
    file = write(node, "second", 'from = "fastnet_cifar10"\n[settings]\nepochs = 9\n')
    monkeypatch.setenv("DARKROOM_HOME", str(node))
    monkeypatch.setattr(catalog, "_given", {})
    assert get_recipe("second").build().epochs == 9
    take_own_files(texts)
    config = get_recipe("second").build()
    assert (config.epochs, config.learning_rate) == (3, 0.5)
    assert list(file.parent.iterdir()) == [file]
    assert "epochs = 9" in file.read_text()
