"""Search of a packed data set for label issues, near-duplicates and images of poor quality.

Shape suffixes: N = images, H = height, W = width, C = colour channels.
"""

import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model_code.data.cache import PackedDataset, open_dataset, read_manifest
from model_code.data.duplicates import DuplicatePair, find_duplicates, group
from model_code.data.exclusion import EXCLUDED_BY
from model_code.data.quality import find_flaws
from model_code.data.revisions import LEARNED, SHORT_CHECKSUM, Revision, read_revision, write_leakage
from model_code.data.tables import write_table
from model_code.disk import write_atomically
from model_code.evaluation.label_issues import FEWEST_IMAGES, find_label_issues, predict_left_out
from model_code.evaluation.patch_features import compute_patch_features, shrink
from model_code.report.data_page import COLUMNS, Issue, render_data_page
from model_code.settings import load_settings

# A duplicate in a later one is listed: what is tested stays.
_SPLIT_ORDER = ("test", "validation", "train", "unlabelled")
_LEAKED, _UNLABELLED = "near-duplicate across splits", "unlabelled"


@dataclass(frozen=True)
class Checked:
    """Result of a check.

    Attributes:
        title: Revision, number of images and number of issues.
        page: The page for people.
        table: The table that `data add --exclude` takes.
        counts: Issues of each kind.
        lines: Notes for people.
    """

    title: str
    page: Path
    table: Path
    counts: dict[str, int]
    lines: tuple[str, ...]


def check_data(name: str, folder: Path | None = None) -> Checked:
    """Check a packed data set and write a page and a table, named by its revision; an edited table stays.

    Args:
        name: Name of the data set.
        folder: Where they are written; DARKROOM_HOME/checks/NAME if None.

    Raises:
        DataError: The data set is not there, is damaged, or has no revision, which `data add` writes.
    """
    settings = load_settings()
    dataset = open_dataset(name, settings.cache_dir)
    dataset.verify()
    revision = read_revision(f"{name}@{dataset.checksum}", settings.cache_dir)
    folder = folder or settings.home / "checks" / name
    print(f"reading {len(revision.images)} images", flush=True)
    finder, issues = _Finder(dataset, revision), list[Issue]()
    for title, find in (
        ("copies", finder.find_copies),
        ("likely wrong labels", finder.find_wrong_labels),
        ("dark, bright, blank and blurred images", finder.find_flawed),
    ):
        print(f"looking for {title}", flush=True)
        issues += find()
    write_leakage(dataset, settings.cache_dir, finder.leaked)
    title = f"{revision}: {len(revision.images)} images, {len(issues)} issues"
    page, table = (folder / f"issues-{dataset.checksum[:SHORT_CHECKSUM]}.{ending}" for ending in ("html", "csv"))
    lines = list(finder.lines)
    if not write_table(table, COLUMNS, (one.row for one in issues), keeps_edited=True):
        lines.append(f"{table.name} was edited and stays as it is; move it away for a new one.")
    if issues:
        lines.append(
            f"Next: delete the rows of correct images from {table.name}, then exclude the others: darkroom data add "
            f"{name} --from PATH --exclude {shlex.quote(str(table))}"
        )
        if earlier := _list_exclusions(name, settings.cache_dir):
            lines.append(f"Add --exclude for each earlier table too, or its images come back: {', '.join(earlier)}")
    write_atomically(page, render_data_page(title, lines, issues).encode())
    return Checked(title, page, table, dict(Counter(one.kind for one in issues)), tuple(lines))


def _list_exclusions(name: str, cache_dir: Path) -> list[str]:
    """Return the tables that the packed images were excluded by."""
    reasons = {one.reason for one in read_manifest(name, cache_dir).skipped}
    return sorted(one.removeprefix(EXCLUDED_BY) for one in reasons if one.startswith(EXCLUDED_BY))


class _Finder:
    """All images of a data set, test images first."""

    def __init__(self, dataset: PackedDataset, revision: Revision) -> None:
        self._dataset = dataset
        splits = [split for split in _SPLIT_ORDER if split in dataset.splits]
        self._images = [one for split in splits for one in revision.images if one.split == split]
        self._rows = [(split, row) for split in splits for row in range(len(dataset.splits[split].labels_N))]
        self._labels_N = np.concatenate([dataset.splits[split].labels_N for split in splits])
        self._small_NCHW: Tensor = torch.cat([shrink(dataset.splits[split].images_NHWC) for split in splits])
        self.lines: list[str] = []
        self.leaked = 0  # training images among the copies of validation and test images

    def find_copies(self) -> Iterator[Issue]:
        """Yield each near-duplicate but the first of its group, and that one too if it is labelled otherwise."""
        pairs = [*self._find_equal(), *find_duplicates(self._small_NCHW)]
        similarity = {place: pair.similarity for pair in reversed(pairs) for place in pair[:2]}
        found: dict[int, Issue] = {}
        for place, first in sorted(group(pairs).items()):
            if place == first:
                continue
            image, twin = self._images[place], self._images[first]
            detail = "" if image.label == twin.label else f"duplicate labelled {twin.label or _UNLABELLED}"
            kind = "near-duplicate" if image.split == twin.split else _LEAKED
            self.leaked += image.split in LEARNED and twin.split not in LEARNED
            if kind == _LEAKED:
                detail = f"also in {twin.split}" + (f", {detail}" if detail else "")
            elif detail and first not in found:  # one of the labels is wrong, and a person has to say which
                other = f"duplicate labelled {image.label or _UNLABELLED}"
                found[first] = self._make(first, kind, other, similarity[first], place)
            found[place] = self._make(place, kind, detail, similarity[place], first)
        yield from sorted(found.values(), key=lambda one: (one.kind != _LEAKED, -one.score))

    def _find_equal(self) -> Iterator[DuplicatePair]:
        """Yield the images of equal pixels, those too that show too little to be compared otherwise."""
        first: dict[str, int] = {}
        for place, image in enumerate(self._images):
            if first.setdefault(image.pixels, place) != place:
                yield DuplicatePair(first[image.pixels], place, 1.0)

    def find_wrong_labels(self) -> Iterator[Issue]:
        """Yield the images that are likely of another class."""
        labelled = np.flatnonzero(self._labels_N >= 0)
        classes = self._dataset.classes
        counts_K = np.bincount(self._labels_N[labelled], minlength=len(classes))
        small = [name for name, count in zip(classes, counts_K, strict=True) if count < FEWEST_IMAGES]
        if small:
            self.lines.append(f"No search for label issues in {', '.join(small)}: fewer than {FEWEST_IMAGES} images.")
        if len(classes) - len(small) < 2:
            return
        labels_N = self._labels_N[labelled]
        probabilities_NK = predict_left_out(compute_patch_features(self._small_NCHW[labelled]), labels_N, len(classes))
        accuracy = float((probabilities_NK.argmax(1) == labels_N).mean())
        self.lines.append(
            f"Label issues: a linear probe on patch features has a leave-one-out accuracy of {accuracy:.1%}; the lower "
            "it is, the more false positives are listed, mostly at low scores."
        )
        for issue in find_label_issues(probabilities_NK, labels_N):
            place = int(labelled[issue.index])
            yield self._make(place, "label issue", f"predicted {classes[issue.suggested]}", issue.score)

    def find_flawed(self) -> Iterator[Issue]:
        """Yield the dark, bright, blank and blurred images."""
        for flawed in find_flaws(self._small_NCHW):
            yield self._make(flawed.index, flawed.flaw, "", flawed.score)

    def _make(self, place: int, kind: str, detail: str, score: float, twin: int | None = None) -> Issue:
        image = self._images[place]
        twin_file, twin_HWC = ("", None) if twin is None else (self._images[twin].file, self._read(twin))
        label = image.label or _UNLABELLED
        return Issue(image.file, kind, image.split, label, detail, score, self._read(place), twin_file, twin_HWC)

    def _read(self, place: int) -> npt.NDArray[np.uint8]:
        split, row = self._rows[place]
        return np.asarray(self._dataset.splits[split].images_NHWC[row])
