"""The open questions with what our runs say: arms, verdicts, forest plots."""

from collections import Counter

from model_code.report.amounts import format_share
from model_code.report.collection import Collection, average, rank_budget
from model_code.report.comparison import NOT_RUN, describe_budget, fold_absent, name_metric, summarise
from model_code.report.document import Block, Cell, Folded, Heading, ImageGroup, Paragraph, Section, Table
from model_code.report.figures import draw_arms, draw_forest, list_histories, render
from model_code.report.questions import QUESTIONS, Question
from model_code.report.verdicts import Verdict, decide


def build_answers(collection: Collection) -> Section:
    """Return the section with one table of verdicts for each open question."""
    blocks: list[Block] = []
    for question in QUESTIONS:
        verdicts = [decide(collection, contrast, question.is_descriptive) for contrast in question.contrasts]
        blocks += [Heading(question.text, f"question-{question.key}"), Paragraph(question.reason)]
        if question.caution:
            blocks.append(Paragraph(question.caution, is_caution=True))
        shown, absent = _build_arms(collection, question)
        if not shown.rows:
            blocks.append(Folded(f"{NOT_RUN}: {len(absent.rows)} arms", absent))
            continue
        blocks += fold_absent("arms", shown, absent)
        blocks += fold_absent("contrasts", *_build_verdicts(question, verdicts))
        blocks += [*_build_forest(question, verdicts), *_build_overlay(collection, question)]
    return Section("Open questions", "questions", tuple(blocks))


def _build_arms(collection: Collection, question: Question) -> tuple[Table, Table]:
    """Return the arms that were run, and those that were not."""
    rows, absent = [], []
    for arm in question.arms:
        group = collection.get_best(arm.recipe)
        head = Cell(arm.label, detail=arm.recipe)
        if group is None:
            absent.append((Cell(arm.label), Cell(arm.recipe, is_code=True)))
            continue
        rows.append(
            (
                head,
                *(summarise(group, metric) for metric in question.metrics),
                Cell(str(len(group.runs))),
                describe_budget(group),
                Cell(run_ids=tuple(run.run_id for run in group.runs)),
            )
        )
    columns = ("arm", *map(name_metric, question.metrics), "seeds", "budget", "runs")
    return (
        Table(f"Arms: {question.key}", columns, tuple(rows)),
        Table(f"Arms: {question.key}, {NOT_RUN}", ("arm", "recipe"), tuple(absent)),
    )


def _build_verdicts(question: Question, verdicts: list[Verdict]) -> tuple[Table, Table]:
    """Return the contrasts whose recipes were run, and the others."""
    rows, absent = [], []
    for verdict in verdicts:
        if verdict.missing:
            absent.append((Cell(verdict.contrast.label, detail=_describe_contrast(verdict)), Cell(verdict.words)))
            continue
        budget = verdict.budget or ""
        rows.append(
            (
                Cell(verdict.contrast.label, detail=_describe_contrast(verdict)),
                Cell(verdict.words, is_caution=bool(verdict.pairs) and not verdict.is_full),
                Cell(", ".join(str(pair.seed) for pair in verdict.pairs)),
                Cell(budget, is_caution=bool(budget) and not verdict.is_full),
                Cell(", ".join(verdict.list_differing_settings())),
                Cell(run_ids=verdict.run_ids),
            )
        )
    columns = ("contrast", "verdict", "paired seeds", "budget", "settings that differ", "runs")
    return (
        Table(f"Verdicts: {question.key}", columns, tuple(rows)),
        Table(f"Verdicts: {question.key}, {NOT_RUN}", ("contrast", "verdict"), tuple(absent)),
    )


def _describe_contrast(verdict: Verdict) -> str:
    contrast = verdict.contrast
    if contrast.treatment == contrast.control:
        return f"{contrast.treatment}: {contrast.treatment_metric} - {contrast.control_metric}"
    return f"{contrast.treatment} - {contrast.control}, {contrast.treatment_metric}"


def _build_forest(question: Question, verdicts: list[Verdict]) -> list[Block]:
    shown = [verdict for verdict in verdicts if verdict.pairs]
    if not shown:
        return []
    lines = "; ".join(f"{verdict.contrast.label}: {verdict.words}" for verdict in shown)
    image = render(f"forest-{question.key}", draw_forest(shown), f"Dots with whiskers. {lines}")
    caption = (
        "Treatment minus control in points: mean over the seeds and its 95 % interval. Hollow dots are undecided or "
        "not judged, grey ones are not full runs."
    )
    runs = tuple(dict.fromkeys(run_id for verdict in shown for run_id in verdict.run_ids))
    return [ImageGroup(f"Differences: {question.key}", (image,), caption, runs)]


def _build_overlay(collection: Collection, question: Question) -> list[Block]:
    """Return one chart with the curves of several arms at one budget: the best, of several the one that most have."""
    if not question.curve:
        return []
    groups = [(arm, collection.get_best(arm.recipe)) for arm in question.arms]
    found = [(arm, group) for arm, group in groups if group is not None and list_histories(group, question.curve)]
    counts = Counter(group.budget for _, group in found)
    budgets = [budget for budget, count in counts.items() if count > 1]
    if not budgets:
        return []
    budget = min(budgets, key=lambda one: rank_budget(one, counts[one]))
    shown = {
        arm.label: (group, list_histories(group, question.curve)) for arm, group in found if group.budget == budget
    }
    means = {label: average([history[-1][1] for history in histories])[0] for label, (_, histories) in shown.items()}
    ends = "; ".join(f"{label} ends at {format_share(mean)}" for label, mean in means.items())
    name, title = f"curves-{question.key}", f"{question.curve.replace('/', ' ')}, %"
    histories_by_arm = {label: histories for label, (_, histories) in shown.items()}
    image = render(name, draw_arms(title, histories_by_arm, 100), f"{title}: {ends}")
    missing = [arm.label for arm in question.arms if arm.label not in shown]
    without = f" Without this curve at this budget: {'; '.join(missing)}." if missing else ""
    caption = f"Mean over the seeds of each arm, thin lines for seeds; budget: {budget}.{without}"
    runs = tuple(run.run_id for group, _ in shown.values() for run in group.runs)
    return [ImageGroup(f"Curves: {question.key}", (image,), caption, runs)]
