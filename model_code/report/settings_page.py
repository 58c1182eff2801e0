"""Articles' settings against those of the recipes: same, or a departure that the recipe or its row declares."""

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from model_code.markdown_text import escape, join_cells
from model_code.recipes.catalog import RECIPES
from model_code.report.article_settings import ARTICLE_SETTINGS, NOT_STATED, ArticleSetting
from model_code.report.document import Block, Cell, Folded, Paragraph, Section, Table
from model_code.report.published import ARTICLES

COLUMNS = ("setting", "article", "stated in", "ours", "judgement", "remark", "recipes")
_HEAD = """# Settings of the articles

Every setting that the four articles state, beside that of our recipes. "Same" is the article's value; "declared" is a
departure, with its reason in the remark or under `Departures` in the recipe's evidence (`darkroom recipes NAME`); "our
choice" is a setting that the article does not state. Where the article's text, code and log contradict each other, the
remark says what else it states. What we do where no setting stands for it is shown by the test that the remark names.
"repository" is the public code that the article runs without printing the value.

The values are in `model_code/report/article_settings.py`; this page is written by
`python -m tests.unit.report.test_article_settings`.
"""


@dataclass(frozen=True)
class Judgement:
    """One setting of one recipe beside the article's.

    Attributes:
        row: What the article states.
        recipe: Name of the recipe.
        ours: The recipe's value as JSON has it; words where the config has no such setting.
        word: `same`, `our choice`, `declared`, or `undeclared`: a departure without a reason.
    """

    row: ArticleSetting
    recipe: str
    ours: object
    word: str


def judge_settings() -> Iterator[Judgement]:
    """Yield one judgement for each row and recipe, in the articles' order."""
    for row in ARTICLE_SETTINGS:
        for recipe in row.recipes:
            ours = row.ours or RECIPES[recipe].build().flatten()[row.setting]
            yield Judgement(row, recipe, ours, _judge(row, recipe, ours))


def build_departures() -> Section:
    """Return the report's section with the declared departures from each article, folded."""
    blocks: list[Block] = [Paragraph("Settings in which our recipes depart from the articles, and why.")]
    departures = [one for one in judge_settings() if one.word == "declared"]
    for article in ARTICLES:
        found: dict[tuple[str, str, str, str], list[str]] = {}
        explained: dict[str, None] = {}
        everyone = {recipe for row in ARTICLE_SETTINGS if row.letter == article.letter for recipe in row.recipes}
        for one in departures:
            if one.row.letter == article.letter:
                why = one.row.reason or f"see {one.recipe} below"
                explained |= {} if one.row.reason else {one.recipe: None}
                key = (one.row.setting, _shorten(one.row.stated), _shorten(one.ours), why)
                found.setdefault(key, []).append(one.recipe)
        rows = tuple(
            (*map(Cell, cells), Cell("all" if set(recipes) == everyone else ", ".join(recipes)))
            for cells, recipes in found.items()
        )
        table = Table(f"{article.title}: departures", ("setting", "article", "ours", "why", "recipes"), rows)
        blocks.append(Folded(f"{article.letter}. {article.title}: {len(rows)} departures", table))
        for recipe in explained:
            _, _, reasons = (inspect.getdoc(RECIPES[recipe].function) or "").partition("Departures:")
            blocks.append(Paragraph(f"{recipe}: {' '.join(reasons.split())}"))
    return Section("Departures from the articles", "departures", tuple(blocks))


def find_departures(recipe: str) -> str:
    """Return what a recipe's docstring and that of its file say of departures; empty where they say nothing."""
    function = RECIPES[recipe].function
    texts = (inspect.getdoc(inspect.getmodule(function)), inspect.getdoc(function))
    return " ".join((text or "").partition("Departures")[2] for text in texts)


def render_settings() -> str:
    """Return docs/settings.md."""
    judgements = list(judge_settings())
    parts = [_HEAD]
    for article in ARTICLES:
        of_article = [one for one in judgements if one.row.letter == article.letter]
        everyone = {one.recipe for one in of_article}
        lines = [join_cells(COLUMNS), join_cells(["---"] * len(COLUMNS))]
        merged: dict[tuple[str, ...], list[str]] = {}
        for one in of_article:
            merged.setdefault(_list_cells(one), []).append(one.recipe)
        for cells, recipes in merged.items():
            names = "all" if set(recipes) == everyone else ", ".join(f"`{name}`" for name in recipes)
            lines.append(join_cells((*cells, names)))
        parts.append(f"## {article.letter}. {escape(article.title)}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _judge(row: ArticleSetting, recipe: str, ours: object) -> str:
    if row.stated == NOT_STATED:
        return "our choice" if row.reason else "undeclared"
    if json.loads(json.dumps(row.stated)) == ours:
        return "same"
    is_declared = row.reason or re.search(rf"(?<![\w.]){re.escape(row.setting)}\b", find_departures(recipe))
    return "declared" if is_declared else "undeclared"


def _list_cells(one: Judgement) -> tuple[str, ...]:
    row = one.row
    is_setting = not row.ours
    return (
        f"`{row.setting}`" if is_setting else escape(row.setting),
        "-" if row.stated == NOT_STATED else _show(row.stated, is_setting),
        row.source,
        _show(one.ours, is_setting),
        one.word,
        _explain(one),
    )


def _explain(one: Judgement) -> str:
    row = one.row
    reason = "" if one.word == "same" else row.reason
    test = f"test: {row.test.partition('::')[2]}" if row.test else ""
    return escape("; ".join(filter(None, (row.remark, reason, test))))


def _show(value: object, is_setting: bool) -> str:
    if not is_setting:
        return escape(str(value))
    return f"`{_shorten(value)}`"


def _shorten(value: object) -> str:
    """Return a value as JSON has it, without quotes and with six digits of a fraction."""
    shown = json.loads(json.dumps(value), parse_float=lambda text: f"{float(text):.6g}")
    return json.dumps(shown).replace('"', "") if isinstance(shown, list) else json.dumps(shown).strip('"')
