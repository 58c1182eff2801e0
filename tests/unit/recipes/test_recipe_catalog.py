import re
import subprocess
import sys
from pathlib import Path

import pytest

from flows.jobs.study import TrainAll
from model_code.errors import UsageError
from model_code.models.networks import check_image_size
from model_code.recipes.catalog import RECIPES, build_config, change_dataset, describe_budget, get_recipe, match_recipes
from model_code.training.config import TrainingConfig

DECAY = (0.3, 0.6, 0.9)
# The article's table: network, learning rate, decay, pretrained weights.
PUBLISHED = {
    "resnet18_cifar10_exp": ("resnet18_torchvision", 0.01, (), None),
    "resnet18_cifar10_exp2": ("resnet18", 0.01, (), None),
    "resnet18_cifar10_exp3": ("resnet18_improved", 0.01, (), None),
    "resnet18_cifar10_exp4": ("resnet18_improved", 0.1, (), None),
    "resnet18_cifar10_exp5": ("resnet18_improved", 0.001, (), None),
    "resnet18_cifar10_exp6": ("resnet18_improved", 0.01, DECAY, None),
    "resnet18_cifar10_exp7": ("resnet18_improved", 0.1, DECAY, None),
    "resnet18_cifar10_exp8": ("resnet18_improved", 0.001, DECAY, None),
    "resnet18_cifar10_exp9": ("resnet18_torchvision", 0.01, (), "torchvision"),
}
NO_POOL = {
    "resnet18_cifar10_exp3_nopool": ("resnet18_improved_nopool", 0.01, (), None),
    "resnet18_cifar10_exp6_nopool": ("resnet18_improved_nopool", 0.01, DECAY, None),
}
INITIALISATION = {
    "resnet18_cifar10_exp_default": ("resnet18_torchvision_default", 0.01, (), None),
    "resnet18_cifar10_exp2_fan_out": ("resnet18_fan_out", 0.01, (), None),
}
STUDY = PUBLISHED | NO_POOL | INITIALISATION
# What a smoke run may change: how much is done, on how large images, by how large a network; the learning rate goes
# with the batch.
SIZES = {
    *(
        "profile",
        "learning_rate",
        "epochs",
        "warmup_epochs",
        "limit_train",
        "limit_test",
        "batch_size",
        "network",
        "image_size",
    ),
    *("views", "projector_layers", "embedding_width", "bottleneck_width", "monitor_every_epochs", "knn_neighbours"),
    *("linear", "mlp"),
}


def find_line(evidence, start):
    [line] = [line for line in evidence.splitlines() if line.startswith(f"{start}: ")]
    return line.removeprefix(f"{start}: ")


@pytest.mark.parametrize("name", STUDY)
def test_settings_are_those_of_the_table(name):
    network, learning_rate, decay_points, pretrained = STUDY[name]
    # What the article says of every run; momentum, weight decay and batch size are our choice.
    assert RECIPES[name].build() == TrainingConfig(
        recipe=name,
        profile="full",
        dataset="cifar10",
        network=network,
        pretrained_weights=pretrained,
        epochs=100,
        batch_size=128,
        learning_rate=learning_rate,
        momentum=0.9,
        weight_decay=5e-4,
        decay_points=decay_points,
        decay_factor=0.1,
        crop_padding_pixels=4,
        has_flip=True,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        validation_fraction=0.2,
        split_seed=42,
        limit_train=None,
        seed=0,
        device="auto",
    )


def test_the_resnet18_study_is_complete():
    assert {name for name in RECIPES if name.startswith("resnet18_cifar10_exp")} == set(STUDY)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_carries_its_evidence(name):
    entry = RECIPES[name]
    assert entry.name == name == entry.build().recipe
    assert entry.title.endswith(".")
    assert find_line(entry.evidence, "Command") == f"darkroom train {name}"
    assert find_line(entry.evidence, "Ours")
    published = find_line(entry.evidence, "Published")
    if entry.published_accuracy is None:
        assert published.startswith("no figure of its own")
    else:
        assert float(re.match(r"0\.\d+ ", published).group()) == entry.published_accuracy


def test_no_two_recipes_are_the_same_experiment():
    settings = [str(entry.build().model_dump(exclude={"recipe"})) for entry in RECIPES.values()]
    assert len(set(settings)) == len(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_smoke_changes_sizes_only(name):
    full, smoke = build_config(name), build_config(name, "smoke")
    assert full == RECIPES[name].build()
    assert smoke.profile == "smoke"
    assert smoke.limit_test <= 200
    assert smoke.model_dump(exclude=SIZES) == full.model_dump(exclude=SIZES)
    assert smoke.sha256() != full.sha256()
    assert (describe_budget(full), describe_budget(smoke)) == ("full", "smoke")


@pytest.mark.parametrize("profile", ["full", "smoke"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_network_reads_images_of_the_recipes_size(name, profile):
    config = build_config(name, profile)
    size = config.views.image_size if config.kind == "simsiam" else config.image_size or 32
    if config.network is not None:
        check_image_size(config.network, size)
    assert profile == "full" or size <= 32


def test_what_a_run_starts_from_has_the_same_network_and_stands_before_it():
    names = list(RECIPES)
    started = [
        name for name in names if str(getattr(build_config(name), "pretrained_weights", "")).startswith("recipe:")
    ]
    assert started == [
        "simsiam_food11_continued",
        "simsiam_cifar10_finetuned",
        "simsiam_food11_finetuned",
        "resnet18_food11_pseudo",
        "simsiam_food10_finetuned",
    ]
    for name in started:
        source = build_config(name).pretrained_weights.removeprefix("recipe:")
        assert names.index(source) < names.index(name)
        for profile in ("full", "smoke"):
            before, after = build_config(source, profile), build_config(name, profile)
            assert (before.network, before.dataset) == (after.network, after.dataset)


def test_budgets_of_custom_runs_name_what_differs_from_the_documented_run():
    changes = {"epochs": 5, "limit_train": 500, "seed": 3, "device": "cpu"}
    assert describe_budget(build_config("resnet18_cifar10_exp", "full", changes)) == "custom: limit_train=500, epochs=5"
    elsewhere = build_config("resnet18_cifar10_exp", "smoke", {"dataset": "shapes"})
    assert (elsewhere.profile, describe_budget(elsewhere)) == ("smoke", "smoke on shapes")
    inner = build_config("simsiam_cifar10", "full", {"views.hue": 0.2, "linear.epochs": 20})
    assert describe_budget(inner) == "custom: views.hue=0.2, linear.epochs=20"
    from_smoke = build_config("resnet18_cifar10_exp", "smoke", {"epochs": 1})
    assert describe_budget(from_smoke) == "custom: limit_train=640, limit_test=200, epochs=1"
    from_disk = build_config("resnet18_cifar10_exp", "full", {"engine.pictures": "disk"})
    assert (from_disk.profile, describe_budget(from_disk)) == ("custom", "custom: engine.pictures=disk")
    assert build_config("resnet18_cifar10_exp", "full", {"engine.pictures": "streamed"}).profile == "full"
    own = {"dataset": "pets", "mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1), "epochs": 5}
    assert describe_budget(build_config("resnet18_cifar10_exp", "full", own)) == "custom: dataset=pets, epochs=5"
    normalised = {"mean": (0.1, 0.2, 0.3)}
    assert "mean=" in describe_budget(build_config("resnet18_cifar10_exp", "full", normalised))


@pytest.mark.parametrize(
    ("profile", "changed", "budget"),
    [
        ("full", "custom", "custom: dataset=cifar10-with-feedback"),
        ("smoke", "smoke", "smoke on cifar10-with-feedback"),
    ],
)
def test_a_run_on_other_images_is_not_the_documented_one(profile, changed, budget):
    config = build_config("resnet18_cifar10_exp", profile)
    elsewhere = change_dataset(config, "cifar10-with-feedback")
    assert (elsewhere.profile, describe_budget(elsewhere)) == (changed, budget)
    assert elsewhere.model_copy(update={"profile": profile, "dataset": config.dataset}) == config
    assert change_dataset(elsewhere, "cifar10") == change_dataset(config, "cifar10") == config
    own = build_config("resnet18_cifar10_exp", profile, {"epochs": 7})
    assert change_dataset(change_dataset(own, "shapes"), "cifar10") == own


def test_recipes_on_whose_difference_a_claim_rests_have_three_seeds():
    from model_code.report.questions import QUESTIONS

    for question in QUESTIONS:
        compared = {recipe for one in question.contrasts for recipe in (one.treatment, one.control)}
        has_seeds = min(len(RECIPES[name].seeds) for name in compared) >= 3
        assert has_seeds != question.is_descriptive, question.key


@pytest.mark.parametrize("profile", ["full", "smoke"])
def test_settings_of_ones_own_are_no_longer_the_documented_run(profile):
    name = "resnet18_cifar10_exp6"
    for changes in ({"learning_rate": 0.02}, {"epochs": 5}, {"limit_train": 500}, {"seed": 1, "has_flip": False}):
        changed = build_config(name, profile, changes)
        assert changed.profile == "custom"
        assert all(getattr(changed, key) == value for key, value in changes.items())
    for changes in ({}, {"seed": 5}, {"device": "cpu"}, {"learning_rate": 0.01}):
        assert build_config(name, profile, changes).profile == profile


def test_pretrained_weights_from_a_file_are_the_documented_ones():
    changes = {"pretrained_weights": "resnet18.pth"}
    assert build_config("resnet18_cifar10_exp9", "full", changes).profile == "full"
    assert build_config("resnet18_cifar10_exp", "full", changes).profile == "custom"
    for name, source in (
        ("resnet18_cifar10_exp9", "recipe:simsiam_cifar10"),
        ("simsiam_food11_finetuned", "torchvision"),
        ("simsiam_food11_finetuned", "recipe:resnet18_food11"),
        ("simsiam_food11_finetuned", "backbone.safetensors"),
    ):
        assert build_config(name, "full", {"pretrained_weights": source}).profile == "custom"


def test_wrong_settings_of_a_recipe():
    with pytest.raises(UsageError, match="has no setting 'profile'"):
        build_config("resnet18_cifar10_exp", "full", {"profile": "smoke"})
    with pytest.raises(UsageError, match=r"^epochs=0: "):
        build_config("resnet18_cifar10_exp", "smoke", {"epochs": 0})
    with pytest.raises(UsageError, match="no recipe 'x'"):
        build_config("x")


def test_unknown_recipes_name_near_ones():
    with pytest.raises(UsageError, match=r"^no recipe 'resnet18_cifar_exp6'; did you mean .*resnet18_cifar10_exp6"):
        get_recipe("resnet18_cifar_exp6")
    with pytest.raises(UsageError, match=r"^no recipe 'zzz'; `darkroom recipes` lists them all$"):
        get_recipe("zzz")
    assert get_recipe("resnet18_cifar10_exp") is RECIPES["resnet18_cifar10_exp"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("resnet18_cifar10_*_nopool", list(NO_POOL)),
        ("resnet18_cifar10_exp[3-5]", [f"resnet18_cifar10_exp{index}" for index in (3, 4, 5)]),
        ("resnet18_cifar10_exp6", ["resnet18_cifar10_exp6"]),
        ("resnet18_cifar10_exp*", list(STUDY)),
    ],
)
def test_patterns_choose_recipes_in_catalog_order(pattern, names):
    assert [entry.name for entry in match_recipes(pattern)] == names


def test_a_recipe_is_taken_once_if_any_pattern_matches():
    names = ["resnet18_cifar10_exp3", "resnet18_cifar10_exp4", "resnet18_cifar10_exp5"]
    found = match_recipes("resnet18_cifar10_exp5", "resnet18_cifar10_exp[34]", "resnet18_cifar10_exp4")
    assert [entry.name for entry in found] == names
    assert [config.recipe for config in TrainAll.make(only=names[1:], seeds=(0,)).configs] == names[1:]


@pytest.mark.parametrize("pattern", ["swan_*", "", "RESNET18*"])
def test_patterns_without_a_match(pattern):
    with pytest.raises(UsageError, match=r"^no recipe matches .*`darkroom recipes` lists them all") as refusal:
        match_recipes("resnet18_*", pattern)
    assert repr(pattern) in str(refusal.value)


def test_listing_recipes_does_not_import_torch():
    code = "import sys, model_code.recipes.catalog as c; print(len(c.RECIPES), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(RECIPES)), "False"]


def test_the_engine_leaves_a_run_what_it_documents_but_for_its_parts():
    same = {
        "precision": "bfloat16",
        "memory_format": "contiguous",
        "compile": "on",
        "pictures": "streamed",
        "readers": 3,
    }
    for key, value in same.items():
        assert build_config("resnet18_cifar10_exp6", changes={f"engine.{key}": value}).profile == "full"
    config = build_config("resnet18_cifar10_exp6", changes={"engine.parts": 2, "engine.compile": "on"})
    assert describe_budget(config) == "custom: engine.parts=2"


def test_evidence_has_the_departures_of_every_recipe_in_its_file():
    lines = get_recipe("resnet18_cifar10_exp").evidence.splitlines()
    assert any(line.startswith("Departures of every recipe here: validation and test are kept apart") for line in lines)
    assert "of every recipe" not in get_recipe("fastnet_cifar10").evidence


@pytest.mark.parametrize(
    ("recipe", "stated"),
    [
        ("fastnet_cifar10", "FastNet holds out 4 % of the training images (2,000) and keeps its last epoch"),
        ("swin_cifar10_published", "the published Swin holds out 20 % and keeps its last epoch"),
        ("resnet18_cifar10_exp", "the ResNets hold out 20 % (10,000) and take the best of up to 100 epochs"),
        ("resnet18_cifar10_strong", "the ResNets hold out 20 % (10,000) and take the best of up to 100 epochs"),
    ],
)
def test_the_guide_states_how_competing_recipes_measure_validation_accuracy(recipe, stated):
    config = RECIPES[recipe].build()
    assert stated in " ".join((Path(__file__).parents[3] / "docs" / "training.md").read_text().split())
    assert f"{config.validation_fraction:.0%}".replace("%", " %") in stated
    assert (config.kept_epoch == "last") == ("last epoch" in stated)
    assert config.kept_epoch == "last" or config.epochs <= 100
