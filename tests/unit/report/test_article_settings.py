"""Settings of the articles against the recipes. `python -m tests.unit.report.test_article_settings` writes the page."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from model_code.recipes.catalog import RECIPES
from model_code.report import settings_page
from model_code.report.article_settings import ARTICLE_SETTINGS, NOT_STATED, ArticleSetting
from model_code.report.document import Folded, Paragraph
from model_code.report.published import ARTICLES, list_published_recipes
from model_code.report.settings_page import build_departures, judge_settings, render_settings

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"
COVERED = sorted({recipe for row in ARTICLE_SETTINGS for recipe in row.recipes})
UNIT = Path(__file__).parents[1]
# All settings at once, and what is a fact of the data or of the machine.
NEVER_TESTED = {"all settings", "semi-supervised training", "test images", "devices"}
# What each named test must hold, or it shows something else.
SHOWN_BY = {
    "best checkpoint": "result.best_epoch == 1 + int(np.argmax(accuracies))",
    "split": "np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(5000))",
    "images of the reported figure": "sorted(list_numbers(images.train) + list_numbers(images.validation))",
    "validation loss and accuracy": "report.loss == pytest.approx((math.log(2) + math.log(4)) / 2)",
    "F1": 'sklearn_metrics.f1_score(true, predicted, average="macro")',
    "initial weights": "float(parameter.std()) == pytest.approx(0.02",
    "dropout and drop path": "torch.equal(network.train()(images), network.eval()(images))",
    "windows of the last stage": "[[0, 3], [0, 3] * 3, [0, 0]]",
    "optimiser": "SGD([torch.zeros(1)]",
    "learning rate of the predictor": 'groups[1]["lr"] == pytest.approx(config.learning_rate)',
    "optimiser of the linear layer": "result.probe.weight[0, :4].tolist() == pytest.approx(weights",
    "kernel of the blur": "size // 20 * 2 + 1",
    "interpolation of these crops": "InterpolationMode.BILINEAR, antialias=True",
    "images that crops are taken from": "decode_picture(content, 24)",
    "last partial batch of the bank": "knn_accuracy(bank, queries, 5, 0.1) == right / 23",
    "accuracy of the linear layer": "(result.train_accuracy, result.test_accuracy) == (train_accuracy, test_accuracy)",
    "top-5 accuracy": "sklearn_metrics.top_k_accuracy_score(labels_N.numpy(), logits_NK.numpy(), k=5)",
    "gradients": "batch.is_inference()",
    "order of the images": "visited == [[1, 2], [3, 4], [5]]",
}
# Not of the article: names, where it runs, and what the catalog writes.
NEVER_STATED = {"recipe", "kind", "profile", "device"}


def list_settings(recipe):
    return [row.setting for row in ARTICLE_SETTINGS if recipe in row.recipes]


def test_every_setting_is_the_articles_or_a_declared_departure():
    found = list(judge_settings())
    assert [(one.recipe, one.row.setting) for one in found if one.word == "undeclared"] == []
    assert {one.word for one in found} == {"same", "declared", "our choice"}


@pytest.mark.parametrize("row", ARTICLE_SETTINGS, ids=lambda row: f"{row.letter}-{row.setting}")
def test_rows_name_settings_of_the_config_or_say_what_we_do(row):
    assert set(row.recipes) <= set(RECIPES)
    for recipe in row.recipes:
        is_setting = row.setting in RECIPES[recipe].build().flatten()
        assert is_setting != bool(row.ours)


@pytest.mark.parametrize("row", [row for row in ARTICLE_SETTINGS if row.ours], ids=lambda row: row.setting)
def test_what_no_setting_stands_for_is_tested(row):
    if row.setting in NEVER_TESTED:
        assert not row.test
        return
    file, _, function = row.test.partition("::")
    text = (UNIT / file).read_text()
    [found] = [one for one in ast.parse(text).body if isinstance(one, ast.FunctionDef) and one.name == function]
    assert SHOWN_BY[row.setting] in str(ast.get_source_segment(text, found))


def test_only_what_a_row_says_is_shown_by_a_test():
    assert set(SHOWN_BY) == {row.setting for row in ARTICLE_SETTINGS if row.ours} - NEVER_TESTED


def test_every_published_recipe_is_covered_and_no_setting_stands_twice():
    assert set(list_published_recipes()) <= set(COVERED)
    for recipe in COVERED:
        assert len(list_settings(recipe)) == len(set(list_settings(recipe)))


@pytest.mark.parametrize("recipe", [name for name in COVERED if not name.startswith("resnet18_food11")])
def test_every_setting_that_a_recipe_changes_has_a_row(recipe):
    config = RECIPES[recipe].build()
    plain = type(config)(network="resnet18").flatten()
    changed = {key for key, value in config.flatten().items() if value != plain[key]}
    assert changed - NEVER_STATED <= set(list_settings(recipe))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"stated": 101}, "undeclared"),
        ({"stated": 101, "reason": "why"}, "declared"),
        ({"stated": 101, "remark": "what else"}, "undeclared"),
        ({"stated": NOT_STATED}, "undeclared"),
        ({"stated": NOT_STATED, "reason": "why"}, "our choice"),
        ({"setting": "F1", "stated": "micro", "ours": "macro"}, "declared"),
        ({"setting": "recall", "stated": "micro", "ours": "macro"}, "undeclared"),
        ({}, "same"),
        ({"setting": "validation_fraction", "stated": 0.5, "recipes": ("swin_cifar10_published",)}, "declared"),
        ({"setting": "batch_size", "stated": 1, "recipes": ("swin_cifar10_published",)}, "undeclared"),
    ],
)
def test_a_departure_needs_a_reason(change, word, monkeypatch):
    row = ArticleSetting("A", ("resnet18_cifar10_exp",), "epochs", 100, "text")
    monkeypatch.setattr(settings_page, "ARTICLE_SETTINGS", (replace(row, **change),))
    assert [one.word for one in judge_settings()] == [word]


def test_the_report_has_every_departure_with_its_recipes():
    folded = [block for block in build_departures().blocks if isinstance(block, Folded)]
    assert len(folded) == len(ARTICLES)
    of_article = {one.letter: {row.recipes for row in ARTICLE_SETTINGS if row.letter == one.letter} for one in ARTICLES}
    shown = {
        (row[0].text, recipe)
        for article, block in zip(ARTICLES, folded, strict=True)
        for row in block.block.rows
        for recipe in (set().union(*of_article[article.letter]) if row[-1].text == "all" else row[-1].text.split(", "))
    }
    assert shown == {(one.row.setting, one.recipe) for one in judge_settings() if one.word == "declared"}
    assert all(cell.text for block in folded for row in block.block.rows for cell in row)
    [swin] = [row for row in folded[1].block.rows if row[0].text == "validation_fraction"]
    assert [cell.text for cell in swin[1:4]] == ["0", "0.2", "see swin_cifar10_published below"]
    texts = [block.text for block in build_departures().blocks if isinstance(block, Paragraph)]
    assert any(text.startswith("swin_cifar10_published: validation_fraction 0.2: 20 %") for text in texts)


def test_the_page_is_what_the_table_says():
    assert PAGE.read_text() == render_settings(), "python -m tests.unit.report.test_article_settings writes it"


if __name__ == "__main__":
    PAGE.write_text(render_settings())
