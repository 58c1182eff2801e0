import pytest

from model_code.recipes.catalog import RECIPES
from model_code.report.published import ARTICLES, get_published_classes, list_published_recipes
from model_code.report.questions import QUESTIONS, list_asked_recipes

FIGURES = {article.letter: article.figures for article in ARTICLES}
CLASSES = {
    "airplane": 0.7111,
    "automobile": 0.6937,
    "bird": 0.5646,
    "cat": 0.5141,
    "deer": 0.6276,
    "dog": 0.6012,
    "frog": 0.7257,
    "horse": 0.7360,
    "ship": 0.8418,
    "truck": 0.7545,
}


def test_every_recipe_is_in_the_catalog():
    named = {*list_published_recipes(), *list_asked_recipes()}
    assert named <= set(RECIPES)


def test_the_resnet18_study():
    accuracies = [0.827, 0.846, 0.919, 0.903, 0.897, 0.923, 0.922, 0.893, 0.857]
    names = ["exp", *(f"exp{number}" for number in range(2, 10))]
    assert [(figure.recipe, figure.value) for figure in FIGURES["A"]] == [
        (f"resnet18_cifar10_{name}", accuracy) for name, accuracy in zip(names, accuracies, strict=True)
    ]
    assert {figure.metric for figure in FIGURES["A"]} == {"validation/best_accuracy"}


def test_published_accuracies_agree_with_the_catalog():
    for figure in FIGURES["A"]:
        assert figure.value == RECIPES[figure.recipe].published_accuracy


def test_swin():
    epochs = {(figure.metric, figure.epoch): figure.value for figure in FIGURES["B"] if figure.epoch}
    assert epochs == {
        ("train/accuracy", 1): 0.4309,
        ("validation/accuracy", 1): 0.5330,
        ("train/accuracy", 20): 0.9765,
        ("validation/accuracy", 20): 0.6770,
    }
    assert get_published_classes("swin_cifar10_published") == CLASSES
    final, *_ = [figure for figure in FIGURES["B"] if figure.metric == "test/accuracy"]
    assert (final.value, final.pictures, final.class_name) == (0.6775, 10_000, None)
    # The mean of the classes need not be the published total; it is near it.
    assert sum(CLASSES.values()) / 10 == pytest.approx(final.value, abs=0.002)


def test_simsiam():
    assert [(figure.recipe, figure.qualifier, figure.value) for figure in FIGURES["C"]] == [
        ("resnet18_food11", "at most", 0.60),
        ("simsiam_food11", "", 0.71),
    ]


def test_untrained_networks():
    table = {
        "resnet50": (50, 35.485),
        "resnet101": (50, 45.556),
        "vit_b_16": (50, 83.587),
        "vit_l_16": (50, 370.091),
        "swin_t": (43, 44.616),
        "swin_s": (49, 67.754),
    }
    expected = [
        (f"{network}_imagenet_untrained", metric, value)
        for network, values in table.items()
        for metric, value in zip(("validation/correct", "validation/seconds"), values, strict=True)
    ]
    assert [(figure.recipe, figure.metric, figure.value) for figure in FIGURES["D"]] == expected


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
    assert len(question.contrasts) == 6 * 4 + 2
    for contrast in question.contrasts:
        if contrast.control_metric == "test/untrained_head_accuracy":
            assert contrast.treatment == contrast.control
        else:
            assert contrast.treatment_metric == contrast.control_metric
            assert contrast.control in ("pixels_cifar10_random", contrast.treatment.removesuffix("_calibrated"))
