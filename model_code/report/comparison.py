"""Published figures beside ours: one table for each article."""

from dataclasses import dataclass

from model_code.report.amounts import format_difference, format_mean, format_published
from model_code.report.collection import FULL, Collection, Group, Run, average
from model_code.report.document import Block, Cell, Folded, Heading, Paragraph, Section, Table, compact
from model_code.report.published import ARTICLES, SECONDS_PER_EPOCH, Article, PublishedFigure

NOT_RUN = "not run"
# Share of the images that a figure leaves out with a partial batch at its end, at most.
PARTIAL_BATCH_SHARE = 0.005


@dataclass(frozen=True)
class Comparison:
    """One published figure and ours.

    Attributes:
        figure: The published one.
        group: The runs that stand for its recipe; None if there is none.
        runs: Those of the group that have the figure.
        values: Values of `runs`, in the figure's unit.
    """

    figure: PublishedFigure
    group: Group | None
    runs: tuple[Run, ...]
    values: tuple[float, ...]

    @property
    def image_counts(self) -> tuple[int | None, ...]:
        """Images that each of `runs` was measured on; None for one that does not say."""
        name = f"{self.figure.metric.split('/')[0]}/pictures"
        return tuple(round(run.metrics[name]) if name in run.metrics else None for run in self.runs)

    @property
    def images(self) -> int | None:
        """Images that ours was measured on, where the runs say so and agree."""
        counts = set(self.image_counts)
        return counts.pop() if len(counts) == 1 else None

    @property
    def is_on_equally_many(self) -> bool:
        """Whether ours was measured on as many images as published; also where the article does not say.

        Fractions may miss the partial batch at the end, counts no image.
        """
        published = self.figure.images
        if published is None or self.images is None:
            return published is None
        allowed = PARTIAL_BATCH_SHARE * published if self.figure.unit == "fraction" else 0
        return abs(self.images - published) <= allowed

    @property
    def is_comparable(self) -> bool:
        """Whether ours may stand beside the published figure: full runs on equally many images."""
        return bool(self.group and self.group.is_full and self.values and self.is_on_equally_many)

    @property
    def difference(self) -> float | None:
        """Ours minus published, in the figure's unit; None where the two cannot be compared."""
        if not self.is_comparable or not self.figure.is_same_work:
            return None
        return average(self.values)[0] - self.figure.value


def compare(collection: Collection, figure: PublishedFigure) -> Comparison:
    """Return a published figure with what our runs measured on the same images."""
    groups = collection.groups.get(figure.recipe, ())
    group = next((one for one in groups if not one.is_elsewhere), None)
    found = [(run, value) for run in (group.runs if group else ()) if (value := _measure(run, figure)) is not None]
    return Comparison(figure, group, tuple(run for run, _ in found), tuple(value for _, value in found))


def mark_budget(group: Group) -> str:
    """Return the budget as tables show it; anything but full says that it is not comparable."""
    if group.budget == FULL:
        return FULL
    return f"{group.budget} - not comparable"


def describe_budget(group: Group, *, is_caution: bool | None = None) -> Cell:
    """Return the budget for a table; what a custom run changed is small print."""
    kind, _, changed = group.budget.partition(": ")
    text = kind if group.is_full else f"{kind} - not comparable"
    return Cell(text, detail=changed, is_caution=not group.is_full if is_caution is None else is_caution)


def describe_devices(runs: tuple[Run, ...]) -> str:
    """Return the devices of some runs, each once."""
    return ", ".join(sorted({run.device for run in runs}))


def describe_epochs(runs: tuple[Run, ...]) -> str:
    """Return the epochs of some runs; `-` where there are none."""
    return ", ".join(str(epochs) for epochs in sorted({run.epochs for run in runs if run.epochs})) or "-"


def build_comparison(collection: Collection) -> Section:
    """Return the section that puts every published figure beside ours."""
    blocks: list[Block] = []
    for article in ARTICLES:
        blocks.append(Heading(f"{article.letter}. {article.title}", f"article-{article.letter.lower()}"))
        blocks.append(Paragraph(article.remark))
        blocks += _build_tables(collection, article)
    return Section("Published beside ours", "published", tuple(blocks))


def _measure(run: Run, figure: PublishedFigure) -> float | None:
    if figure.class_name is not None:
        return run.report.per_class.get(figure.class_name) if run.report and run.report.split == "test" else None
    if figure.metric == SECONDS_PER_EPOCH:
        seconds = [value for _, value in run.histories.get(SECONDS_PER_EPOCH, ())]
        return average(seconds)[0] if seconds else None
    if figure.epoch is not None:
        return run.get_at(figure.metric, figure.epoch)
    return run.metrics.get(figure.metric)


def _build_tables(collection: Collection, article: Article) -> list[Block]:
    further = (f"ours, {name_metric(article.further_metric)}",) if article.further_metric else ()
    columns = ("what", "published", "ours (mean ± std)", "ours - published", *further)
    compared = [compare(collection, figure) for figure in article.figures]
    rows = tuple(_build_row(row, article.further_metric) for row in compared if row.group is not None)
    absent = tuple(_describe_figure(row.figure) for row in compared if row.group is None)
    shown = Table(f"{article.title}: published beside ours", (*columns, "seeds", "epochs", "budget", "runs"), rows)
    return fold_absent("published figures", shown, Table(f"{article.title}: {NOT_RUN}", ("what", "published"), absent))


def fold_absent(what: str, shown: Table, absent: Table) -> list[Block]:
    """Return what was run as a table, and what was not behind a title; neither where it has no rows."""
    blocks: list[Block] = [compact(shown)] if shown.rows else []
    if absent.rows:
        title = f"{len(absent.rows)} of {len(shown.rows) + len(absent.rows)} {what}: {NOT_RUN}"
        blocks.append(Folded(title, absent))
    return blocks


def _build_row(row: Comparison, further_metric: str | None) -> tuple[Cell, ...]:
    figure, group = row.figure, row.group
    assert group is not None, "rows are those of figures with runs"
    head = _describe_figure(figure)
    runs = row.runs or group.runs
    difference = Cell() if row.difference is None else Cell(format_difference(row.difference, figure.unit))
    cells = [*head, _describe_ours(row), difference]
    if further_metric:
        cells.append(summarise(group, further_metric))
    return (
        *cells,
        Cell(str(len(row.values))),
        Cell(describe_epochs(runs)),
        describe_budget(group),
        Cell(run_ids=tuple(run.run_id for run in runs)),
    )


def _describe_figure(figure: PublishedFigure) -> tuple[Cell, Cell]:
    remark = f"{figure.recipe}{'; ' if figure.remark else ''}{figure.remark}"
    return Cell(figure.label, detail=remark), Cell(format_published(figure))


def _describe_ours(row: Comparison) -> Cell:
    group, figure = row.group, row.figure
    if group is None or not row.values:
        reason = f"not reached: {figure.metric} at epoch {figure.epoch}" if figure.epoch else f"no {figure.metric}"
        return Cell("no value", detail=reason, is_caution=True)
    notes = []
    if group.budget != FULL:
        notes.append("smoke: not a result" if group.is_smoke else "custom: not comparable")
    differences = _list_differences(group)
    notes += differences
    if figure.images not in (None, row.images):
        notes.append(_describe_counts(row.image_counts))
    if figure.unit == "seconds":
        notes.append(describe_devices(row.runs))
    mean, spread = average(row.values)
    text = format_mean(mean, spread, figure.unit, row.images if figure.unit == "count" else None)
    return Cell(text, detail="; ".join(notes), is_caution=not row.is_comparable or bool(differences))


def _list_differences(group: Group) -> list[str]:
    """Return what besides the seed differs between the runs of a group."""
    notes = {
        "the runs saw different images": group.has_one_data_set,
        "the runs started from different weights": group.has_one_start,
    }
    return [note for note, is_equal in notes.items() if not is_equal]


def _describe_counts(counts: tuple[int | None, ...]) -> str:
    known = [f"{count:,}" for count in sorted({count for count in counts if count is not None})]
    if None in counts:
        return "count of images not recorded"
    return f"on {' or '.join(known)} images"


def name_metric(metric: str) -> str:
    """Return `test linear accuracy` for `test/linear_accuracy`."""
    return metric.replace("/", " ").replace("_", " ")


def summarise(group: Group | None, metric: str) -> Cell:
    """Return mean and spread of a fraction over a group's runs, `-` without values.

    Marked unless the runs are full, saw the same images and started from the same weights.
    """
    values = [run.metrics[metric] for run in (group.runs if group else ()) if metric in run.metrics]
    if group is None or not values:
        return Cell("-")
    differences = _list_differences(group)
    text = format_mean(*average(values), "fraction")
    return Cell(text, detail="; ".join(differences), is_caution=not group.is_full or bool(differences))
