"""The report's first screen: champions, published beside ours in one chart, verdicts."""

from collections import Counter
from collections.abc import Sequence

from mlflow import MlflowClient
from scipy import stats

from model_code.release.versions import get_champion, read_verdict
from model_code.report.amounts import format_mean, format_points, format_published, format_share
from model_code.report.collection import FULL, Collection, average
from model_code.report.comparison import NOT_RUN, Comparison, compare, mark_budget
from model_code.report.document import Block, Cell, Folded, ImageGroup, Paragraph, Section, Table
from model_code.report.figures import Dot, draw_published, render
from model_code.report.published import ARTICLES
from model_code.report.questions import QUESTIONS, Question
from model_code.report.verdicts import CONFIDENCE, LEAST_SEEDS, Verdict, decide

# Contrasts of a question that are listed one by one.
MOST_LISTED = 6


def build_summary(collection: Collection, client: MlflowClient) -> Section:
    """Return the section that answers first: the rest of the report is its evidence."""
    return Section(
        "At a glance",
        "summary",
        (_build_champions(collection, client), *_build_chart(collection), *_build_verdicts(collection)),
    )


def _build_champions(collection: Collection, client: MlflowClient) -> Block:
    rows = []
    budgets = {run.run_id: run.budget for run in collection.runs}
    for name in sorted(model.name for model in client.search_registered_models()):
        version = get_champion(client, name)
        if version is None:
            continue
        budget = budgets.get(str(version.run_id), FULL).partition(":")[0]
        verdict = read_verdict(version)
        low, high = (0.0, 0.0) if verdict is None else verdict.challenger_interval
        macro_f1 = None if verdict is None else verdict.challenger_macro_f1
        rows.append(
            (
                Cell(
                    name,
                    is_code=True,
                    detail=", ".join(
                        filter(None, (version.tags.get("recipe"), "" if budget == FULL else f"{budget} run"))
                    ),
                    is_caution=budget != FULL,
                ),
                Cell("not recorded")
                if verdict is None
                else Cell(
                    format_share(verdict.challenger_accuracy),
                    detail=f"95 % interval {format_share(low)} to {format_share(high)}, "
                    f"{verdict.count:,} {verdict.split} images"
                    + ("" if macro_f1 is None else f"; macro-F1 {format_share(macro_f1)}"),
                ),
                Cell(f"version {version.version}", detail=(verdict.precision or "") if verdict else ""),
                Cell(run_ids=(str(version.run_id),) if version.run_id else ()),
            )
        )
    if not rows:
        return Paragraph("Champions: nothing is released yet.")
    return Table("Champions", ("name", "accuracy", "champion", "run"), tuple(rows))


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
    ends = [end for dot in dots for end in (dot.published, dot.ours, *(dot.interval or ())) if end is not None]
    half = (len(dots) + 1) // 2
    images = tuple(
        render(
            f"published-{number}",
            draw_published(dots[start : start + half], (min(ends), max(ends))),
            f"Accuracy of each recipe: {'; '.join(map(_say, rows[start : start + half]))}",
        )
        for number, start in enumerate((0, half), start=1)
    )
    run = [row for row in rows if row.values]
    caption = (
        f"{len([row for row in run if row.is_comparable])} of {len(rows)} published accuracies were repeated in full. "
        "Diamonds: published. Dots: ours, with 95 % intervals over three seeds or more, else over the images of one "
        "run. Grey dots: custom and smoke runs, which compare with nothing. Empty rings: not run."
    )
    chart = ImageGroup("Published accuracy and ours", images, caption, ())
    return [chart] if run else [Folded(f"No run yet of the {len(rows)} recipes with a published accuracy", chart)]


def _say(row: Comparison) -> str:
    ours = format_mean(*average(row.values), "fraction") if row.values else NOT_RUN
    if row.group is not None and row.values and not row.is_comparable:
        ours += f" ({mark_budget(row.group)})"
    return f"{row.figure.recipe} {ours}, published {format_published(row.figure)}"


def _build_verdicts(collection: Collection) -> list[Block]:
    answered: list[tuple[Cell, ...]] = []
    unanswered: list[tuple[Cell, ...]] = []
    for question in QUESTIONS:
        rows = _answer(collection, question)
        for number, row in enumerate(rows):
            head = Cell(height=0) if number else Cell(question.text, height=len(rows))
            answered.append((head, *row))
        if not rows:
            unanswered.append((Cell(question.text),))
    blocks: list[Block] = []
    if answered:
        columns = ("question", "comparison", "verdict", "points [95 % interval]", "seeds")
        blocks.append(Table("Verdicts", columns, tuple(answered)))
    if unanswered:
        title = f"{len(unanswered)} of {len(QUESTIONS)} questions have no pair of runs yet"
        blocks.append(Folded(title, Table("Open questions without runs", ("question",), tuple(unanswered))))
    return blocks


def _answer(collection: Collection, question: Question) -> list[tuple[Cell, ...]]:
    """Return a row for each contrast with pairs of runs; of many, one for those of the same kind and budget."""
    found = [decide(collection, contrast, question.is_descriptive) for contrast in question.contrasts]
    verdicts = [verdict for verdict in found if verdict.pairs]
    by_kind: dict[tuple[str, str | None], list[Verdict]] = {}
    for verdict in verdicts:
        label = verdict.contrast.label
        kind = label.rpartition(": ")[2] if len(verdicts) > MOST_LISTED else label
        by_kind.setdefault((kind, verdict.budget), []).append(verdict)
    return [_describe_kind(kind, of_kind) for (kind, _), of_kind in by_kind.items()]


def _describe_kind(kind: str, verdicts: Sequence[Verdict]) -> tuple[Cell, ...]:
    """Return the row of contrasts at one budget: comparison, verdict, points, seeds."""
    first = verdicts[0]
    if len(verdicts) == 1:
        kind, outcome, points = first.contrast.label, first.outcome, first.points
    else:
        means = [verdict.mean for verdict in verdicts]
        outcomes = Counter(verdict.outcome for verdict in verdicts)
        outcome = ", ".join(f"{outcome} in {count} of {len(verdicts)}" for outcome, count in outcomes.items())
        points = f"means {' to '.join(format_points((min(means), max(means)), has_sign=True))}"
    details = [] if first.is_full or first.is_smoke else [first.budget or ""]
    if other_images := sum(verdict.other_images for verdict in verdicts):
        details.append(f"{other_images} more on different images")
    seeds = sorted({len(verdict.pairs) for verdict in verdicts})
    return (
        Cell(kind),
        Cell(outcome, detail="; ".join(details), is_caution=not first.is_full),
        Cell(points, is_caution=not first.is_full),
        Cell(" or ".join(map(str, seeds))),
    )
