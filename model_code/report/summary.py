"""The report's first screen: champions, published beside ours in one chart, a sentence for each question."""

from collections.abc import Sequence

from mlflow import MlflowClient
from scipy import stats

from model_code.release.names import RELEASE_NAMES
from model_code.release.versions import get_champion, read_verdict
from model_code.report.amounts import format_mean
from model_code.report.collection import Collection, average
from model_code.report.comparison import Comparison, compare
from model_code.report.document import Block, Cell, Folded, ImageGroup, Paragraph, Section, Table
from model_code.report.figures import Dot, draw_published, render
from model_code.report.published import ARTICLES
from model_code.report.questions import QUESTIONS, Question
from model_code.report.verdicts import CONFIDENCE, LEAST_SEEDS, decide


def build_summary(collection: Collection, client: MlflowClient) -> Section:
    """Return the section that answers first: the rest of the report is its evidence."""
    return Section(
        "At a glance", "summary", (_build_champions(client), *_build_chart(collection), *_build_sentences(collection))
    )


def _build_champions(client: MlflowClient) -> Block:
    rows, without = [], []
    for name in sorted({*RELEASE_NAMES, *(model.name for model in client.search_registered_models())}):
        version = get_champion(client, name)
        if version is None:
            without.append(name)
            continue
        verdict = read_verdict(version)
        low, high = (0.0, 0.0) if verdict is None else verdict.challenger_interval
        macro_f1 = None if verdict is None else verdict.challenger_macro_f1
        rows.append(
            (
                Cell(name, is_code=True),
                Cell("not recorded")
                if verdict is None
                else Cell(
                    f"{verdict.challenger_accuracy:.2%}",
                    detail=f"95 % interval {low:.2%} to {high:.2%}, {verdict.count:,} {verdict.split} images"
                    + ("" if macro_f1 is None else f"; macro-F1 {macro_f1:.2%}"),
                ),
                Cell(f"version {version.version}", detail=(verdict.precision or "") if verdict else ""),
                Cell(version.tags.get("recipe", "-"), is_code=True),
                Cell(run_ids=(str(version.run_id),) if version.run_id else ()),
            )
        )
    if not rows:
        return Paragraph("Champions: nothing is released yet.")
    caption = "Champions" + (f"; nothing is released as {' or '.join(without)}" if without else "")
    return Table(caption, ("name", "accuracy", "champion", "recipe", "run"), tuple(rows))


def list_main(collection: Collection) -> list[Comparison]:
    """Return the first accuracy over all images that is published of each recipe, with ours."""
    found: dict[str, Comparison] = {}
    for article in ARTICLES:
        for figure in article.figures:
            if figure.unit == "fraction" and figure.class_name is None and figure.epoch is None:
                found.setdefault(figure.recipe, compare(collection, figure))
    return list(found.values())


def measure_spread(values: Sequence[float], images: int | None) -> tuple[float, float] | None:
    """Return the 95 % interval of ours, fractions: Student's t over three seeds or more, else that of one run's images.

    None for two runs, and for one run on an unknown number of images.
    """
    if len(values) >= LEAST_SEEDS:
        mean, spread = average(values)
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * (spread or 0) / len(values) ** 0.5
        return mean - half, mean + half
    if len(values) == 1 and images:
        interval = stats.binomtest(round(values[0] * images), images).proportion_ci(CONFIDENCE)
        return float(interval.low), float(interval.high)
    return None


def _build_chart(collection: Collection) -> list[Block]:
    rows = list_main(collection)
    dots = [
        Dot(
            label=f"{row.figure.recipe} ({row.figure.qualifier})" if row.figure.qualifier else row.figure.recipe,
            published=row.figure.value,
            ours=average(row.values)[0] if row.values else None,
            interval=measure_spread(row.values, row.images),
            is_comparable=row.is_comparable,
        )
        for row in rows
    ]
    run = [row for row in rows if row.values]
    said = "; ".join(
        f"{row.figure.recipe} {format_mean(*average(row.values), 'fraction')}, published {row.figure.value:.1%}"
        for row in run
    )
    image = render(
        "published",
        draw_published(dots),
        f"Accuracy of each recipe. {said or 'None of them was run on its own images.'}",
    )
    caption = (
        f"{len([row for row in run if row.is_comparable])} of {len(rows)} published accuracies were repeated in full. "
        "Diamonds: published. Dots: ours, with 95 % intervals over three seeds or more, else over the images of one "
        "run. Grey dots: custom and smoke runs, which compare with nothing. Empty rings: not run."
    )
    runs = tuple(one.run_id for row in run for one in row.runs)
    return [ImageGroup("Published accuracy and ours", (image,), caption, runs)]


def _build_sentences(collection: Collection) -> list[Block]:
    answered: list[tuple[Cell, ...]] = []
    unanswered: list[tuple[Cell, ...]] = []
    for question in QUESTIONS:
        answer = _answer(collection, question)
        (answered if answer else unanswered).append((Cell(question.text), Cell(answer or "not run")))
    blocks: list[Block] = []
    if answered:
        blocks.append(Table("Verdicts", ("question", "answer"), tuple(answered)))
    if unanswered:
        title = f"{len(unanswered)} of {len(QUESTIONS)} questions have no pair of runs yet"
        blocks.append(Folded(title, Table("Open questions without runs", ("question", "answer"), tuple(unanswered))))
    return blocks


def _answer(collection: Collection, question: Question) -> str:
    """Return one sentence: what each contrast with pairs of runs says; empty without any."""
    verdicts = [decide(collection, contrast, question.is_descriptive) for contrast in question.contrasts]
    return "; ".join(f"{one.contrast.label}: {one.words}" for one in verdicts if one.pairs)
