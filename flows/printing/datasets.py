"""Data sets: what is packed, what was added, how revisions differ."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flows.printing.lines import print_line
from flows.printing.records import describe_added
from model_code.data.sources.images import SOME, name_some
from model_code.disk import format_size
from serving.listing import Column, Form, print_heading, print_listing

# These import torch, for which a list of data sets need not wait.
if TYPE_CHECKING:
    from model_code.data.add import AddedDataset
    from model_code.data.cache import DatasetSummary, PackedDataset
    from model_code.data.revisions import Difference, ImageEntry, Revision
    from model_code.training.config import TrainingConfig

# FastNet's work grows with the area: above, a ResNet that halves the image five times is cheaper.
_SMALL_IMAGE = 96


def print_datasets(datasets: "Sequence[DatasetSummary]", cache_dir: Path, form: Form = "table") -> None:
    """Print what is packed in a cache."""
    if not datasets and form == "table":
        print_line(f"no images yet in {cache_dir}; start with: darkroom data add shapes")
        return
    columns = (
        Column("data set", "dataset"),
        Column("images", "counts", lambda counts: ", ".join(f"{count} {split}" for split, count in counts.items())),
        Column("classes", "classes", lambda classes: str(len(classes) or "")),
        Column("size", "image_size", lambda side: f"{side}x{side}" if side else ""),
        Column("on disk", "size_bytes", lambda size: format_size(size) if size else ""),
        Column("checksum", "checksum", lambda checksum: checksum[:12]),
        Column("source", "source", is_prose=True),
        Column("damaged", "damage", is_prose=True),
    )
    records = [
        {
            "dataset": dataset.name,
            "counts": dict(dataset.counts),
            "classes": list(dataset.classes),
            "image_size": dataset.image_size,
            "size_bytes": dataset.size_bytes,
            "checksum": dataset.checksum,
            "source": dataset.source,
            "damage": dataset.damage,
        }
        for dataset in datasets
    ]
    print_listing(columns, records, form)


def print_revisions(revisions: "Sequence[Revision]", form: Form = "table") -> None:
    """Print the history of a data set, the oldest revision first, with what changed from one to the next."""
    from model_code.data.revisions import compare_revisions

    columns = (
        Column("revision", "revision"),
        Column("added at", "added_at", lambda time: time[:19]),
        Column("images", "images"),
        Column("size", "image_size", lambda side: f"{side}x{side}"),
        Column("changes", "changes"),
    )
    records = []
    for before, revision in zip([None, *revisions], revisions, strict=False):
        changes = ""
        if before is not None and before.image_size == revision.image_size:
            changes = _count_changes(compare_revisions(before, revision))
        records.append(
            {
                "revision": str(revision),
                "added_at": revision.added_at,
                "images": len(revision.images),
                "image_size": revision.image_size,
                "changes": changes,
            }
        )
    print_listing(columns, records, form)


def print_difference(difference: "Difference", form: Form = "table") -> None:
    """Print every image that differs between two revisions; in a table after how many there are."""
    if form == "table":
        print_heading(_count_changes(difference))
    changed: list[tuple[str, str, ImageEntry | None, ImageEntry | None]] = [
        *(("removed", one.file, one, None) for one in difference.removed),
        *(("added", one.file, None, one) for one in difference.added),
        *(("relabelled", new.file, old, new) for old, new in difference.relabelled),
        *(("moved", new.file, old, new) for old, new in difference.moved),
    ]
    records = [
        {
            "change": change,
            "file": file,
            "file_before": old and old.file,
            "split_before": old and old.split,
            "label_before": old and old.label,
            "split_after": new and new.split,
            "label_after": new and new.label,
        }
        for change, file, old, new in changed
    ]
    columns = (
        Column("change", "change"),
        Column("file", "file", is_first=True),
        Column("split before", "split_before"),
        Column("label before", "label_before"),
        Column("split after", "split_after"),
        Column("label after", "label_after"),
    )
    if records or form != "table":
        print_listing(columns, records, form)


def _count_changes(difference: "Difference") -> str:
    counts = {name: len(getattr(difference, name)) for name in ("added", "removed", "relabelled", "moved")}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "the same images and labels"


def print_added(
    added: "AddedDataset",
    form: Form = "table",
    *,
    notes: Sequence[str] = (),
    is_offline: bool = False,
    is_quiet: bool = False,
) -> None:
    """Print what came of adding a data set, what was left out and why, notes and, unless quiet, what to do next."""
    if form != "table":
        print_listing((), [describe_added(added)], form)
        return
    dataset = added.dataset
    counts = ", ".join(f"{len(split.labels_N)} {name}" for name, split in dataset.splits.items())
    verb = "is there already, its source did not change" if added.reused else "packed"
    feedback = "" if dataset.base is None else f", {dataset.count_feedback()} of them feedback"
    print_line(
        f"{dataset.name} {verb}: {counts} images{feedback} of {dataset.image_size}x{dataset.image_size}, "
        f"{len(dataset.classes)} classes, checksum {dataset.checksum[:12]}"
    )
    names_by_reason: dict[str, list[str]] = defaultdict(list)
    for skipped in added.skipped:
        if not skipped.is_note:
            names_by_reason[skipped.reason].append(skipped.name)
    for reason, names in names_by_reason.items():
        print_line(f"  left out: {name_some(names)}: {reason}")
    if any(len(names) > SOME for names in names_by_reason.values()):
        print_line("  --report FILE lists all that is left out")
    for note in [*(f"{one.name}: {one.reason}" for one in added.skipped if one.is_note), *notes]:
        print_line(f"  {note}")
    test = dataset.splits.get("test")
    if "train" not in dataset.splits:
        print_line("  no training images: this set is for evaluation only")
    elif test is None:
        print_line("  no test images: runs will report validation only; add them with one more --from")
    elif not test.has_labels:
        print_line("  the test images have no labels: runs will report validation only")
    if "train" in dataset.splits and not is_quiet:
        from model_code.training.config import suggest_more_validation

        recipe = _choose_recipe(dataset.name, dataset.image_size)
        way = "" if recipe.dataset == dataset.name else f" --data {dataset.name}"
        is_own = "validation" in dataset.splits
        more = suggest_more_validation(recipe, _count_held_out(dataset, recipe), is_own=is_own)
        way += (f" {more}" if more else "") + (" --offline" if is_offline else "")
        print_line(f"  next: darkroom train {recipe.recipe}{way}; others: darkroom recipes")


def _choose_recipe(dataset: str, image_size: int) -> "TrainingConfig":
    """Return the recipe to begin with: FastNet's for the data set, on other small images one that a CPU trains too."""
    from model_code.recipes.catalog import RECIPES, build_config
    from model_code.training.config import TrainingConfig

    own = RECIPES.get(f"fastnet_{dataset}")
    is_own = own is not None and own.build().dataset == dataset
    small = f"fastnet_{dataset}" if is_own else "fastnet_cifar10"
    config = build_config(small if is_own or image_size <= _SMALL_IMAGE else "resnet18_food11")
    assert isinstance(config, TrainingConfig), "all three are"
    return config


def _count_held_out(dataset: "PackedDataset", config: "TrainingConfig") -> int:
    return round(config.validation_fraction * (len(dataset.splits["train"].labels_N) - dataset.count_feedback()))
