import pytest
from torch import nn

from model_code.recipes.catalog import RECIPES
from model_code.report.published import ARTICLES, PUBLISHED_CURVES, get_published_classes, list_published_recipes
from model_code.report.questions import QUESTIONS, list_asked_recipes
from model_code.training.optimization import Schedule, build_optimizer

RESNET, SWIN = "resnet18_cifar10_", "swin_cifar10_published"
BEST, TRAIN, HELD_OUT = "validation/best_accuracy", "train/accuracy", "validation/accuracy"
TEST, RIGHT, TIME = "test/accuracy", "validation/correct", "validation/seconds"
# Article, recipe, metric, epoch, class, qualifier, value, unit, images.
PUBLISHED = [
    ("A", f"{RESNET}exp", BEST, None, None, "", 0.827, "fraction", 10_000),
    ("A", f"{RESNET}exp2", BEST, None, None, "", 0.846, "fraction", 10_000),
    ("A", f"{RESNET}exp3", BEST, None, None, "", 0.919, "fraction", 10_000),
    ("A", f"{RESNET}exp4", BEST, None, None, "", 0.903, "fraction", 10_000),
    ("A", f"{RESNET}exp5", BEST, None, None, "", 0.897, "fraction", 10_000),
    ("A", f"{RESNET}exp6", BEST, None, None, "", 0.923, "fraction", 10_000),
    ("A", f"{RESNET}exp7", BEST, None, None, "", 0.922, "fraction", 10_000),
    ("A", f"{RESNET}exp8", BEST, None, None, "", 0.893, "fraction", 10_000),
    ("A", f"{RESNET}exp9", BEST, None, None, "", 0.857, "fraction", 10_000),
    ("B", SWIN, TRAIN, 1, None, "", 0.4309, "fraction", None),
    ("B", SWIN, HELD_OUT, 1, None, "", 0.5330, "fraction", 9_984),
    ("B", SWIN, TRAIN, 20, None, "", 0.9765, "fraction", None),
    ("B", SWIN, HELD_OUT, 20, None, "", 0.6770, "fraction", 9_984),
    ("B", SWIN, TEST, None, None, "", 0.6775, "fraction", 9_984),
    ("B", SWIN, TEST, None, "airplane", "", 0.7111, "fraction", 9_984),
    ("B", SWIN, TEST, None, "automobile", "", 0.6937, "fraction", 9_984),
    ("B", SWIN, TEST, None, "bird", "", 0.5646, "fraction", 9_984),
    ("B", SWIN, TEST, None, "cat", "", 0.5141, "fraction", 9_984),
    ("B", SWIN, TEST, None, "deer", "", 0.6276, "fraction", 9_984),
    ("B", SWIN, TEST, None, "dog", "", 0.6012, "fraction", 9_984),
    ("B", SWIN, TEST, None, "frog", "", 0.7257, "fraction", 9_984),
    ("B", SWIN, TEST, None, "horse", "", 0.7360, "fraction", 9_984),
    ("B", SWIN, TEST, None, "ship", "", 0.8418, "fraction", 9_984),
    ("B", SWIN, TEST, None, "truck", "", 0.7545, "fraction", 9_984),
    ("B", SWIN, "train/seconds", None, None, "about", 95, "seconds", None),
    ("C", "resnet18_food11", BEST, None, None, "at most", 0.60, "fraction", None),
    ("C", "simsiam_food11_cifar_stem", BEST, None, None, "", 0.71, "fraction", None),
    ("D", "resnet50_imagenet_untrained", RIGHT, None, None, "", 50, "count", 50_000),
    ("D", "resnet50_imagenet_untrained", TIME, None, None, "", 35.485, "seconds", 50_000),
    ("D", "resnet101_imagenet_untrained", RIGHT, None, None, "", 50, "count", 50_000),
    ("D", "resnet101_imagenet_untrained", TIME, None, None, "", 45.556, "seconds", 50_000),
    ("D", "vit_b_16_imagenet_untrained", RIGHT, None, None, "", 50, "count", 50_000),
    ("D", "vit_b_16_imagenet_untrained", TIME, None, None, "", 83.587, "seconds", 50_000),
    ("D", "vit_l_16_imagenet_untrained", RIGHT, None, None, "", 50, "count", 50_000),
    ("D", "vit_l_16_imagenet_untrained", TIME, None, None, "", 370.091, "seconds", 50_000),
    ("D", "swin_t_imagenet_untrained", RIGHT, None, None, "", 43, "count", 50_000),
    ("D", "swin_t_imagenet_untrained", TIME, None, None, "", 44.616, "seconds", 50_000),
    ("D", "swin_s_imagenet_untrained", RIGHT, None, None, "", 49, "count", 50_000),
    ("D", "swin_s_imagenet_untrained", TIME, None, None, "", 67.754, "seconds", 50_000),
]
FIGURES = {article.letter: article.figures for article in ARTICLES}


def test_every_recipe_is_in_the_catalog():
    named = {*list_published_recipes(), *list_asked_recipes()}
    assert named <= set(RECIPES)


def test_every_published_figure():
    names = ("recipe", "metric", "epoch", "class_name", "qualifier", "value", "unit", "images")
    found = [
        (article.letter, *(getattr(one, name) for name in names)) for article in ARTICLES for one in article.figures
    ]
    assert found == PUBLISHED


def test_the_classes_of_swin():
    classes = get_published_classes(SWIN)
    assert classes == {name: value for _, _, _, _, name, _, value, _, _ in PUBLISHED if name}
    # The mean of the classes need not be the published total; it is near it.
    assert sum(classes.values()) / 10 == pytest.approx(0.6775, abs=0.002)
    assert get_published_classes("resnet18_cifar10_exp") == {}


def test_the_published_curves_agree_with_the_published_figures():
    for recipe, curves in PUBLISHED_CURVES.items():
        assert {len(values) for values in curves.values()} == {RECIPES[recipe].build().epochs}
        told = [
            figure for figures in FIGURES.values() for figure in figures if figure.recipe == recipe and figure.epoch
        ]
        assert len(told) == 4
        for figure in told:
            assert curves[figure.metric][figure.epoch - 1] == figure.value
    assert min(PUBLISHED_CURVES[SWIN]["validation/loss"]) == PUBLISHED_CURVES[SWIN]["validation/loss"][3] == 0.939146


@pytest.mark.parametrize(("metric", "first_lower"), [("train/loss", None), ("validation/loss", 7)])
def test_the_published_rate_never_moves_only_if_the_plateau_watches_the_training_loss(metric, first_lower):
    """The article prints 1e-4 for every epoch."""
    config = RECIPES[SWIN].build()
    assert config.plateau_watches == "train"
    optimizer = build_optimizer(config, nn.Linear(2, 2))
    schedule = Schedule(config, optimizer, steps_per_epoch=1)
    rates = []
    for loss in PUBLISHED_CURVES[SWIN][metric]:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.end_epoch(loss, loss)
    lower = [epoch for epoch, rate in enumerate(rates, start=1) if rate < 1e-4]
    assert (lower[0] if lower else None) == first_lower


def test_only_the_times_of_untrained_networks_are_of_other_work():
    others = {one.metric for figures in FIGURES.values() for one in figures if not one.is_same_work}
    assert others == {TIME}
    assert all(one.is_same_work == (one.metric != TIME) for one in FIGURES["D"])


def test_contrasts_name_arms_of_their_question():
    for question in QUESTIONS:
        arms = {arm.recipe for arm in question.arms}
        for contrast in question.contrasts:
            assert {contrast.treatment, contrast.control} <= arms
        assert len({contrast.label for contrast in question.contrasts}) == len(question.contrasts)


def test_the_initialisation_is_separated_from_the_implementation():
    [question] = [question for question in QUESTIONS if question.key == "initialisation"]
    assert [(contrast.treatment, contrast.control) for contrast in question.contrasts] == [
        ("resnet18_cifar10_exp2", "resnet18_cifar10_exp2_fan_out"),
        ("resnet18_cifar10_exp_default", "resnet18_cifar10_exp"),
        ("resnet18_cifar10_exp2", "resnet18_cifar10_exp_default"),
        ("resnet18_cifar10_exp2_fan_out", "resnet18_cifar10_exp"),
        ("resnet18_cifar10_exp2", "resnet18_cifar10_exp"),
    ]


def test_random_features_have_their_controls():
    [question] = [question for question in QUESTIONS if question.key == "random-features"]
    assert len(question.contrasts) == 7 * 4 + 2
    for contrast in question.contrasts:
        if contrast.control_metric == "test/untrained_head_accuracy":
            assert contrast.treatment == contrast.control
        else:
            assert contrast.treatment_metric == contrast.control_metric
            assert contrast.control in ("pixels_cifar10_random", contrast.treatment.removesuffix("_calibrated"))
