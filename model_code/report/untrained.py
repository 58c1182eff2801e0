"""Untrained networks on ImageNet: how they answer, and how fast."""

from model_code.disk import format_size
from model_code.report.amounts import format_mean
from model_code.report.collection import Collection, Group, Run, average
from model_code.report.comparison import describe_budget, describe_devices
from model_code.report.document import Cell, Paragraph, Section, Table, compact
from model_code.report.published import Unit

COLUMNS = (
    "recipe",
    "accuracy",
    "distinct classes",
    "share of the top class",
    "time",
    "peak memory",
    "seeds",
    "budget",
    "runs",
)


def build_untrained(collection: Collection) -> Section:
    """Return the section with one row for each recipe of an untrained network that was run."""
    explanation = (
        "1000 classes of 50 images each: a network that gives one answer to every image is right exactly 50 times "
        "of 50,000, which is chance. Distinct classes and the share of the most frequent one tell the two apart."
    )
    rows = tuple(_build_row(group) for group in collection.list_best("untrained"))
    table = compact(Table("Untrained networks on ImageNet-1k's validation images", COLUMNS, rows))
    blocks = (
        (Paragraph(explanation), table) if rows else (Paragraph("No untrained network was measured yet: not run."),)
    )
    return Section("Untrained networks", "untrained", blocks)


def _build_row(group: Group) -> tuple[Cell, ...]:
    images = _read(group, "pictures")
    of_images = round(images[0]) if len(set(images)) == 1 else None
    memory = _read(group, "peak_memory_bytes")
    speeds = _read(group, "pictures_per_s")
    is_caution = not group.is_full
    parameters = group.latest.metrics.get("network/parameters")
    size = f"{parameters / 1e6:.2f} M parameters; " if parameters else ""
    return (
        Cell(group.recipe, is_code=True, detail=f"{size}{describe_devices(group.runs)}"),
        Cell(
            _describe(_read(group, "accuracy"), "fraction"),
            detail=_describe(_read(group, "correct"), "count", of_images),
            is_caution=is_caution,
        ),
        Cell(_describe(_read(group, "distinct_classes"), "count"), is_caution=is_caution),
        Cell(_describe(_read(group, "top_class_share"), "fraction"), is_caution=is_caution),
        Cell(
            _describe(_read(group, "seconds"), "seconds"),
            detail=f"{average(speeds)[0]:,.0f} images/s" if speeds else "",
            is_caution=is_caution,
        ),
        Cell(format_size(round(max(memory))) if memory else "-"),
        Cell(str(len(group.runs))),
        describe_budget(group, is_caution=is_caution),
        Cell(run_ids=tuple(run.run_id for run in group.runs)),
    )


def _read(group: Group, name: str) -> list[float]:
    def find(run: Run) -> float | None:
        return run.metrics.get(f"validation/{name}")

    return [value for run in group.runs if (value := find(run)) is not None]


def _describe(values: list[float], unit: Unit, images: int | None = None) -> str:
    return format_mean(*average(values), unit, images) if values else "-"
